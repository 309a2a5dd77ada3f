"""T5 and its kin: an encoder and a decoder whose positions are biases of attention."""

from __future__ import annotations

from typing import Any

from distft.plan.architecture import Attention, FeedForward, Layers, Stack
from distft.plan.families.family import Config, Family, MakeHead
from distft.plan.weights import Weights, embedding, linear, norm


def attention_weights(config: Config, name: str) -> Weights:
    hidden, inner = config["hidden_size"], config["num_attention_heads"] * config["d_kv"]
    inward = tuple(w for one in "qkv" for w in linear(f"{name}.{one}", inner, hidden, False))
    return inward + linear(f"{name}.o", hidden, inner, False)


def layer(config: Config, decodes: bool) -> Weights:
    hidden, width = config["hidden_size"], config["d_ff"]
    found = attention_weights(config, "layer.0.SelfAttention") + norm("layer.0.layer_norm", hidden)
    if decodes:
        found += attention_weights(config, "layer.1.EncDecAttention") + norm("layer.1.layer_norm", hidden)
    last = f"layer.{2 if decodes else 1}"
    ins = ("wi_0", "wi_1") if is_gated(config) else ("wi",)
    found += tuple(w for name in ins for w in linear(f"{last}.DenseReluDense.{name}", width, hidden, False))
    return found + linear(f"{last}.DenseReluDense.wo", hidden, width, False) + norm(f"{last}.layer_norm", hidden)


def is_gated(config: Config) -> bool:
    return str(config["feed_forward_proj"]).startswith("gated-")


def activation(config: Config) -> str:
    """T5 1.1 says "gated-gelu" and means the one that is written out."""
    name = str(config["feed_forward_proj"]).split("-")[-1]
    return "gelu_new" if is_gated(config) and name == "gelu" else name


def stack(config: Config, prefix: str, decodes: bool) -> Stack:
    path = f"{prefix}{'decoder' if decodes else 'encoder'}"
    count = config["num_decoder_layers"] if decodes else config["num_hidden_layers"]
    heads, size = config["num_attention_heads"], config["d_kv"]
    layers = Layers(
        count=count,
        path=f"{path}.block",
        weights=layer(config, decodes),
        attention=Attention(
            heads, heads, size, size, decodes, over_encoder=decodes, bias=True, dropout=config["dropout_rate"]
        ),
        feed_forward=FeedForward(config["d_ff"], is_gated(config), activation(config), dropout=config["dropout_rate"]),
        norms=3 if decodes else 2,
        dropout=config["dropout_rate"],
    )
    everywhere = config["model_type"] == "umt5"  # else the first layer's biases serve all
    biases = tuple(
        weight
        for number in range(count if everywhere else 1)
        for weight in embedding(
            f"{path}.block.{number}.layer.0.SelfAttention.relative_attention_bias",
            config["relative_attention_num_buckets"],
            heads,
        )
    )
    table = () if decodes else embedding(f"{prefix}shared", config["vocab_size"], config["hidden_size"])
    other = table + biases + norm(f"{path}.final_layer_norm", config["hidden_size"])
    return Stack("decoder" if decodes else "encoder", config["hidden_size"], (layers,), other)


def stacks(config: Config, prefix: str) -> tuple[Stack, ...]:
    inner = f"{prefix}." if prefix else ""
    return stack(config, inner, False), stack(config, inner, True)


def head(config: Config, labels: int) -> Weights:
    """transformers ties every new one, and of one from disk that says it is not it takes both matrices."""
    tied = config["tie_word_embeddings"]
    return () if tied else linear("lm_head", config["vocab_size"], config["hidden_size"], False)


HEADS: dict[Any, MakeHead] = {"seq2seq": head}
T5 = Family(stacks, "", HEADS)

ALIASES = {"d_model": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
COMMON: dict[str, Any] = {
    "vocab_size": 250112,
    "hidden_size": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_hidden_layers": 8,
    "num_decoder_layers": None,
    "num_attention_heads": 6,
    "relative_attention_num_buckets": 32,
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": True,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "t5": COMMON
    | {
        "vocab_size": 32128,
        "d_ff": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "feed_forward_proj": "relu",
    },
    "mt5": COMMON,
    "umt5": COMMON,
}


def derived(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "num_decoder_layers": config["num_decoder_layers"] or config["num_hidden_layers"]}
