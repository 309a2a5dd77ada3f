"""Bytes of activations that a training step needs on one rank, in closed form from a model's shapes.

Korthikanti et al. 2022 (arXiv:2205.05198) count per layer, of s tokens, width h and a heads, in 2-byte numbers,
s h (34 + 5 a s / h). Here each operation of transformers' code is counted instead (`layer`, `operations`), because
gates, norms in fp32, shared keys, fused attention, adapters and frozen weights change that number. For a Llama-like
layer in bf16 with fused attention, trained whole, the sum is, per token,

    2 (4 h + 4 h)           two norms: their input in fp32, what the weight multiplies, their result: 4 + 2 + 2
    2 (2 q + 2 k) + 4 a     queries, keys, values and the result of attention; a sum for each head
    2 (4 f)                 gate, its activation, up, their product

Without a trained weight behind it a result is not kept: with adapters (LoRA) norms take 4 + 2, and each adapter adds
2 r. A layer that is computed again keeps its input, 2 h, and the sum above is alive for one such layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from distft.plan.architecture import Architecture, Layers, Stack, Weight
from distft.plan.inputs import batch_bytes, below, biases, masks, rotary, turns
from distft.plan.layer import kept
from distft.plan.loss import Batch, Computing, last_norm, top
from distft.plan.operations import FP32, Update
from distft.plan.recomputed import convolutions, recomputed
from distft.plan.work import COPIED, RMS_NORMS, Kept, Work


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
    flags = recomputed(model, how.checkpointing)
    held = [one for stack, again in zip(model.stacks, flags, strict=True) for one in stacks.layers(stack, again)]
    head = top(model, batch, how, batch.values(model.stacks[-1]))
    under = [below(stack, batch, how, stacks.begins(stack)) for stack in model.stacks]
    shared_biases = sum(biases(stack, batch, how).kept for stack in model.stacks)
    terms = {
        "batch": batch_bytes(model.stacks[0], batch, how),
        "masks": shared_biases + sum(masks(stack, batch, how) for stack in model.stacks),
        "positions": sum(rotary(stack, batch, how) for stack in model.stacks),
        "embeddings": sum(one.kept for one in under),
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
        *([Moment("sound", terms["batch"] + under[0].backward, 1.0)] if convolutions(model.stacks[0]) else []),
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
    (see `Kept`), `saved` included in both; beside: what an encoder has read, for a layer that reads it, and the
    gradient of biases that layers share."""

    saved: int
    again: int
    forward: int
    beside: int


class Stacks:
    """Sizes of what stacks and their layers keep."""

    def __init__(self, model: Architecture, batch: Batch, how: Computing) -> None:
        self._model, self._batch, self._how = model, batch, how

    def size(self, stack: Stack) -> int:
        """Bytes of a stack's hidden state."""
        return self._batch.values(stack) * self._how.numbers.width

    def begins(self, stack: Stack) -> bool:
        """Whether a gradient flows to a stack's first layer; PEFT asks for it where layers are computed again."""
        first = ("embedding", "convolution")
        below = [one for one in (*stack.other, *self._model.head) if one.kind in first]
        other = stack.extracts or any(self._how.update(one.name, one).whole for one in below)
        adapted = any(self._how.update(one.name, one).rank for s in self._model.stacks for one in _full_names(s))
        return other or (self._how.checkpointing > 0 and adapted)

    def layers(self, stack: Stack, recomputes: Sequence[bool]) -> list[_Held]:
        """Of each layer, in order. Most are alike, and learn alike. `recomputes`: which are computed again."""
        learns, size, bias = self.begins(stack), self.size(stack), biases(stack, self._batch, self._how)
        beside = bias.learned + (self.memory() if stack.role == "decoder" else 0)
        known: dict[tuple[int, bool, tuple[Update, ...]], Kept] = {}
        found: list[_Held] = []
        for (number, layers), again in zip(_in_order(stack), recomputes, strict=True):
            updates = tuple(self._how.update(f"{layers.path}.{number}.{one.name}", one) for one in layers.weights)
            key = id(layers), learns, updates
            if key not in known:
                by_name = dict(zip((one.name for one in layers.weights), updates, strict=True))
                known[key] = kept(layers, by_name, self.work(stack, learns))
            one = _held(known[key], size, beside, again)
            found.append(one if found else replace(one, again=one.again + bias.made))
            learns = known[key].learns
        return found

    def work(self, stack: Stack, learns: bool) -> Work:
        batch, how = self._batch, self._how
        return Work(
            batch.rows,
            batch.tokens_of(stack),
            batch.tokens if stack.role == "decoder" else 0,
            stack.hidden,
            how.numbers,
            how.attention,
            mask=batch.mask and stack.role != "decoder" and how.attention != "varlen",
            mask_over_encoder=batch.mask and how.attention != "varlen",
            rotary=turns(stack),
            norm=RMS_NORMS.get(self._model.model_type, "narrow"),
            copied=self._model.model_type in COPIED,
            learns=learns,
            memory_learns=stack.role == "decoder",
        )

    def memory(self) -> int:
        """The norm and the result of an encoder, which all layers of the decoder read."""
        return sum(self._read(stack) for stack in self._model.stacks if stack.role == "encoder")

    def _read(self, stack: Stack) -> int:
        """Its norm keeps its input (in fp32 if it has no bias) and what its weight is multiplied with."""
        size, width = self.size(stack), self._how.numbers.width
        norm = last_norm(stack)
        if norm is None or not self.begins(stack):
            return size
        bias = any(one.name == norm.name.removesuffix("weight") + "bias" for one in stack.other)
        learns = self._how.update(norm.name, norm).whole
        inner = size if bias else size // width * FP32 + (size if learns else 0)
        return inner + size + (self._dropped(stack) if not bias else 0)

    def _dropped(self, stack: Stack) -> int:
        size, share = self.size(stack), max((layers.dropout for layers in stack.layers), default=0.0)
        mask = size if self._how.numbers.device == "cpu" else size // self._how.numbers.width
        return mask if share else 0


def _held(one: Kept, size: int, beside: int, again: bool) -> _Held:
    if not again:
        return _Held(one.own, one.backward, one.lent, beside)
    forward = size + one.inner_lent
    return _Held(size, max(size + one.inner_backward, forward), forward, beside)


def _in_order(stack: Stack) -> list[tuple[int, Layers]]:
    """Each layer of a stack with the number in its weights' names."""
    found = []
    for layers in stack.layers:
        numbers = layers.numbers or tuple(range(layers.count))
        found += [
            (numbers[0] if layers.shared else number, layers) for number in numbers * (layers.count // len(numbers))
        ]
    return found if any(layers.shared for layers in stack.layers) else sorted(found, key=lambda one: one[0])


def _full_names(stack: Stack) -> Iterator[Weight]:
    for layers in stack.layers:
        for one in layers.weights:
            yield replace(one, name=f"{layers.path}.{(layers.numbers or (0,))[0]}.{one.name}")
