"""Decoders in the manner of Llama: norm, rotary attention, norm, feed-forward; each model type has its own accents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distft.plan.architecture import Attention, FeedForward, Layers, Stack
from distft.plan.families.family import Config, Family, alike, classifier, language_head, windows
from distft.plan.weights import Weights, embedding, linear, norm, vector

TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
Bias = bool | str  # a string: the key of the configuration that says so


@dataclass(frozen=True)
class Style:
    """Accents of a model type.

    Attributes:
        norms: their names in a layer.
        norm_bias: norms have biases.
        query_bias, output_bias: of the projections to queries, keys and values, and of that back.
        output: name of the projection back.
        joined, joined_gate: queries, keys and values are one matrix; gate and up are.
        query_norm: queries and keys are normed. head: one scale for all heads; heads: one each; whole: all at once.
        optional_norm: the key of the configuration that says whether they are.
        gated: there is a gate beside `up`.
        up, down: names in the feed-forward layer.
        final: the norm behind all layers; None: it has no weights.
        soft_cap: scores are capped.
    """

    norms: tuple[str, ...] = TWO_NORMS
    norm_bias: bool = False
    query_bias: Bias = "attention_bias"
    output_bias: Bias = "attention_bias"
    output: str = "o_proj"
    joined: bool = False
    joined_gate: bool = False
    query_norm: Literal["head", "heads", "whole"] | None = None
    optional_norm: str | None = None
    gated: bool = True
    up: str = "up_proj"
    down: str = "down_proj"
    mlp_bias: Bias = False
    final: str | None = "norm"
    soft_cap: bool = False


STYLES = {
    "llama": Style(mlp_bias="mlp_bias"),
    "mistral": Style(query_bias=False, output_bias=False),
    "qwen2": Style(query_bias=True, output_bias=False),
    "qwen3": Style(query_norm="head"),
    "phi3": Style(joined=True, joined_gate=True, query_bias=False, output_bias=False),
    "smollm3": Style(mlp_bias="mlp_bias"),
    "granite": Style(mlp_bias="mlp_bias"),
    "olmo": Style(norms=(), final=None),
    "olmo2": Style(norms=AFTER, query_norm="whole"),
    "olmo3": Style(norms=AFTER, query_norm="whole"),
    "exaone4": Style(norms=AFTER, query_norm="head", query_bias=False, output_bias=False),
    "starcoder2": Style(
        norm_bias=True,
        query_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        gated=False,
        up="c_fc",
        down="c_proj",
    ),
    "cohere": Style(norms=TWO_NORMS[:1], query_norm="heads", optional_norm="use_qk_norm"),
    "cohere2": Style(norms=TWO_NORMS[:1]),
    "stablelm": Style(norm_bias=True, query_bias="use_qkv_bias", output_bias=False),
    "phi": Style(
        norms=TWO_NORMS[:1],
        norm_bias=True,
        query_bias=True,
        output_bias=True,
        output="dense",
        query_norm="head",
        optional_norm="qk_layernorm",
        gated=False,
        up="fc1",
        down="fc2",
        mlp_bias=True,
        final="final_layernorm",
    ),
    "glm": Style(query_bias="attention_bias", joined_gate=True, output_bias=False),
    "glm4": Style(
        norms=(*TWO_NORMS, "post_self_attn_layernorm", "post_mlp_layernorm"),
        query_bias="attention_bias",
        joined_gate=True,
        output_bias=False,
    ),
    "nemotron": Style(norm_bias=True, mlp_bias="mlp_bias", gated=False),
    "arcee": Style(mlp_bias="mlp_bias", gated=False),
    "seed_oss": Style(query_bias="attention_bias", output_bias="attention_out_bias", mlp_bias="mlp_bias"),
    "ernie4_5": Style(query_bias="use_bias", output_bias="use_bias", mlp_bias="use_bias"),
    "gemma": Style(),
    "gemma2": Style(norms=FOUR_NORMS, soft_cap=True),
    "gemma3_text": Style(norms=FOUR_NORMS, query_norm="head"),
}


def attention_weights(config: Config, style: Style) -> Weights:
    hidden, size = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    bias = said(config, style.query_bias)
    if style.joined:
        inner = linear("self_attn.qkv_proj", queries + 2 * keys, hidden, bias)
    else:
        widths = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        inner = tuple(w for name, width in widths.items() for w in linear(f"self_attn.{name}", width, hidden, bias))
    back = linear(f"self_attn.{style.output}", hidden, queries, said(config, style.output_bias))
    return inner + back + query_norms(config, style)


def query_norms(config: Config, style: Style) -> Weights:
    if style.query_norm is None or not config.get(style.optional_norm or "", style.optional_norm is None):
        return ()
    size, heads = config["head_dim"], {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    if style.query_norm == "heads":
        return tuple(w for one, n in heads.items() for w in vector(f"self_attn.{one}_norm.weight", n, size))
    name = "layernorm" if style.optional_norm == "qk_layernorm" else "norm"
    widths = {one: n * size if style.query_norm == "whole" else size for one, n in heads.items()}
    return tuple(w for one, width in widths.items() for w in norm(f"self_attn.{one}_{name}", width, style.norm_bias))


def feed_forward_weights(config: Config, style: Style, width: int, name: str = "mlp") -> Weights:
    hidden, bias = config["hidden_size"], said(config, style.mlp_bias)
    down = linear(f"{name}.{style.down}", hidden, width, bias)
    if style.joined_gate:
        return linear(f"{name}.gate_up_proj", 2 * width, hidden, bias) + down
    gate = linear(f"{name}.gate_proj", width, hidden, bias) if style.gated else ()
    return gate + linear(f"{name}.{style.up}", width, hidden, bias) + down


def norm_weights(config: Config, style: Style) -> Weights:
    return tuple(w for name in style.norms for w in norm(name, config["hidden_size"], style.norm_bias))


def said(config: Config, bias: Bias) -> bool:
    return bool(config[bias]) if isinstance(bias, str) else bias


def attention(config: Config, style: Style, window: int | None) -> Attention:
    size = config["head_dim"]
    return Attention(
        heads=config["num_attention_heads"],
        keys=config["num_key_value_heads"],
        size=size,
        value_size=size,
        causal=True,
        window=window,
        soft_cap=style.soft_cap and config.get("attn_logit_softcapping") is not None,
        dropout=config.get("attention_dropout", 0.0),
    )


def dense(config: Config, style: Style) -> FeedForward:
    return FeedForward(config["intermediate_size"], style.gated, config["hidden_act"])


def outside(config: Config, style: Style, prefix: str) -> Weights:
    """The weights of a decoder that are in none of its layers."""
    table = embedding(f"{prefix}.embed_tokens", config["vocab_size"], config["hidden_size"])
    return table + (norm(f"{prefix}.{style.final}", config["hidden_size"], style.norm_bias) if style.final else ())


def stacks(config: Config, prefix: str) -> tuple[Stack, ...]:
    style = STYLES[config["model_type"]]
    weights = (
        attention_weights(config, style)
        + feed_forward_weights(config, style, config["intermediate_size"])
        + norm_weights(config, style)
    )
    layers = tuple(
        Layers(
            count=len(numbers),
            path=f"{prefix}.layers",
            weights=weights,
            attention=attention(config, style, window),
            feed_forward=dense(config, style),
            norms=len(style.norms) or 2,  # OLMo's have no weights
            dropout=config.get("residual_dropout", 0.0),
            numbers=numbers,
            parallel=len(style.norms) == 1,
        )
        for window, numbers in alike(windows(config))
    )
    return (Stack("only", config["hidden_size"], layers, outside(config, style, prefix)),)


def phi_head(config: Config, labels: int) -> Weights:
    return linear("lm_head", config["vocab_size"], config["hidden_size"])


LLAMA = Family(
    stacks,
    "model",
    {
        "causal": language_head,
        "sequence": classifier("score", bias=False),
        "tokens": classifier("score"),
        "answers": classifier("qa_outputs"),
    },
)
LLAMA_ANSWERS = Family(stacks, "model", LLAMA.heads, {"answers": "transformer"})  # its class has another name inside
PHI = Family(stacks, "model", {**LLAMA.heads, "causal": phi_head})
