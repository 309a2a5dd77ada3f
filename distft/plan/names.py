"""Which of a layer's weights are which, by the names of their modules."""

from __future__ import annotations

from collections.abc import Sequence

from distft.plan.architecture import Weight

QUERIES = {"q_proj", "query", "q", "q_lin", "q_attn", "query_proj"}
KEYS = {"k_proj", "key", "k", "k_lin", "key_proj"}
VALUES = {"v_proj", "value", "v", "v_lin", "value_proj"}
LATENT = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"}
JOINT = {"qkv_proj", "c_attn", "query_key_value", "Wqkv", "qkv", "W_pack"}
OVER_ENCODER = {"EncDecAttention", "encoder_attn", "crossattention", "cross_attn"}


def is_norm(weight: Weight) -> bool:
    owner = weight.name.split(".")[-2] if "." in weight.name else weight.name
    return (
        weight.kind == "vector"
        and ("norm" in owner.lower() or owner.startswith("ln_"))
        and not owner.endswith(("q_norm", "k_norm", "_a_layernorm"))
    )


def leaf(weight: Weight) -> str:
    return weight.name.removesuffix(".weight").split(".")[-1]


def named(weights: Sequence[Weight], names: set[str]) -> Weight | None:
    return next((one for one in weights if leaf(one) in names), None)


def split_at_attention(weights: Sequence[Weight]) -> tuple[Sequence[Weight], Sequence[Weight]]:
    """Matrices of attention, which come first and end with the one behind it, and the others."""
    known = QUERIES | KEYS | VALUES | JOINT | LATENT
    last = max((place for place, one in enumerate(weights) if leaf(one) in known), default=-1)
    return (weights[: last + 2], weights[last + 2 :]) if last >= 0 else ((), weights)


def behind(weights: Sequence[Weight]) -> Weight | None:
    return weights[-1] if weights else None
