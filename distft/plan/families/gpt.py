"""Decoders that came before Llama: GPT-2, GPT-NeoX, OPT, BLOOM, Falcon."""

from __future__ import annotations

from typing import Any

from distft.plan.architecture import Attention, FeedForward, Layers, Stack
from distft.plan.families.family import Config, Family, classifier
from distft.plan.weights import Weights, embedding, linear, norm


def one_stack(
    config: Config,
    path: str,
    layer: Weights,
    other: Weights,
    heads: Attention,
    width: int,
    norms: int = 2,
    parallel: bool = False,
) -> tuple[Stack, ...]:
    """A decoder of layers that are all alike."""
    layers = Layers(
        count=config["num_hidden_layers"],
        path=path,
        weights=layer,
        attention=heads,
        feed_forward=FeedForward(width, False, config["hidden_act"]),
        norms=norms,
        dropout=config["hidden_dropout"],
        parallel=parallel,
    )
    return (Stack("only", config["hidden_size"], (layers,), other),)


def attention(config: Config, keys: int | None = None, bias: bool = False) -> Attention:
    heads = config["num_attention_heads"]
    size = config["hidden_size"] // heads
    return Attention(heads, keys or heads, size, size, True, bias=bias, dropout=config["attention_dropout"])


def gpt2(config: Config, prefix: str) -> tuple[Stack, ...]:
    hidden, width = config["hidden_size"], config["n_inner"] or 4 * config["hidden_size"]
    layer = (
        norm("ln_1", hidden, True)
        + linear("attn.c_attn", 3 * hidden, hidden, layout="transposed")
        + linear("attn.c_proj", hidden, hidden, layout="transposed")
        + norm("ln_2", hidden, True)
        + linear("mlp.c_fc", width, hidden, layout="transposed")
        + linear("mlp.c_proj", hidden, width, layout="transposed")
    )
    other = (
        embedding(f"{prefix}.wte", config["vocab_size"], hidden)
        + embedding(f"{prefix}.wpe", config["max_position_embeddings"], hidden)
        + norm(f"{prefix}.ln_f", hidden, True)
    )
    return one_stack(config, f"{prefix}.h", layer, other, attention(config), width)


def neox(config: Config, prefix: str) -> tuple[Stack, ...]:
    hidden, width, bias = config["hidden_size"], config["intermediate_size"], config["attention_bias"]
    layer = (
        norm("input_layernorm", hidden, True)
        + norm("post_attention_layernorm", hidden, True)
        + linear("attention.query_key_value", 3 * hidden, hidden, bias)
        + linear("attention.dense", hidden, hidden, bias)
        + linear("mlp.dense_h_to_4h", width, hidden)
        + linear("mlp.dense_4h_to_h", hidden, width)
    )
    other = embedding(f"{prefix}.embed_in", config["vocab_size"], hidden) + norm(
        f"{prefix}.final_layer_norm", hidden, True
    )
    beside = config["use_parallel_residual"]
    return one_stack(config, f"{prefix}.layers", layer, other, attention(config), width, parallel=beside)


def bloom(config: Config, prefix: str) -> tuple[Stack, ...]:
    hidden = config["hidden_size"]
    layer = (
        norm("input_layernorm", hidden, True)
        + linear("self_attention.query_key_value", 3 * hidden, hidden)
        + linear("self_attention.dense", hidden, hidden)
        + norm("post_attention_layernorm", hidden, True)
        + linear("mlp.dense_h_to_4h", 4 * hidden, hidden)
        + linear("mlp.dense_4h_to_h", hidden, 4 * hidden)
    )
    other = (
        embedding(f"{prefix}.word_embeddings", config["vocab_size"], hidden)
        + norm(f"{prefix}.word_embeddings_layernorm", hidden, True)
        + norm(f"{prefix}.ln_f", hidden, True)
    )
    return one_stack(config, f"{prefix}.h", layer, other, attention(config, bias=True), 4 * hidden)


def falcon(config: Config, prefix: str) -> tuple[Stack, ...]:
    hidden, heads, bias = config["hidden_size"], config["num_attention_heads"], config["bias"]
    width, size = config["ffn_hidden_size"], hidden // heads
    keys = heads if not config["multi_query"] else 1
    keys = config["num_kv_heads"] if config["new_decoder_architecture"] else keys
    names = falcon_norms(config)
    layer = (
        linear("self_attention.query_key_value", hidden + 2 * keys * size, hidden, bias)
        + linear("self_attention.dense", hidden, hidden, bias)
        + linear("mlp.dense_h_to_4h", width, hidden, bias)
        + linear("mlp.dense_4h_to_h", hidden, width, bias)
        + tuple(weight for name in names for weight in norm(name, hidden, True))
    )
    other = embedding(f"{prefix}.word_embeddings", config["vocab_size"], hidden) + norm(f"{prefix}.ln_f", hidden, True)
    beside = config["parallel_attn"] or config["new_decoder_architecture"]
    heads_ = attention(config, keys, config["alibi"])
    return one_stack(config, f"{prefix}.h", layer, other, heads_, width, len(names), beside)


def falcon_norms(config: Config) -> tuple[str, ...]:
    if config["new_decoder_architecture"] and config.get("num_ln_in_parallel_attn") in (None, 2):
        return "ln_attn", "ln_mlp"
    return ("input_layernorm",) if config["parallel_attn"] else ("input_layernorm", "post_attention_layernorm")


def opt(config: Config, prefix: str) -> tuple[Stack, ...]:
    hidden, width, bias, inner = config["hidden_size"], config["ffn_dim"], config["enable_bias"], f"{prefix}.decoder"
    scaled = config["layer_norm_elementwise_affine"]
    layer = (
        tuple(w for name in "kvq" for w in linear(f"self_attn.{name}_proj", hidden, hidden, bias))
        + linear("self_attn.out_proj", hidden, hidden, bias)
        + (norm("self_attn_layer_norm", hidden, True) if scaled else ())
        + linear("fc1", width, hidden, bias)
        + linear("fc2", hidden, width, bias)
        + (norm("final_layer_norm", hidden, True) if scaled else ())
    )
    narrow = config["word_embed_proj_dim"]
    other = embedding(f"{inner}.embed_tokens", config["vocab_size"], narrow)
    other += embedding(f"{inner}.embed_positions", config["max_position_embeddings"] + 2, hidden)
    if narrow != hidden:
        other += linear(f"{inner}.project_out", narrow, hidden, False)
        other += linear(f"{inner}.project_in", hidden, narrow, False)
    if scaled and config["do_layer_norm_before"] and not config["_remove_final_layer_norm"]:
        other += norm(f"{inner}.final_layer_norm", hidden, True)
    return one_stack(config, f"{inner}.layers", layer, other, attention(config), width)


def untied(width: str = "hidden_size") -> Any:
    """A head for the vocabulary unless it is the embedding."""

    def head(config: Config, labels: int) -> Weights:
        tied = config["tie_word_embeddings"]
        return () if tied else linear("lm_head", config["vocab_size"], config[width], False)

    return head


HEADS: Any = {
    "causal": untied(),
    "sequence": classifier("score", bias=False),
    "tokens": classifier("classifier"),
    "answers": classifier("qa_outputs"),
}
OPT_HEADS: Any = {
    "causal": untied("word_embed_proj_dim"),
    "sequence": classifier("score", "word_embed_proj_dim", bias=False),
    "answers": classifier("qa_outputs", "word_embed_proj_dim"),
}
GPT2 = Family(gpt2, "transformer", HEADS)
NEOX = Family(neox, "gpt_neox", HEADS)
BLOOM = Family(bloom, "transformer", HEADS)
FALCON = Family(falcon, "transformer", HEADS)
OPT = Family(opt, "model", OPT_HEADS)

BASE: dict[str, Any] = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
}
GPT2_ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "resid_pdrop": "hidden_dropout",
    "attn_pdrop": "attention_dropout",
    "activation_function": "hidden_act",
}
BLOOM_ALIASES = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embed": "hidden_size"}
OPT_ALIASES = {"dropout": "hidden_dropout", "activation_function": "hidden_act"}
FALCON_ALIASES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_head_kv": "num_kv_heads",
    "activation": "hidden_act",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": BASE
    | {
        "vocab_size": 50257,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "n_inner": None,
        "max_position_embeddings": 1024,
        "hidden_act": "gelu_new",
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
    },
    "gpt_neox": BASE
    | {
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "use_parallel_residual": True,
    },
    "bloom": BASE
    | {
        "vocab_size": 250880,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "max_position_embeddings": None,
    },
    "falcon": BASE
    | {
        "vocab_size": 65024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "num_kv_heads": None,
        "ffn_hidden_size": None,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "num_ln_in_parallel_attn": None,
        "alibi": False,
        "bias": False,
    },
    "opt": BASE
    | {
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "ffn_dim": 3072,
        "word_embed_proj_dim": None,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "hidden_dropout": 0.1,
        "hidden_act": "relu",
    },
}


def opt_derived(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "word_embed_proj_dim": config["word_embed_proj_dim"] or config["hidden_size"]}


def falcon_derived(config: dict[str, Any]) -> dict[str, Any]:
    width = config["ffn_hidden_size"] or 4 * config["hidden_size"]
    return {**config, "ffn_hidden_size": width, "num_kv_heads": config["num_kv_heads"] or config["num_attention_heads"]}
