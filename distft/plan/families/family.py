"""What a family of architectures says of itself, and what tasks can ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distft.plan.architecture import Stack
from distft.plan.weights import Weights, linear

Config = Mapping[str, Any]  # a model's configuration as transformers names its keys, defaults filled in
Goal = Literal["causal", "masked", "sequence", "tokens", "answers", "seq2seq", "ctc", "speech"]
MakeStacks = Callable[[Config, str], tuple[Stack, ...]]
MakeHead = Callable[[Config, int], Weights]


@dataclass(frozen=True)
class Family:
    """Architectures that are built alike.

    Attributes:
        stacks: from the configuration and the prefix of all names.
        prefix: what transformers calls the transformer proper within a model with a head.
        heads: for each goal that transformers has a class for; from the configuration and the number of labels.
        prefixes: where a goal has another one.
        outputs: the layer that makes logits over tokens, for the goals that have one.
    """

    stacks: MakeStacks
    prefix: str
    heads: Mapping[Goal, MakeHead]
    prefixes: Mapping[Goal, str] = field(default_factory=dict)
    outputs: Mapping[Goal, str] = field(default_factory=lambda: {"causal": "lm_head", "seq2seq": "lm_head"})


def classifier(name: str, width: str = "hidden_size", bias: bool = True) -> MakeHead:
    """A linear layer from the width, a key of the configuration, to the labels."""
    return lambda config, labels: linear(name, labels, config[width], bias)


def language_head(config: Config, labels: int) -> Weights:
    """What makes logits of a decoder's states, unless that is the embedding."""
    tied = config["tie_word_embeddings"]
    return () if tied else linear("lm_head", config["vocab_size"], config["hidden_size"], False)


def alike(keys: Sequence[Any]) -> Iterable[tuple[Any, tuple[int, ...]]]:
    """Layers by what tells them apart: each key with the numbers of its layers."""
    found: dict[Any, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key, []).append(number)
    return [(key, tuple(numbers)) for key, numbers in found.items()]


def windows(config: Config) -> list[int | None]:
    """The sliding window of each layer, None where it sees all."""
    count, size = config["num_hidden_layers"], config.get("sliding_window")
    types = config.get("layer_types")
    if types is None:
        return [size or None] * count
    return [size or None if kind == "sliding_attention" else None for kind in types[:count]]
