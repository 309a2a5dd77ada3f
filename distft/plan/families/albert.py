"""ALBERT: an encoder whose layers all use the same weights (arXiv:1909.11942)."""

from __future__ import annotations

from distft.plan.architecture import FeedForward, Layers, Stack
from distft.plan.families.bert_like import attention, embeddings, heads, pooled, squares, transform
from distft.plan.families.family import Config, Family
from distft.plan.weights import Weights, joined, linear, norm


def layer(config: Config) -> Weights:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    return (
        norm("full_layer_layer_norm", hidden, True)
        + squares(config, tuple(f"attention.{name}" for name in ("query", "key", "value", "dense")))
        + norm("attention.LayerNorm", hidden, True)
        + linear("ffn", width, hidden)
        + linear("ffn_output", hidden, width)
    )


def stacks(config: Config, prefix: str) -> tuple[Stack, ...]:
    """Layers come in groups; each group has inner layers of its own and is run several times."""
    groups, inner = config["num_hidden_groups"], config["inner_group_num"]
    weights = layer(config)
    layers = tuple(
        Layers(
            count=config["num_hidden_layers"] * (group + 1) // groups - config["num_hidden_layers"] * group // groups,
            path=f"{prefix}.encoder.albert_layer_groups.{group}.albert_layers",
            weights=weights,
            attention=attention(config),
            feed_forward=FeedForward(config["intermediate_size"], False, config["hidden_act"]),
            norms=2,
            dropout=config["hidden_dropout_prob"],
            numbers=(number,),
            shared=True,
        )
        for group in range(groups)
        for number in range(inner)
    )
    narrow = linear("encoder.embedding_hidden_mapping_in", config["hidden_size"], config["embedding_size"])
    return (Stack("only", config["hidden_size"], layers, joined(prefix, embeddings(config) + narrow)),)


MASKED = transform("predictions.dense", "predictions.LayerNorm", "predictions.bias", "embedding_size")
ALBERT = Family(stacks, "albert", heads(MASKED, pooled("albert.pooler")), outputs={"masked": "predictions.decoder"})
