"""Bytes that an evaluation needs beside states: a forward pass that keeps nothing, its logits, and what is generated.

A layer has its input, and most of what it makes lives until it is read for the last time (`Tape.forward`). Logits are
picked where targets are, copied to fp32 and become log-softmax; nobody keeps them for a backward pass, so at most two
of these live at once. Tasks with a decoder also write: each beam of each row has keys and values of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from distft.plan.activations import Stacks
from distft.plan.architecture import Architecture, Layers, Stack, Weight
from distft.plan.inputs import batch_bytes, biases, masks, rotary
from distft.plan.layer import kept
from distft.plan.loss import Batch, Computing, chunk_bytes
from distft.plan.operations import FP32, Update


@dataclass(frozen=True)
class Writing:
    """What a task generates of each row: `beams` texts of at most `tokens`."""

    beams: int
    tokens: int


def evaluation(
    model: Architecture, batch: Batch, how: Computing, writing: Writing | None = None, named: bool = False
) -> dict[str, int]:
    """Bytes of the fullest instant, as "activations" and "logits and loss".

    Args:
        batch: as large as in training; so are those of an evaluation.
        writing: None: nothing is generated.
        named: the model's logits are still there when those of the targets are copied (masked-lm).
    """
    model, how = _as_it_is(model), replace(how, update=_plain(how.update), checkpointing=0)
    stacks, width = Stacks(model, batch, how), how.numbers.width
    shared = _shared(model, batch, how)
    memory = sum(stacks.size(stack) for stack in model.stacks if stack.role == "encoder")
    instants = [(shared + size, 0) for stack in model.stacks for size in _layers(stack, how, stacks, memory)]
    last = model.stacks[-1]
    if how.chunk:
        read = stacks.size(last) + batch.targets * last.hidden * width
        instants.append((shared + memory + read, chunk_bytes(model, batch, how)))
    else:
        read = stacks.size(last) + batch.logits * last.hidden * width  # all places, and those that are asked for
        instants.append((shared + memory + read, batch.logits * model.vocabulary * width))
        instants.append((shared + memory, _scored(model, batch, how, named)))
    if writing is not None:
        instants.append((shared, _written(model, batch, how, writing)))
    activations, logits = max(instants, key=sum)
    return {"activations": activations, "logits and loss": logits}


def _plain(update: Callable[[str, Weight], Update]) -> Callable[[str, Weight], Update]:
    """Adapters without dropout."""
    return lambda name, weight: replace(update(name, weight), dropout=0.0)


def _as_it_is(model: Architecture) -> Architecture:
    """Without dropout."""

    def plain(layers: Layers) -> Layers:
        attention = None if layers.attention is None else replace(layers.attention, dropout=0.0)
        return replace(layers, dropout=0.0, attention=attention, feed_forward=replace(layers.feed_forward, dropout=0.0))

    stacks = (replace(stack, layers=tuple(map(plain, stack.layers))) for stack in model.stacks)
    return replace(model, stacks=tuple(stacks))


def _shared(model: Architecture, batch: Batch, how: Computing) -> int:
    """What all layers read: the batch, masks, biases (nothing is kept to make them anew), and positions."""
    still = replace(how, update=lambda name, weight: Update())
    each = (masks(one, batch, how) + biases(one, batch, still).kept + rotary(one, batch, how) for one in model.stacks)
    return batch_bytes(model.stacks[0], batch, how) + sum(each)


def _layers(stack: Stack, how: Computing, stacks: Stacks, memory: int) -> Iterator[int]:
    """Of one layer of each kind: its input, embeddings (which have a name), what the encoder has read, and what it
    makes."""
    for layers in stack.layers:
        updates = {one.name: how.update(f"{layers.path}.0.{one.name}", one) for one in layers.weights}
        made = kept(layers, updates, stacks.work(stack, True)).forward
        yield 2 * stacks.size(stack) + (memory if stack.role == "decoder" else 0) + made


def _scored(model: Architecture, batch: Batch, how: Computing, named: bool) -> int:
    """Logits of the model, those of targets, these in fp32, and their log-softmax: the most that is there at once."""
    width, one = how.numbers.width, batch.targets * model.vocabulary
    made, exact = batch.logits * model.vocabulary * width, one * FP32
    copied = exact if width != FP32 else 0
    if not how.gathered:
        return made + copied + exact
    picked = one * width
    return max(made + picked + (copied if named else 0), picked + copied, 2 * exact)


def _written(model: Architecture, batch: Batch, how: Computing, writing: Writing) -> int:
    """Keys and values of what was written and read, for each beam; a tensor of them that is sorted anew; what was read,
    once more for each beam; and the next token's logits, in fp32 four times."""
    width, rows = how.numbers.width, batch.rows * writing.beams
    cached = largest = 0
    for layers in model.stacks[-1].layers:
        if (attention := layers.attention) is not None:
            tokens = writing.tokens + (batch.tokens if attention.over_encoder else 0)
            one = attention.keys * max(attention.size, attention.value_size) * width * rows
            cached += layers.count * attention.keys * (attention.size + attention.value_size) * width * rows * tokens
            largest = max(largest, one * max(writing.tokens, batch.tokens))
    read = (batch.rows + rows) * batch.tokens * model.stacks[0].hidden * width
    return cached + largest + read + rows * model.vocabulary * (width + 4 * FP32)
