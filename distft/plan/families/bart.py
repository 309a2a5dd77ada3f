"""BART and its kin: an encoder and a decoder with positions of their own; so is Whisper, which hears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distft.plan.architecture import Attention, FeedForward, Layers, Stack
from distft.plan.families.family import Config, Family, MakeHead
from distft.plan.weights import Weights, convolution, embedding, linear, norm


@dataclass(frozen=True)
class Style:
    """Accents of a model type.

    Attributes:
        offset: rows of the tables of positions before the first; None: there are none (they are computed).
        first_norm, last_norm: there is a norm behind the embeddings, and behind the layers.
        key_bias: the projection to keys has a bias.
        sines: tables of positions are computed once and not trained.
        hears: the encoder reads spectra, through two convolutions.
    """

    offset: int | None = 0
    first_norm: bool = False
    last_norm: bool = False
    key_bias: bool = True
    sines: bool = False
    hears: bool = False


STYLES = {
    "bart": Style(offset=2, first_norm=True),
    "mbart": Style(offset=2, first_norm=True, last_norm=True),
    "marian": Style(sines=True),
    "pegasus": Style(last_norm=True, sines=True),
    "m2m_100": Style(offset=None, last_norm=True),
    "whisper": Style(last_norm=True, key_bias=False, hears=True),
}


def attention_weights(config: Config, style: Style, name: str) -> Weights:
    hidden = config["hidden_size"]
    biases = {"k_proj": style.key_bias, "v_proj": True, "q_proj": True, "out_proj": True}
    inner = tuple(w for one, bias in biases.items() for w in linear(f"{name}.{one}", hidden, hidden, bias))
    return inner + norm(f"{name}_layer_norm", hidden, True)


def layer(config: Config, style: Style, role: str) -> Weights:
    hidden, width = config["hidden_size"], config[f"{role}_ffn_dim"]
    return (
        attention_weights(config, style, "self_attn")
        + (attention_weights(config, style, "encoder_attn") if role == "decoder" else ())
        + linear("fc1", width, hidden)
        + linear("fc2", hidden, width)
        + norm("final_layer_norm", hidden, True)
    )


def stack(config: Config, prefix: str, decodes: bool) -> Stack:
    style = STYLES[config["model_type"]]
    role, hidden = "decoder" if decodes else "encoder", config["hidden_size"]
    path, heads = f"{prefix}.{role}", config[f"{role}_attention_heads"]
    size = hidden // heads
    layers = Layers(
        count=config[f"{role}_layers"],
        path=f"{path}.layers",
        weights=layer(config, style, role),
        attention=Attention(
            heads, heads, size, size, decodes, over_encoder=decodes, dropout=config["attention_dropout"]
        ),
        feed_forward=FeedForward(
            config[f"{role}_ffn_dim"], False, config["activation_function"], dropout=config["activation_dropout"]
        ),
        norms=3 if decodes else 2,
        dropout=config["dropout"],
    )
    other = inputs(config, style, prefix, role)
    other += norm(f"{path}.layernorm_embedding", hidden, True) if style.first_norm else ()
    other += norm(f"{path}.layer_norm", hidden, True) if style.last_norm else ()
    return Stack("decoder" if decodes else "encoder", hidden, (layers,), other)


def inputs(config: Config, style: Style, prefix: str, role: str) -> Weights:
    """Tables of tokens and positions of one side; those that both sides use count as the encoder's."""
    hidden, path = config["hidden_size"], f"{prefix}.{role}"
    if style.hears:
        positions = config["max_source_positions" if role == "encoder" else "max_target_positions"]
        table = embedding(f"{path}.embed_positions", positions, hidden, frozen=role == "encoder")
        if role == "decoder":
            return table + embedding(f"{path}.embed_tokens", config["vocab_size"], hidden)
        first = convolution(f"{path}.conv1", hidden, config["num_mel_bins"], 3)
        return table + first + convolution(f"{path}.conv2", hidden, hidden, 3, stride=2)
    found = embedding(f"{prefix}.shared", config["vocab_size"], hidden) if role == "encoder" else ()
    if not config["share_encoder_decoder_embeddings"]:
        rows = config["vocab_size"] if role == "encoder" else config["decoder_vocab_size"]
        found = embedding(f"{path}.embed_tokens", rows, hidden)
    if style.offset is None:
        return found
    rows = config["max_position_embeddings"] + style.offset
    return found + embedding(f"{path}.embed_positions", rows, hidden, style.sines)


def stacks(config: Config, prefix: str) -> tuple[Stack, ...]:
    return stack(config, prefix, False), stack(config, prefix, True)


def head(name: str) -> MakeHead:
    def make(config: Config, labels: int) -> Weights:
        tied = config["tie_word_embeddings"]
        return () if tied else linear(name, config["vocab_size"], config["hidden_size"], False)

    return make


SPOKEN: dict[Any, MakeHead] = {"speech": head("proj_out")}
WRITTEN: dict[Any, MakeHead] = {"seq2seq": head("lm_head")}
BART = Family(stacks, "model", WRITTEN)
WHISPER = Family(stacks, "model", SPOKEN, outputs={"speech": "proj_out"})

ALIASES = {"d_model": "hidden_size", "num_hidden_layers": "encoder_layers"}
COMMON: dict[str, Any] = {
    "vocab_size": 50265,
    "hidden_size": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "max_position_embeddings": 1024,
    "activation_function": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "tie_word_embeddings": True,
    "share_encoder_decoder_embeddings": True,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "bart": COMMON,
    "mbart": COMMON,
    "marian": COMMON | {"vocab_size": 58101, "decoder_vocab_size": None},
    "pegasus": COMMON,
    "m2m_100": COMMON | {"vocab_size": 128112, "activation_function": "relu", "attention_dropout": 0.1},
    "whisper": COMMON
    | {
        "vocab_size": 51865,
        "hidden_size": 384,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_attention_heads": 6,
        "decoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "decoder_ffn_dim": 1536,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "max_position_embeddings": None,
        "num_mel_bins": 80,
        "dropout": 0.0,
    },
}


def marian_derived(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "decoder_vocab_size": config["decoder_vocab_size"] or config["vocab_size"]}
