"""Small random models of every architecture that transformers knows for a task: does `model.attention: auto` choose
what the model really takes, do packed rows keep documents apart, and which routers are found?

    python -m benchmarks.architectures AutoModelForCausalLM [NAME ...]

One line per architecture, as JSON, and a summary. Architectures that cannot be made small by the usual sizes are told
as `skipped`. Takes a minute on one core; run it after an upgrade of transformers.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from distft.model import attention
from distft.tasks.causal_lm import Causal
from distft.tasks.shared.routers import find_routers, routers_of

FAILURES = (
    StrictDataclassError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    RuntimeError,
    ImportError,
)
"""What architectures do with sizes that are not their own."""
LARGEST = 20_000_000  # parameters
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_heads", "n_head"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "num_experts_per_tok", "index_n_heads"), 2),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim"), 32),
    **dict.fromkeys(("head_dim", "global_head_dim", "d_kv", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_chunk_size"), 8),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 300),
    "sliding_window": 16,
    "rotary_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def small(architecture: str) -> Any:
    known = AutoConfig.for_model(architecture)
    sizes = {key: value for key, value in SIZES.items() if key in known.__dict__ or key in known.attribute_map}
    return AutoConfig.for_model(architecture, **sizes)


def takes(auto: Any, architecture: str, wanted: str) -> bool:
    """Whether transformers builds the model with this implementation of attention."""
    try:
        auto.from_config(small(architecture), attn_implementation=wanted)
    except ValueError:
        return False
    return True


def look(architecture: str, name: str) -> dict[str, Any]:
    auto = getattr(transformers, name)
    with TemporaryDirectory() as folder, torch.device("meta"):
        small(architecture).save_pretrained(folder)
        _, supported = attention.support(Path(folder), False, name)
        empty = auto.from_config(small(architecture), attn_implementation="eager")
        found = {"supported": supported, "right": ("sdpa" in supported) == takes(auto, architecture, "sdpa")}
    if sum(parameter.numel() for parameter in empty.parameters()) > LARGEST:
        raise ValueError("too large")
    if name != "AutoModelForCausalLM":
        return found
    torch.manual_seed(0)
    chosen = "sdpa" if "sdpa" in supported else "eager"
    model = auto.from_config(small(architecture), attn_implementation=chosen).eval()
    mixes = Causal(model.forward, False).documents_leak(model, 300, torch.device("cpu"))
    balanced = find_routers(model, None) is not None
    return {**found, "mixes documents": mixes, "routers": len(routers_of(model)), "balanced": balanced}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("auto_class")
    parser.add_argument("architecture", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    mapping = getattr(transformers, options.auto_class)._model_mapping
    counts: Counter[str] = Counter()
    for architecture in options.architecture or sorted({config.model_type for config in mapping}):
        found: dict[str, Any]
        try:
            found = look(architecture, options.auto_class)
            counts.update([f"auto: {found['supported'][1:] or ['eager']}", f"right: {found['right']}"])
            counts.update(key for key in ("mixes documents", "balanced") if found.get(key))
        except FAILURES as error:
            found = {"skipped": " ".join(f"{type(error).__name__}: {error}".split())[:120]}
            counts["skipped"] += 1
        print(json.dumps({"architecture": architecture, **found}), flush=True)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
