"""Bytes of activations that a training step needs on one rank, in closed form from a model's shapes.

Korthikanti et al. 2022 (arXiv:2205.05198) count per layer, of s tokens, width h and a heads, in 2-byte numbers,
s h (34 + 5 a s / h). Here each operation of transformers' code is counted instead (`layer`, `operations`), because
gates, norms in fp32, shared keys, fused attention, adapters and frozen weights change that number. For a Llama-like
layer in bf16 with fused attention, trained whole, the sum is, per token,

    2 (4 h + 4 h)           two norms: their input in fp32, what the weight multiplies, their result: 4 + 2 + 2
    2 (2 q + 2 k) + 4 a     queries, keys, values and the result of attention; a sum for each head
    2 (4 f)                 gate, its activation, up, their product

Without a trained weight behind it a result is not kept: with adapters (LoRA) norms take 4 + 2, and each adapter adds
2 r. With checkpointing a layer keeps its input, 2 h, and the sum above is alive for one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from distft.plan.architecture import Architecture, Stack, Weight
from distft.plan.layer import COPIED, RMS_NORMS, Kept, Work, kept
from distft.plan.loss import Batch, Computing, last_norm, top
from distft.plan.operations import FP32, Update

INDEX = 8  # bytes of a token's number


@dataclass(frozen=True)
class Moment:
    """Bytes alive at an instant. `backward`: share of layers whose backward pass is over, and whose weights have
    gradients then."""

    name: str
    size: int
    backward: float


@dataclass(frozen=True)
class Activations:
    """What training keeps beside weights, gradients and the optimizer's state.

    Attributes:
        terms: bytes by name, which are not all alive together. "batch", "masks", "positions" (cosines and sines) and
            "embeddings" live as long as the step; "memory", what an encoder has read: until the decoder is through;
            "layers": kept by all of them from
            forward to backward; "one layer": the most that one has alive in its backward pass, what it keeps included;
            "logits and loss": the most above the last layer.
        moments: in the order of a step.
    """

    terms: Mapping[str, int]
    moments: tuple[Moment, ...]

    @property
    def peak(self) -> int:
        return max(moment.size for moment in self.moments)


def activations(model: Architecture, batch: Batch, how: Computing) -> Activations:
    """What a step needs, without weights and their gradients."""
    stacks = Stacks(model, batch, how)
    held = [one for stack in model.stacks for one in stacks.layers(stack)]
    head = top(model, batch, how, stacks.hidden(model.stacks[-1]))
    terms = {
        "batch": batch_bytes(model, batch, how),
        "masks": stacks.masks(),
        "positions": stacks.rotary(),
        "embeddings": stacks.embeddings(),
        "memory": stacks.memory(),
        "layers": sum(one.saved for one in held),
        "one layer": max((one.again for one in held), default=0),
        "logits and loss": max(head.forward, head.backward),
    }
    shared = sum(terms[name] for name in ("batch", "masks", "positions", "embeddings"))
    forward = max((one.forward - one.saved for one in held), default=0)
    moments = (
        *([Moment("forward", shared + terms["memory"] + terms["layers"] + forward, 0.0)] if forward > 0 else []),
        Moment("loss", shared + terms["memory"] + terms["layers"] + terms["logits and loss"], 0.0),
        *_through_layers(shared, held),
        Moment("optimizer", terms["batch"], 1.0),
    )
    return Activations(terms, moments)


def _through_layers(shared: int, held: list[_Held]) -> Iterator[Moment]:
    """The largest of backward passes through layers, and that of the first layer."""
    below, best = sum(one.saved for one in held), Moment("a layer", 0, 0.0)
    for done, one in enumerate(reversed(held)):
        below -= one.saved
        now = Moment("a layer", shared + one.beside + below + one.again, done / len(held))
        best = max(best, now, key=lambda moment: moment.size)
    yield best
    if held:
        yield Moment("first layer", shared + held[0].again, (len(held) - 1) / len(held))


@dataclass(frozen=True)
class _Held:
    """saved: bytes of a layer from forward to backward; again: most alive in its backward, and forward: in its forward
    (see `Kept`), `saved` included in both; beside: what an encoder has read, for a layer that reads it."""

    saved: int
    again: int
    forward: int
    beside: int


def batch_bytes(model: Architecture, batch: Batch, how: Computing) -> int:
    """Token ids and positions, real or not, and for each target a place, a token and an owner. Sound: numbers in fp32,
    and in the model's."""
    rows, width = batch.rows * (batch.tokens + batch.written), how.numbers.width
    filters = _convolutions(model.stacks[0])
    places = batch.rows * batch.tokens * 2 ** (len(filters) - 1) if filters else 0
    heard = places * filters[0].shape[1] * (FP32 + (width if width != FP32 else 0)) if filters else 0
    return rows * (2 * INDEX + 1) + 3 * INDEX * batch.targets + heard


def _convolutions(stack: Stack) -> list[Weight]:
    """Those that make tokens of sound, and not those that tell places from each other."""
    return [one for one in stack.other if one.kind == "convolution" and len(one.shape) == 3 and "pos" not in one.name]


class Stacks:
    """Sizes of what stacks and their layers keep."""

    def __init__(self, model: Architecture, batch: Batch, how: Computing) -> None:
        self._model, self._batch, self._how = model, batch, how

    def _tokens(self, stack: Stack) -> int:
        return self._batch.written if stack.role == "decoder" else self._batch.tokens

    def values(self, stack: Stack) -> int:
        """Bytes of a stack's hidden state."""
        return self._batch.rows * self._tokens(stack) * stack.hidden * self._how.numbers.width

    def _begins(self, stack: Stack) -> bool:
        """Whether a gradient flows to a stack's first layer; PEFT asks for it where layers are computed again."""
        first = ("embedding", "convolution")
        below = [one for one in (*stack.other, *self._model.head) if one.kind in first]
        other = any(self._how.update(one.name, one).whole for one in below)
        adapted = any(self._how.update(one.name, one).rank for s in self._model.stacks for one in _full_names(s))
        return other or (self._how.checkpointing and adapted)

    def layers(self, stack: Stack) -> list[_Held]:
        """Of each layer, in order. Most are alike, and learn alike."""
        learns, size, found = self._begins(stack), self.values(stack), []
        beside = self.memory() if stack.role == "decoder" else 0
        for layers in stack.layers:
            known: dict[tuple[bool, tuple[Update, ...]], Kept] = {}
            for number in range(layers.count):
                updates = tuple(self._how.update(f"{layers.path}.{number}.{one.name}", one) for one in layers.weights)
                if (learns, updates) not in known:
                    by_name = dict(zip((one.name for one in layers.weights), updates, strict=True))
                    known[learns, updates] = kept(layers, by_name, self.work(stack, learns))
                one = known[learns, updates]
                found.append(self._held(one, size, beside))
                learns = one.learns
        return found

    def _held(self, one: Kept, size: int, beside: int) -> _Held:
        if not self._how.checkpointing:
            return _Held(one.own, one.backward, one.lent, beside)
        forward = size + one.inner_lent
        return _Held(size, max(size + one.inner_backward, forward), forward, beside)

    def work(self, stack: Stack, learns: bool) -> Work:
        batch, how = self._batch, self._how
        return Work(
            batch.rows,
            self._tokens(stack),
            batch.tokens if stack.role == "decoder" else 0,
            stack.hidden,
            how.numbers,
            how.attention,
            mask=batch.mask,
            mask_over_encoder=batch.mask,
            rotary=_turns(stack),
            norm=RMS_NORMS.get(self._model.model_type, "narrow"),
            copied=self._model.model_type in COPIED,
            learns=learns,
            memory_learns=stack.role == "decoder",
        )

    def embeddings(self) -> int:
        return sum(self._embedding(stack) for stack in self._model.stacks)

    def memory(self) -> int:
        """The norm and the result of an encoder, which all layers of the decoder read."""
        return sum(self._read(stack) for stack in self._model.stacks if stack.role == "encoder")

    def _embedding(self, stack: Stack) -> int:
        """A norm's input, a mask of dropout, and what convolutions over sound are given and make."""
        if not self._begins(stack):
            return 0
        size = self.values(stack)
        normed = any(one.kind == "vector" and "embed" in one.name and "norm" in one.name.lower() for one in stack.other)
        return (size if normed else 0) + self._dropped(stack) + self._heard(stack)

    def _heard(self, stack: Stack) -> int:
        """Each convolution behind the first halves the number of places."""
        width, found = self._how.numbers.width, 0
        filters = _convolutions(stack)
        for number, one in enumerate(filters):
            places = self._batch.rows * self._batch.tokens * 2 ** (len(filters) - 1 - number)
            found += places * (2 * one.shape[0] if number < len(filters) - 1 else one.shape[0]) * width
        return found

    def _read(self, stack: Stack) -> int:
        """Its norm keeps its input (in fp32 if it has no bias) and what its weight is multiplied with."""
        size, width = self.values(stack), self._how.numbers.width
        norm = last_norm(stack)
        if norm is None or not self._begins(stack):
            return size
        bias = any(one.name == norm.name.removesuffix("weight") + "bias" for one in stack.other)
        learns = self._how.update(norm.name, norm).whole
        inner = size if bias else size // width * FP32 + (size if learns else 0)
        return inner + size + (self._dropped(stack) if not bias else 0)

    def _dropped(self, stack: Stack) -> int:
        size, share = self.values(stack), max((layers.dropout for layers in stack.layers), default=0.0)
        mask = size if self._how.numbers.device == "cpu" else size // self._how.numbers.width
        return mask if share else 0

    def rotary(self) -> int:
        """Cosines and sines of all positions, shared by layers."""
        heads = [(s, layers.attention.size) for s in self._model.stacks for layers in s.layers[:1] if layers.attention]
        width = self._how.numbers.width
        return sum(2 * self._batch.rows * self._tokens(s) * size * width for s, size in heads if _turns(s))

    def masks(self) -> int:
        """One for each kind of layers, [rows, 1, tokens, tokens]: of bytes, for eager attention of numbers."""
        how, found = self._how, 0
        if how.attention == "flash_attention_2":
            return 0
        size = 1 if how.attention == "sdpa" else how.numbers.width
        for stack in self._model.stacks:
            tokens = self._tokens(stack)
            biased = [one.attention for one in stack.layers if one.attention and one.attention.bias]
            windows = {layers.attention.window for layers in stack.layers if layers.attention}
            found += sum(
                how.numbers.width * one.heads * tokens * (tokens + (self._batch.tokens if one.over_encoder else 0))
                for one in biased[:1]
            )
            for window in windows:
                needed = (
                    self._batch.mask
                    or (how.attention == "eager" and _causal(stack))
                    or (window is not None and window < tokens)
                )
                found += size * self._batch.rows * tokens * tokens if needed else 0
        return found

    def hidden(self, stack: Stack) -> int:
        """Numbers of a stack's result."""
        return self._batch.rows * self._tokens(stack) * stack.hidden


def _causal(stack: Stack) -> bool:
    return any(layers.attention is not None and layers.attention.causal for layers in stack.layers)


def _turns(stack: Stack) -> bool:
    """Whether positions turn queries and keys: nothing else in the stack says where a token is."""
    first = next((layers.attention for layers in stack.layers if layers.attention), None)
    positions = ("position", "wpe", "relative", "pos_conv")
    named = any(word in one.name for one in stack.other for word in positions)
    return first is not None and not named and not first.bias


def _full_names(stack: Stack) -> Iterator[Weight]:
    for layers in stack.layers:
        for one in layers.weights:
            yield replace(one, name=f"{layers.path}.0.{one.name}")
