"""What stands below the layers or is shared by them: a batch, masks, biases, positions, embeddings, and sounds."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from distft.plan import operations
from distft.plan.architecture import Stack, Weight
from distft.plan.loss import Batch, Computing
from distft.plan.operations import FP32
from distft.plan.recomputed import again, convolutions
from distft.plan.tape import Tape, Value

INDEX = 8  # bytes of a token's number


@dataclass(frozen=True)
class Below:
    """Bytes below a stack's layers: `kept` from forward to backward; `backward`: the most in its backward, `kept`
    included."""

    kept: int
    backward: int


def batch_bytes(stack: Stack, batch: Batch, how: Computing) -> int:
    """Token ids and positions, real or not, and for each target a place, a token and an owner. Sound: numbers in fp32
    and in the model's, and with padding a mask.

    Args:
        stack: the first.
    """
    rows, width, filters = batch.rows * (batch.tokens + batch.written), how.numbers.width, convolutions(stack)
    if not filters:
        return rows * (2 * INDEX + 1) + 3 * INDEX * batch.targets
    each = filters[0].shape[1] * (FP32 + (width if width != FP32 else 0)) + (INDEX if batch.mask else 0)
    return 2 * INDEX * batch.rows * batch.written + _places(filters, batch) * each


def _places(filters: list[Weight], batch: Batch) -> int:
    """Before the first of some convolutions."""
    return batch.rows * batch.tokens * prod(one.stride for one in filters)


def masks(stack: Stack, batch: Batch, how: Computing) -> int:
    """One for each kind of layers, [rows, 1, tokens, tokens]: of bytes, for eager attention of numbers."""
    if how.attention in ("flash_attention_2", "varlen"):
        return 0
    tokens, decodes = batch.tokens_of(stack), stack.role == "decoder"
    each = (1 if how.attention == "sdpa" else how.numbers.width) * batch.rows * tokens
    found = each * batch.tokens if batch.mask and decodes else 0
    for window in {layers.attention.window for layers in stack.layers if layers.attention}:
        padded = batch.mask and not decodes
        eager = how.attention == "eager" and _causal(stack)
        found += each * tokens if padded or eager or (window is not None and window < tokens) else 0
    return found


@dataclass(frozen=True)
class Biases:
    """Bytes of biases for positions that all layers of a stack add to their scores: `kept`; `learned`: their gradient,
    which grows from layer to layer; `made`: what the first layer needs to make them."""

    kept: int = 0
    learned: int = 0
    made: int = 0


def biases(stack: Stack, batch: Batch, how: Computing) -> Biases:
    """Of self-attention, and zeros for attention over an encoder, which get a gradient if layers are computed again."""
    shape = next((one.attention for one in stack.layers if one.attention and one.attention.bias), None)
    if shape is None or how.attention == "flash_attention_2":
        return Biases()
    tokens = batch.tokens_of(stack)
    each = how.numbers.width * shape.heads * tokens
    own, zeros = each * tokens, each * batch.tokens if shape.over_encoder and how.attention != "varlen" else 0
    table = next((one for one in stack.other if "relative_attention_bias" in one.name), None)
    learns = table is not None and how.update(table.name, table).whole
    numbers = INDEX * tokens * tokens if learns else 0
    added = zeros if how.checkpointing else 0
    return Biases(
        own + zeros + (0 if how.checkpointing else numbers),
        (own if learns else 0) + added,
        added + (numbers if how.checkpointing else 0),
    )


def rotary(stack: Stack, batch: Batch, how: Computing) -> int:
    """Cosines and sines of all positions, shared by layers."""
    first = stack.layers[0].attention if stack.layers else None
    if first is None or not turns(stack):
        return 0
    return 2 * batch.rows * batch.tokens_of(stack) * first.size * how.numbers.width


def below(stack: Stack, batch: Batch, how: Computing, learns: bool) -> Below:
    """A norm's input, a mask of dropout, and what convolutions over sound are given and make.

    Args:
        learns: a gradient flows to the first layer.
    """
    size, tape = batch.values(stack) * how.numbers.width, Tape()
    filters = convolutions(stack)
    looked_up = not filters
    heard = Below(0, 0)
    if filters:
        heard, x = _heard(stack, batch, how, learns, tape)
    else:
        x = Value(size, learns)
    normed = [one for one in stack.other if one.kind == "vector" and _is_first_norm(stack, one)]
    if normed and learns:
        x = operations.layer_norm(
            tape, x, batch.rows * batch.tokens_of(stack), how.update(normed[0].name, normed[0]).whole
        )
    if learns:
        x = operations.dropout(tape, how.numbers, x, max((one.dropout for one in stack.layers), default=0.0))
    kept = tape.kept()
    if looked_up and learns and not _learns(stack, how) and kept:
        kept += size  # PEFT has the result of the embedding learn, which then lives as long as its gradient may come
    return Below(heard.kept + kept, heard.kept + max(heard.backward, kept, tape.backward()))


def _learns(stack: Stack, how: Computing) -> bool:
    return any(how.update(one.name, one).whole for one in stack.other if one.kind == "embedding")


def _is_first_norm(stack: Stack, one: Weight) -> bool:
    said = one.name.endswith("weight") and "embed" in one.name and "norm" in one.name.lower()
    return one.name == stack.first_norm or (said and "pos_conv" not in one.name)


def _heard(stack: Stack, batch: Batch, how: Computing, learns: bool, tape: Tape) -> tuple[Below, Value]:
    """What layers over sound keep by themselves if they are computed again; what others keep is put on the tape."""
    filters, width = convolutions(stack), how.numbers.width
    places = _places(filters, batch)
    x = Value(places * filters[0].shape[1] * width, stack.extracts)
    kept, most = 0, 0
    recomputes = [stack.extracts and again(how.checkpointing, number) for number in range(len(filters))]
    for one, apart in zip(filters, recomputes, strict=True):
        places //= one.stride
        own = Tape() if apart else tape
        given, x = x, _filtered(own, stack, how, one, x, places, learns and one is filters[0])
        if apart:
            kept += given.size if one is not filters[0] else 0
            most = max(most, kept + own.backward([given]))
            x = Value(x.size, x.learns)
    kept += x.size if recomputes[-1] else 0
    return Below(kept, max(most - kept, 0)), _projected(tape, stack, batch, how, x)


def _filtered(tape: Tape, stack: Stack, how: Computing, one: Weight, x: Value, places: int, asked: bool) -> Value:
    """`asked`: PEFT has the result learn."""
    learns = how.update(one.name, one).whole
    x = tape.run([x], places * one.shape[0] * how.numbers.width, [x], trains=learns)  # kept if only x learns, too
    x.learns = x.learns or asked
    name = one.name.replace(".conv.weight", ".layer_norm.weight")
    if (norm := _named(stack, name)) is not None and name != one.name:
        x = operations.layer_norm(tape, x, places, how.update(norm.name, norm).whole)
    return operations.activation(tape, "gelu", x)


def _projected(tape: Tape, stack: Stack, batch: Batch, how: Computing, x: Value) -> Value:
    """From the last filter to the width of the layers, and with a convolution that tells places from each other."""
    tokens, size = batch.rows * batch.tokens_of(stack), batch.values(stack) * how.numbers.width
    for norm in (one for one in stack.other if one.name.endswith("feature_projection.layer_norm.weight")):
        x = operations.layer_norm(tape, x, tokens, how.update(norm.name, norm).whole)
    for one in (one for one in stack.other if one.name.endswith("feature_projection.projection.weight")):
        x = operations.linear(tape, how.numbers, x, (one.shape[1], one.shape[0]), how.update(one.name, one))
    for one in (one for one in stack.other if one.kind == "convolution" and "pos" in one.name):
        learns = how.update(one.name, one).whole
        matrix = tape.run([], one.size * how.numbers.width, trains=learns)  # a direction and a length make it
        y = tape.run([x, matrix], size, [x, matrix])
        x = tape.run([x, operations.activation(tape, "gelu", y)], size, passes=True)
    return x


def _named(stack: Stack, name: str) -> Weight | None:
    return next((one for one in stack.other if one.name == name), None)


def _causal(stack: Stack) -> bool:
    return any(layers.attention is not None and layers.attention.causal for layers in stack.layers)


def turns(stack: Stack) -> bool:
    """Whether positions turn queries and keys: nothing else in the stack says where a token is."""
    first = next((layers.attention for layers in stack.layers if layers.attention), None)
    positions = ("position", "wpe", "relative", "pos_conv")
    named = any(word in one.name for one in stack.other for word in positions)
    return first is not None and not named and not first.bias
