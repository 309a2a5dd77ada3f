"""What a model is made of, as its configuration says: stacks of layers, and the shape of every weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

Kind = Literal["matrix", "vector", "embedding", "convolution"]
Layout = Literal["linear", "transposed", "bare"]


@dataclass(frozen=True)
class Weight:
    """A parameter, by the name that transformers gives it within its layer or model ("self_attn.q_proj.weight").

    Attributes:
        shape: as torch has it; of experts in one tensor all of them.
        kind: vector: a bias, a norm's scale, or the like; embedding: rows are looked up; matrix: anything that tokens
            are multiplied with.
        experts: of a mixture of experts: it belongs to them, and a token meets some of them.
        layout: of a matrix. linear: [outputs, inputs] of a linear layer; transposed: [inputs, outputs] of one, as GPT-2
            has it; bare: no layer of its own, so that adapters pass it over (experts in one tensor, most routers).
        frozen: full fine-tuning leaves it as it is: a table of sines.
        stride: of a convolution.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind = "matrix"
    experts: bool = False
    layout: Layout = "linear"
    frozen: bool = False
    stride: int = 1

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Attention:
    """Self-attention of a layer, and with `over_encoder` the same again over what an encoder has read.

    Attributes:
        heads, keys: number of heads of queries, and of keys and values.
        size, value_size: of a head.
        window: tokens that a token sees on each side; None: all.
        soft_cap: scores are capped, which rules fused kernels out.
        bias: scores get a bias for relative positions (T5, DeBERTa).
        dropout: probability that a score is dropped.
    """

    heads: int
    keys: int
    size: int
    value_size: int
    causal: bool
    window: int | None = None
    over_encoder: bool = False
    soft_cap: bool = False
    bias: bool = False
    dropout: float = 0.0


@dataclass(frozen=True)
class FeedForward:
    """Attributes: width: of its hidden layer (of one expert); gated: gate, up and down, else up and down; experts: how
    many there are, 0: it is dense; chosen: how many of them a token meets; shared: width of what all tokens meet beside
    them; exact_router: they are chosen in fp32; dropout: between its matrices."""

    width: int
    gated: bool
    activation: str
    experts: int = 0
    chosen: int = 0
    shared: int = 0
    exact_router: bool = False
    dropout: float = 0.0


@dataclass(frozen=True)
class Layers:
    """Layers that are alike.

    Attributes:
        count: how many a token passes through.
        path: their names up to the number, "model.layers".
        weights: of one of them.
        norms: how many a token meets in one of them.
        dropout: probability that a value is dropped before it is added to the residual stream.
        numbers: theirs among the layers of the stack; empty: from 0 on.
        shared: all of them use the weights of the first (ALBERT).
        parallel: attention and the feed-forward layer have one input, and not one the other's result.
    """

    count: int
    path: str
    weights: tuple[Weight, ...]
    attention: Attention | None
    feed_forward: FeedForward
    norms: int
    dropout: float = 0.0
    numbers: tuple[int, ...] = ()
    shared: bool = False
    parallel: bool = False

    @property
    def copies(self) -> int:
        """How many layers have weights of their own."""
        return 1 if self.shared else self.count

    def named(self) -> Iterator[Weight]:
        """The weights of all layers, by their full names."""
        for number in (self.numbers or range(self.count))[: self.copies]:
            yield from (replace(weight, name=f"{self.path}.{number}.{weight.name}") for weight in self.weights)


@dataclass(frozen=True)
class Stack:
    """One transformer of a model.

    Attributes:
        other: weights outside its layers, by their full names.
        first_norm: one before the layers whose name does not say so.
        extracts: it begins with layers over samples, through which gradients flow whatever is trained, and which are
            computed again as others are (wav2vec2).
    """

    role: Literal["only", "encoder", "decoder"]
    hidden: int
    layers: tuple[Layers, ...]
    other: tuple[Weight, ...]
    first_norm: str = ""
    extracts: bool = False

    @property
    def depth(self) -> int:
        return sum(layers.count for layers in self.layers)


@dataclass(frozen=True)
class Architecture:
    """A model as the recipe's task loads it.

    Attributes:
        model_type: as transformers calls it.
        head: weights behind the stacks, by their full names; empty if the head is the embedding itself.
        vocabulary: width of the logits; labels for a classifier.
        tied: the head is the embedding.
        positions: tokens that it takes; None: it knows no limit.
        exact: False where it was made up for an unknown architecture.
        outputs: names of the layers that make logits over tokens; of tied ones the matrix is not among the weights.
    """

    model_type: str
    stacks: tuple[Stack, ...]
    head: tuple[Weight, ...]
    vocabulary: int
    tied: bool
    positions: int | None = None
    exact: bool = True
    outputs: tuple[str, ...] = ()

    def weights(self) -> Iterator[tuple[Weight, int]]:
        """Every weight with how often there is one like it."""
        for stack in self.stacks:
            for layers in stack.layers:
                yield from ((weight, layers.copies) for weight in layers.weights)
            yield from ((weight, 1) for weight in stack.other)
        yield from ((weight, 1) for weight in self.head)

    def named(self) -> Iterator[Weight]:
        """Every weight by its full name, in no order; one that is used in several places once."""
        for stack in self.stacks:
            for layers in stack.layers:
                yield from layers.named()
            yield from stack.other
        yield from self.head

    @property
    def parameters(self) -> int:
        return sum(weight.size * count for weight, count in self.weights())
