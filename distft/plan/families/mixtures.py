"""Decoders with a mixture of experts in place of the feed-forward layers, or of most of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from distft.plan.architecture import Attention, FeedForward, Layers, Stack
from distft.plan.families import decoder_config, llama_like
from distft.plan.families.family import Config, Family, alike, windows
from distft.plan.families.llama_like import LLAMA, Style
from distft.plan.weights import Weights, bare, linear, norm, vector


@dataclass(frozen=True)
class Mixture:
    """A model type: its accents, and its experts.

    Attributes:
        name: of the layer that holds the experts.
        router: of the layer that chooses.
        width: the key for that of an expert.
        shared: the layer that all tokens meet, and the key for its width; None: there is none.
        shared_gate: that layer has a gate of its own.
        linear_router: it is a linear layer.
        biased: experts and router have biases; matrices of experts are [inputs, outputs].
        sinks: each head has a score that takes attention from all tokens (arXiv:2309.17453).
    """

    style: Style
    name: str = "mlp"
    router: str = "gate"
    width: str = "intermediate_size"
    shared: tuple[str, str] | None = None
    shared_gate: bool = False
    linear_router: bool = False
    biased: bool = False
    sinks: bool = False


SHARED_WIDTH = "shared_width"  # derived: that of so many experts
LATENT = Style()
MIXTURES = {
    "mixtral": Mixture(Style(query_bias=False, output_bias=False)),
    "qwen2_moe": Mixture(
        Style(query_bias="qkv_bias", output_bias=False),
        width="moe_intermediate_size",
        shared=("shared_expert", "shared_expert_intermediate_size"),
        shared_gate=True,
    ),
    "qwen3_moe": Mixture(Style(query_norm="head"), width="moe_intermediate_size"),
    "olmoe": Mixture(Style(query_norm="whole")),
    "gpt_oss": Mixture(Style(), router="router", biased=True, sinks=True),
    "granitemoe": Mixture(Style(), name="block_sparse_moe", router="router"),
    "phimoe": Mixture(Style(norm_bias=True), router="router", linear_router=True),
    "deepseek_v2": Mixture(LATENT, width="moe_intermediate_size", shared=("shared_experts", SHARED_WIDTH)),
    "deepseek_v3": Mixture(LATENT, width="moe_intermediate_size", shared=("shared_experts", SHARED_WIDTH)),
}


def expert_weights(config: Config, mixture: Mixture) -> Weights:
    hidden, width, count = config["hidden_size"], config[mixture.width], config["num_experts"]
    name, router = f"{mixture.name}.experts", f"{mixture.name}.{mixture.router}"
    found = linear(router, count, hidden, False) if mixture.linear_router else bare(f"{router}.weight", count, hidden)
    if mixture.biased:
        found += vector(f"{router}.bias", count)
        found += bare(f"{name}.gate_up_proj", count, hidden, 2 * width, experts=True)
        found += bare(f"{name}.down_proj", count, width, hidden, experts=True)
        biases = (
            *vector(f"{name}.gate_up_proj_bias", count, 2 * width),
            *vector(f"{name}.down_proj_bias", count, hidden),
        )
        return found + tuple(replace(bias, experts=True) for bias in biases)
    found += bare(f"{name}.gate_up_proj", count, 2 * width, hidden, experts=True)
    found += bare(f"{name}.down_proj", count, hidden, width, experts=True)
    if mixture.shared is not None:
        part, key = mixture.shared
        shared = f"{mixture.name}.{part}"
        found += llama_like.feed_forward_weights(config, mixture.style, config[key], shared)
        found += linear(f"{shared}_gate", 1, hidden, False) if mixture.shared_gate else ()
    return found


def latent_weights(config: Config) -> Weights:
    """Attention whose queries, keys and values are made from a few numbers (DeepSeek-V2, arXiv:2405.04434)."""
    hidden, heads, bias = config["hidden_size"], config["num_attention_heads"], bool(config["attention_bias"])
    rank, rotary, plain = config["kv_lora_rank"], config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    queries = heads * (plain + rotary)
    if (few := config["q_lora_rank"]) is None:
        found = linear("self_attn.q_proj", queries, hidden, False)
    else:
        found = linear("self_attn.q_a_proj", few, hidden, bias) + norm("self_attn.q_a_layernorm", few)
        found += linear("self_attn.q_b_proj", queries, few, False)
    found += linear("self_attn.kv_a_proj_with_mqa", rank + rotary, hidden, bias) + norm(
        "self_attn.kv_a_layernorm", rank
    )
    found += linear("self_attn.kv_b_proj", heads * (plain + config["v_head_dim"]), rank, False)
    return found + linear("self_attn.o_proj", hidden, heads * config["v_head_dim"], bias)


def is_dense(config: Config, number: int) -> bool:
    """Whether a layer has no experts."""
    step = config.get("decoder_sparse_step", 1)
    first = number < config.get("first_k_dense_replace", 0)
    return first or number in (config.get("mlp_only_layers") or ()) or (number + 1) % step != 0


def attention(config: Config, style: Style, window: int | None) -> Attention:
    if "kv_lora_rank" not in config:
        return llama_like.attention(config, style, window)
    heads, size = config["num_attention_heads"], config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    return Attention(heads, heads, size, config["v_head_dim"], True, dropout=config["attention_dropout"])


def stacks(config: Config, prefix: str) -> tuple[Stack, ...]:
    mixture = MIXTURES[config["model_type"]]
    style = mixture.style
    latent = "kv_lora_rank" in config
    common = latent_weights(config) if latent else llama_like.attention_weights(config, style)
    common += llama_like.norm_weights(config, style)
    common += vector("self_attn.sinks", config["num_attention_heads"]) if mixture.sinks else ()
    dense = llama_like.feed_forward_weights(config, style, config["intermediate_size"])
    experts = expert_weights(config, mixture)
    keys = [(window, is_dense(config, number)) for number, window in enumerate(windows(config))]
    layers = tuple(
        Layers(
            count=len(numbers),
            path=f"{prefix}.layers",
            weights=common + (dense if plain else experts),
            attention=attention(config, style, window),
            feed_forward=llama_like.dense(config, style) if plain else mixed(config, mixture),
            norms=len(style.norms),
            numbers=numbers,
        )
        for (window, plain), numbers in alike(keys)
    )
    return (Stack("only", config["hidden_size"], layers, llama_like.outside(config, style, prefix)),)


def mixed(config: Config, mixture: Mixture) -> FeedForward:
    return FeedForward(
        config[mixture.width],
        True,
        config["hidden_act"],
        experts=config["num_experts"],
        chosen=config["num_experts_per_tok"],
        shared=config[mixture.shared[1]] if mixture.shared else 0,
        exact_router="kv_lora_rank" in config,
    )


def derived(config: dict[str, Any]) -> dict[str, Any]:
    whole = decoder_config.derived(config)
    return {**whole, SHARED_WIDTH: config.get("n_shared_experts", 0) * config.get("moe_intermediate_size", 0)}


MIXTURE = Family(stacks, "model", LLAMA.heads)
QWEN3_MOE = Family(stacks, "model", LLAMA.heads, {"answers": "transformer"})
