"""ModernBERT: an encoder with rotary positions, gates, and windows in most layers (arXiv:2412.13663)."""

from __future__ import annotations

from typing import Any

from distft.plan.architecture import FeedForward, Layers, Stack
from distft.plan.families.bert_like import attention
from distft.plan.families.family import Config, Family, MakeHead, alike, windows
from distft.plan.weights import Weights, embedding, linear, norm, vector


def layer(config: Config, first: bool) -> Weights:
    """The first has no norm before attention: the embeddings have one."""
    hidden, width, bias = config["hidden_size"], config["intermediate_size"], config["norm_bias"]
    return (
        (() if first else norm("attn_norm", hidden, bias))
        + linear("attn.Wqkv", 3 * hidden, hidden, config["attention_bias"])
        + linear("attn.Wo", hidden, hidden, config["attention_bias"])
        + norm("mlp_norm", hidden, bias)
        + linear("mlp.Wi", 2 * width, hidden, config["mlp_bias"])
        + linear("mlp.Wo", hidden, width, config["mlp_bias"])
    )


def stacks(config: Config, prefix: str) -> tuple[Stack, ...]:
    hidden, keys = config["hidden_size"], [(window, number == 0) for number, window in enumerate(windows(config))]
    layers = tuple(
        Layers(
            count=len(numbers),
            path=f"{prefix}.layers",
            weights=layer(config, first),
            attention=attention(config, window),
            feed_forward=FeedForward(config["intermediate_size"], True, config["hidden_act"]),
            norms=1 if first else 2,
            dropout=config["hidden_dropout_prob"],
            numbers=numbers,
        )
        for (window, first), numbers in alike(keys)
    )
    other = (
        embedding(f"{prefix}.embeddings.tok_embeddings", config["vocab_size"], hidden)
        + norm(f"{prefix}.embeddings.norm", hidden, config["norm_bias"])
        + norm(f"{prefix}.final_norm", hidden, config["norm_bias"])
    )
    return (Stack("only", hidden, layers, other),)


def prediction(config: Config) -> Weights:
    hidden = config["hidden_size"]
    return linear("head.dense", hidden, hidden, config["classifier_bias"]) + norm(
        "head.norm", hidden, config["norm_bias"]
    )


def masked(config: Config, labels: int) -> Weights:
    found = prediction(config) + (vector("decoder.bias", config["vocab_size"]) if config["decoder_bias"] else ())
    if config["tie_word_embeddings"]:
        return found
    return found + linear("decoder", config["vocab_size"], config["hidden_size"], False)


def labelled(config: Config, labels: int) -> Weights:
    return prediction(config) + linear("classifier", labels, config["hidden_size"])


def derived(config: dict[str, Any]) -> dict[str, Any]:
    """With the window on each side, and the layers that have it: all but every third."""
    step = config["global_attn_every_n_layers"]
    types = [
        "sliding_attention" if number % step else "full_attention" for number in range(config["num_hidden_layers"])
    ]
    return {
        **config,
        "sliding_window": config["local_attention"] // 2,
        "layer_types": config.get("layer_types") or types,
    }


HEADS: dict[Any, MakeHead] = {"masked": masked, "sequence": labelled, "tokens": labelled, "answers": labelled}
MODERNBERT = Family(stacks, "model", HEADS, outputs={"masked": "decoder"})
