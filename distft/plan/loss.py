"""What stands on a model's last layer: a norm, the head, logits and their loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distft.plan import operations
from distft.plan.architecture import Architecture, Stack, Weight
from distft.plan.operations import FP32, Implementation, Numbers, Update
from distft.plan.tape import Tape, Value
from distft.plan.work import RMS_NORMS

CHUNK_BYTES = 2**29  # most of a chunk's logits in fp32, however many targets the recipe allows


def chunk_size(targets: int, most: int, vocabulary: int) -> int:
    """Targets whose logits are made at once: chunks of about the same size, of `most` targets or fewer."""
    most = max(1, min(most, CHUNK_BYTES // (FP32 * vocabulary)))
    return -(-targets // max(1, -(-targets // most)))


@dataclass(frozen=True)
class Batch:
    """What a step's micro-batch holds.

    Attributes:
        rows, tokens: of the only stack or the encoder, padding included. An encoder of sound: places that its layers
            see.
        written: tokens of a row that a decoder behind an encoder is given.
        logits: places of all rows with logits.
        targets: places of all rows with a loss.
        mask: attention gets a mask: rows hold several documents (their positions restart), or padding.
    """

    rows: int
    tokens: int
    logits: int
    targets: int
    written: int = 0
    mask: bool = False

    def tokens_of(self, stack: Stack) -> int:
        """Of a row that a stack is given."""
        return self.written if stack.role == "decoder" else self.tokens

    def values(self, stack: Stack) -> int:
        """Numbers of a stack's hidden state."""
        return self.rows * self.tokens_of(stack) * stack.hidden


@dataclass(frozen=True)
class Computing:
    """How a step is computed.

    Attributes:
        update: how a weight learns, by its full name and itself.
        checkpointing: each first one of so many layers is computed again in backward; 0: none.
        gathered: logits of the targets are picked from those that the model makes, else all are scored (seq2seq).
        chunk: most targets whose logits are made at once; 0: those of all.
    """

    numbers: Numbers
    attention: Implementation
    update: Callable[[str, Weight], Update]
    checkpointing: int = 0
    gathered: bool = True
    chunk: int = 0


@dataclass(frozen=True)
class Top:
    """Most bytes alive in its forward and in its backward pass, beside what layers keep."""

    forward: int
    backward: int


def top(model: Architecture, batch: Batch, how: Computing, hidden: int) -> Top:
    """From the last layer to the loss.

    Logits are made in the model's numbers, picked where targets are, copied to fp32, and kept as log-softmax: with all
    of them alive in forward 12 bytes for each logit (4 in fp32 three times, 2 + 2 + 4 + 4 in bf16). Backward has the
    log-softmax, the gradient of the loss, and that of the logits: 12 again.

    Args:
        hidden: numbers of what the last layer returns.
    """
    numbers, tape = how.numbers, Tape()
    width, columns = numbers.width, model.stacks[-1].hidden
    x = Value(hidden * width, learns=True)
    norm, layers = last_norm(model.stacks[-1]), model.stacks[-1].layers
    if norm is not None:
        x = _norm(tape, how, x, hidden // columns, norm, model)
        if any(one.attention is not None and one.attention.bias for one in layers):  # T5 alone drops what it made
            x = operations.dropout(tape, numbers, x, layers[-1].dropout)
    if hidden != batch.logits * columns and how.gathered and not how.chunk:
        x = tape.run([x], batch.logits * columns * width)
    for weight in _between(model):
        x = operations.linear(tape, numbers, x, (columns, columns), how.update(weight.name, weight))
        x = operations.layer_norm(tape, operations.activation(tape, "gelu", x), batch.logits, learns=True)
    if how.chunk:
        return _in_chunks(model, batch, how, tape, x)
    below = tape.kept()
    logits = operations.linear(tape, numbers, x, (columns, model.vocabulary), _head(model, how))
    made = logits.size + _scored(model, batch, how)
    scored = logits
    if how.gathered:
        scored = tape.run([logits], batch.targets * model.vocabulary * width)
    if width != FP32:
        scored = tape.run([scored], scored.size // width * FP32)
    scored = tape.run([scored], scored.size, keeps_result=True)
    tape.run([scored], FP32)
    paths = _paths(model, batch)
    return Top(below + made + paths, tape.backward() + paths)


def _paths(model: Architecture, batch: Batch) -> int:
    """What a CRF keeps: at each place how likely each tag is behind each other."""
    labels = next((one.shape[0] for one in model.head if one.name.endswith("crf.transitions")), 0)
    return FP32 * batch.targets * labels * labels


def _in_chunks(model: Architecture, batch: Batch, how: Computing, tape: Tape, x: Value) -> Top:
    """What stands on the hidden state `x` if logits are made a chunk at a time, and gradients with them.

    The gradient of what is picked waits for backward, and so does that of a trained head, in fp32, whatever its
    numbers.
    """
    width, columns = how.numbers.width, model.stacks[-1].hidden
    weight = columns * model.vocabulary if _head(model, how).whole else 0
    product = weight * width if width != FP32 else 0
    below, picked = tape.kept(), batch.targets * columns * width
    learns = picked if x.learns else 0
    tape.run([tape.run([x], picked)], FP32, trains=weight > 0, work=weight * FP32 + product)
    return Top(
        below + x.size + picked + learns + chunk_bytes(model, batch, how) + weight * FP32 + product, tape.backward()
    )


def chunk_bytes(model: Architecture, batch: Batch, how: Computing) -> int:
    """A chunk's logits: in fp32, and in the model's numbers once more if those are others."""
    width = how.numbers.width
    logits = chunk_size(batch.targets, how.chunk, model.vocabulary) * model.vocabulary
    return logits * (FP32 + (width if width != FP32 else 0))


def _scored(model: Architecture, batch: Batch, how: Computing) -> int:
    """Copies of logits: picked, in fp32, and their log-softmax."""
    one = batch.targets * model.vocabulary
    width = how.numbers.width
    return (one * width if how.gathered else 0) + (one * FP32 if width != FP32 else 0) + one * FP32


def _norm(tape: Tape, how: Computing, x: Value, tokens: int, weight: Weight, model: Architecture) -> Value:
    learns = how.update(weight.name, weight).whole
    bias = weight.name.removesuffix("weight") + "bias"
    if any(one.name == bias for one in model.stacks[-1].other):
        return operations.layer_norm(tape, x, tokens, learns)
    return operations.rms_norm(tape, how.numbers, x, tokens, learns, RMS_NORMS.get(model.model_type, "narrow"))


def last_norm(stack: Stack) -> Weight | None:
    """Behind the layers; one on embeddings is named after them."""
    vectors = [one for one in stack.other if one.kind == "vector" and one.name.endswith("weight")]
    names = ("norm", "ln_f")
    below = ("embed", "feature_")
    found = [
        one
        for one in vectors
        if one.name != stack.first_norm
        and any(name in one.name.lower() for name in names)
        and not any(name in one.name for name in below)
    ]
    return found[-1] if found else None


def _between(model: Architecture) -> list[Weight]:
    """Square matrices between the last layer and the head (BERT)."""
    side = model.stacks[-1].hidden
    return [one for one in model.head if one.shape == (side, side) and one.shape != (model.vocabulary, side)]


def head_weight(model: Architecture) -> Weight | None:
    """The matrix that makes the logits."""
    weights = [*model.head, *(one for stack in model.stacks for one in stack.other)]
    shape = (model.vocabulary, model.stacks[-1].hidden)
    return next((one for one in weights if one.shape == shape), None)


def _head(model: Architecture, how: Computing) -> Update:
    found = head_weight(model)
    return Update() if found is None else how.update(found.name, found)
