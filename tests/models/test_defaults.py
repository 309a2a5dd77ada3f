"""What configurations leave out is what transformers' classes fill in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from transformers import AutoConfig

from distft.plan.families.catalogue import CATALOGUE
from distft.plan.families.family import windows

OURS = {"model_type", "pattern", "layer_types", "shared_width", "sliding_window", "global_attn_every_n_layers"}
READ_BY_CODE = {  # classes do not list them; that they are right is seen by weights, in test_shapes
    "position_buckets",
    "norm_rel_ebd",
    "share_att_key",
    "conv_kernel_size",
    "conv_groups",
    "position_biased_input",
    "use_sliding_window",
    "max_window_layers",
    "attention_bias",
    "mlp_bias",
    "hidden_dropout",
    "attention_dropout",
    "share_encoder_decoder_embeddings",
    "feat_proj_layer_norm",
    "global_head_dim",
    "type_vocab_size",
    "hidden_act",
}
FOLLOWING = ("num_key_value_heads", "head_dim")  # some classes leave them open until a model is made


def said(config: Any, key: str, aliases: Mapping[str, str]) -> Any:
    """What transformers' configuration says of one of our keys, by any of its names; ... if nothing."""
    names = [key, *(name for name, ours in aliases.items() if ours == key)]
    found = next((getattr(config, name) for name in names if getattr(config, name, None) is not None), ...)
    return list(found) if isinstance(found, tuple) else found


@pytest.mark.parametrize("model_type", CATALOGUE)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    entry, config = CATALOGUE[model_type], AutoConfig.for_model(model_type)
    ours = entry.completed({"model_type": model_type})
    unlike = {"head_dim"} if {"kv_lora_rank", "global_head_dim"} & ours.keys() else set()  # another size there, or two
    theirs = {key: said(config, key, entry.aliases) for key in ours.keys() - OURS - unlike}
    assert {key: ours[key] for key, value in theirs.items() if value is not ...} == {
        key: value for key, value in theirs.items() if value is not ...
    }
    open_there = [key for key, value in theirs.items() if value is ... and ours[key] is not None]
    assert set(open_there) <= {*FOLLOWING, *READ_BY_CODE}


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {}),
    ("mixtral", {"sliding_window": 8}),
    ("phi3", {"sliding_window": 8}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 5}),
    ("qwen3", {"use_sliding_window": True, "max_window_layers": 3}),
    ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 8}),
    ("gemma2", {}),
    ("gemma3_text", {}),
    ("cohere2", {}),
    ("olmo3", {}),
    ("exaone4", {}),
    ("gpt_oss", {}),
    ("modernbert", {"global_attn_every_n_layers": 4, "num_hidden_layers": 6}),
    ("gemma2", {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}),
]


@pytest.mark.parametrize(("model_type", "given"), WINDOWS)
def test_layers_have_the_windows_that_transformers_gives_them(model_type: str, given: dict[str, Any]) -> None:
    config = AutoConfig.for_model(model_type, **given)
    window = config.sliding_window or None
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    theirs = [window if one == "sliding_attention" else None for one in types]
    assert windows(CATALOGUE[model_type].completed({"model_type": model_type, **given})) == theirs
