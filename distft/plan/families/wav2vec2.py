"""wav2vec2 and HuBERT: convolutions over samples, then an encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distft.plan.architecture import Attention, FeedForward, Layers, Stack
from distft.plan.families.family import Config, Family, MakeHead
from distft.plan.weights import Weights, convolution, joined, linear, norm, vector


def layer(config: Config) -> Weights:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    return (
        tuple(w for name in ("k", "v", "q", "out") for w in linear(f"attention.{name}_proj", hidden, hidden))
        + norm("layer_norm", hidden, True)
        + linear("feed_forward.intermediate_dense", width, hidden)
        + linear("feed_forward.output_dense", hidden, width)
        + norm("final_layer_norm", hidden, True)
        + adapter(config)
    )


def adapter(config: Config) -> Weights:
    """The small layers for a language that MMS adds behind each layer (arXiv:2305.13516)."""
    size = config.get("adapter_attn_dim")
    if size is None or not config["do_stable_layer_norm"]:
        return ()
    hidden, name = config["hidden_size"], "adapter_layer"
    return (
        norm(f"{name}.norm", hidden, True)
        + linear(f"{name}.linear_1", size, hidden)
        + linear(f"{name}.linear_2", hidden, size)
    )


def listening(config: Config) -> Weights:
    """Convolutions over samples; all have a norm, or the first alone."""
    sizes = (1, *config["conv_dim"])
    found: Weights = ()
    for number, (kernel, stride) in enumerate(zip(config["conv_kernel"], config["conv_stride"], strict=True)):
        name, width = f"feature_extractor.conv_layers.{number}", sizes[number + 1]
        found += convolution(f"{name}.conv", width, sizes[number], kernel, bias=config["conv_bias"], stride=stride)
        if number == 0 or config["feat_extract_norm"] == "layer":
            found += norm(f"{name}.layer_norm", width, True)
    return found


def around(config: Config) -> Weights:
    hidden, heard = config["hidden_size"], config["conv_dim"][-1]
    kernel, groups = config["num_conv_pos_embeddings"], config["num_conv_pos_embedding_groups"]
    positions = "encoder.pos_conv_embed.conv"
    masked = config["mask_time_prob"] > 0 or config["mask_feature_prob"] > 0
    found = vector("masked_spec_embed", hidden) if masked else ()
    found += listening(config)
    found += norm("feature_projection.layer_norm", heard, True) if config["feat_proj_layer_norm"] else ()
    found += linear("feature_projection.projection", hidden, heard) + vector(f"{positions}.bias", hidden)
    found += vector(f"{positions}.parametrizations.weight.original0", 1, 1, kernel)
    direction = convolution(positions, hidden, hidden // groups, kernel, bias=False)[0]
    found += (replace(direction, name=f"{positions}.parametrizations.weight.original1"),)
    return found + norm("encoder.layer_norm", hidden, True)


def stacks(config: Config, prefix: str) -> tuple[Stack, ...]:
    heads = config["num_attention_heads"]
    size = config["hidden_size"] // heads
    layers = Layers(
        count=config["num_hidden_layers"],
        path=f"{prefix}.encoder.layers",
        weights=layer(config),
        attention=Attention(heads, heads, size, size, False, dropout=config["attention_dropout"]),
        feed_forward=FeedForward(
            config["intermediate_size"], False, config["hidden_act"], dropout=config["activation_dropout"]
        ),
        norms=2,
        dropout=config["hidden_dropout"],
    )
    first = "" if config["do_stable_layer_norm"] else f"{prefix}.encoder.layer_norm.weight"
    other = joined(prefix, around(config))
    return (Stack("only", config["hidden_size"], (layers,), other, first_norm=first, extracts=True),)


def head(config: Config, labels: int) -> Weights:
    return linear("lm_head", config["vocab_size"], config["hidden_size"])


HEADS: dict[Any, MakeHead] = {"ctc": head}
WAV2VEC2, HUBERT = Family(stacks, "wav2vec2", HEADS), Family(stacks, "hubert", HEADS)

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "conv_dim": [512] * 7,
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_bias": False,
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "mask_time_prob": 0.05,
    "mask_feature_prob": 0.0,
}
