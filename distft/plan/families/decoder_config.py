"""What follows from the sizes of a decoder: heads of keys, the size of a head, and which layers have a window."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

ALIASES = {
    "hidden_activation": "hidden_act",
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
    "sliding_window_pattern": "pattern",
    "_sliding_window_pattern": "pattern",
    "add_qkv_bias": "qkv_bias",
}


def derived(config: Config) -> Config:
    """The configuration of a decoder with what follows from it."""
    heads = config["num_attention_heads"]
    return {
        **config,
        "num_key_value_heads": config["num_key_value_heads"] or heads,
        "head_dim": config["head_dim"] or config["hidden_size"] // heads,
        "layer_types": layer_types(config),
    }


def layer_types(config: Config) -> list[str]:
    """ "sliding_attention" or "full_attention" for each layer."""
    count = config["num_hidden_layers"]
    if (said := config.get("layer_types")) is not None:
        return list(said)
    if not config.get("use_sliding_window", True) or not config.get("sliding_window"):
        sliding = [False] * count
    elif (pattern := config.get("pattern")) is not None:  # each so many-th layer sees all
        sliding = [(number + 1) % pattern != 0 for number in range(count)]
    else:
        sliding = [number >= config.get("max_window_layers", 0) for number in range(count)]
    return ["sliding_attention" if one else "full_attention" for one in sliding]
