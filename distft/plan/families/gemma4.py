"""Gemma 4's decoder for texts: heads of two sizes, layers that use the keys of others, and inputs for each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distft.plan.architecture import Attention, FeedForward, Layers, Stack
from distft.plan.families import decoder_config
from distft.plan.families.family import Config, Family, alike
from distft.plan.families.llama_like import FOUR_NORMS, LLAMA
from distft.plan.weights import Weights, bare, embedding, linear, norm, vector


@dataclass(frozen=True)
class Kind:
    """What tells layers apart.

    Attributes:
        sees_all: it has no window, and larger heads.
        reuses: its keys and values are those of an earlier layer.
    """

    sees_all: bool
    reuses: bool

    def sizes(self, config: Config) -> tuple[int, int]:
        """The size of a head, and the number of heads of keys."""
        if not self.sees_all:
            return config["head_dim"], config["num_key_value_heads"]
        own = config["num_global_key_value_heads"] if config["attention_k_eq_v"] else None
        return config["global_head_dim"], own or config["num_key_value_heads"]

    def width(self, config: Config) -> int:
        """Of the feed-forward layer."""
        return int(config["intermediate_size"]) * (2 if config["use_double_wide_mlp"] and self.reuses else 1)


def kinds(config: Config) -> list[Kind]:
    first = config["num_hidden_layers"] - config["num_kv_shared_layers"]
    return [Kind(one == "full_attention", number >= first) for number, one in enumerate(config["layer_types"])]


def attention_weights(config: Config, kind: Kind) -> Weights:
    hidden, bias = config["hidden_size"], config["attention_bias"]
    size, keys = kind.sizes(config)
    queries = config["num_attention_heads"] * size
    found = linear("self_attn.q_proj", queries, hidden, bias) + norm("self_attn.q_norm", size)
    if not kind.reuses:
        found += norm("self_attn.k_norm", size) + linear("self_attn.k_proj", keys * size, hidden, bias)
        if not (kind.sees_all and config["attention_k_eq_v"]):
            found += linear("self_attn.v_proj", keys * size, hidden, bias)
    return found + linear("self_attn.o_proj", hidden, queries, bias)


def layer(config: Config, kind: Kind) -> Weights:
    hidden, width, small = config["hidden_size"], kind.width(config), config["hidden_size_per_layer_input"]
    found = attention_weights(config, kind)
    found += linear("mlp.gate_proj", width, hidden, False) + linear("mlp.up_proj", width, hidden, False)
    found += linear("mlp.down_proj", hidden, width, False)
    found += tuple(weight for name in FOUR_NORMS for weight in norm(name, hidden))
    if small:
        found += linear("per_layer_input_gate", small, hidden, False)
        found += linear("per_layer_projection", hidden, small, False) + norm("post_per_layer_input_norm", hidden)
    return found + (expert_weights(config) if config["enable_moe_block"] else ())


def expert_weights(config: Config) -> Weights:
    """Experts beside the feed-forward layer that all tokens meet."""
    hidden, width, count = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
    names = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
    return (
        linear("router.proj", count, hidden, False)
        + vector("router.scale", hidden)
        + vector("router.per_expert_scale", count)
        + bare("experts.gate_up_proj", count, 2 * width, hidden, experts=True)
        + bare("experts.down_proj", count, hidden, width, experts=True)
        + tuple(weight for name in names for weight in norm(name, hidden))
    )


def feed_forward(config: Config, kind: Kind) -> FeedForward:
    if not config["enable_moe_block"]:
        return FeedForward(kind.width(config), True, config["hidden_act"])
    return FeedForward(
        config["moe_intermediate_size"],
        True,
        config["hidden_act"],
        experts=config["num_experts"],
        chosen=config["top_k_experts"],
        shared=kind.width(config),
    )


def stacks(config: Config, prefix: str) -> tuple[Stack, ...]:
    layers = []
    for kind, numbers in alike(kinds(config)):
        size, keys = kind.sizes(config)
        attention = Attention(
            heads=config["num_attention_heads"],
            keys=keys,
            size=size,
            value_size=size,
            causal=True,
            window=None if kind.sees_all else config["sliding_window"],
            dropout=config["attention_dropout"],
        )
        layers.append(
            Layers(
                count=len(numbers),
                path=f"{prefix}.layers",
                weights=layer(config, kind),
                attention=attention,
                feed_forward=feed_forward(config, kind),
                norms=len(FOUR_NORMS),
                numbers=numbers,
            )
        )
    return (Stack("only", config["hidden_size"], tuple(layers), outside(config, prefix)),)


def outside(config: Config, prefix: str) -> Weights:
    hidden, small = config["hidden_size"], config["hidden_size_per_layer_input"]
    found = embedding(f"{prefix}.embed_tokens", config["vocab_size"], hidden) + norm(f"{prefix}.norm", hidden)
    if small:
        whole = config["num_hidden_layers"] * small
        found += embedding(f"{prefix}.embed_tokens_per_layer", config["vocab_size_per_layer_input"], whole)
        found += linear(f"{prefix}.per_layer_model_projection", whole, hidden, False)
        found += norm(f"{prefix}.per_layer_projection_norm", small)
    return found


def derived(config: dict[str, Any]) -> dict[str, Any]:
    """The last layer sees all whatever the pattern says. What layers that see all have of their own is written in one
    of two ways: as global_..., or number by number."""
    types = [*decoder_config.layer_types(config)[:-1], "full_attention"]
    own: dict[str, Any] = next(iter((config.get("per_layer_config") or {}).values()), {})
    return {
        **decoder_config.derived(config),
        "layer_types": types,
        "global_head_dim": own.get("head_dim", config["global_head_dim"]),
        "num_global_key_value_heads": own.get("num_key_value_heads", config["num_global_key_value_heads"]),
    }


GEMMA4 = Family(stacks, "model", {"causal": LLAMA.heads["causal"]})
