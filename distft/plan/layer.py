"""What a layer of a transformer does, operation by operation, as far as it decides what training keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from distft.plan import operations
from distft.plan.architecture import Attention, FeedForward, Layers, Weight
from distft.plan.operations import Implementation, Numbers, RmsNorm, Scores, Update
from distft.plan.tape import Tape, Value

QUERIES = {"q_proj", "query", "q", "q_lin", "q_attn", "query_proj"}
KEYS = {"k_proj", "key", "k", "k_lin", "key_proj"}
VALUES = {"v_proj", "value", "v", "v_lin", "value_proj"}
JOINT = {"qkv_proj", "c_attn", "query_key_value", "Wqkv", "qkv", "W_pack"}
OVER_ENCODER = {"EncDecAttention", "encoder_attn", "crossattention", "cross_attn"}
RMS_NORMS: Mapping[str, RmsNorm] = {  # by model_type; others are narrow
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text", "gemma4_text"), "wide"),
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), "mixed"),
}

COPIED = {"whisper"}  # model_type: queries are put into the order of heads before attention


@dataclass(frozen=True)
class Work:
    """How much a layer is given, and in which way it computes.

    Attributes:
        rows, tokens: of the stack that the layer is in.
        read: tokens of a row that the encoder has read.
        kind: implementation of attention.
        mask: attention in the stack gets a mask whatever its window.
        mask_over_encoder: so does attention over the encoder.
        rotary: queries and keys are turned by their positions.
        norm: of norms without a bias.
        copied: see `Scores`.
        learns: a gradient flows to the layer's input.
        memory_learns: and to what the encoder has read.
    """

    rows: int
    tokens: int
    read: int
    hidden: int
    numbers: Numbers
    kind: Implementation
    mask: bool
    mask_over_encoder: bool
    rotary: bool
    norm: RmsNorm
    copied: bool
    learns: bool
    memory_learns: bool


@dataclass(frozen=True)
class Kept:
    """Bytes of a layer.

    Attributes:
        own: kept by it from forward to backward, its input included if it is kept.
        inner: the same without its input.
        backward: most that is alive in its backward, `own` included.
        inner_backward: the same, less its input.
        lent, inner_lent: most in its forward, if an operation there takes much for a moment; else 0.
        forward: most that is alive in its forward if nothing is kept, beside its input.
        learns: a gradient flows through it.
    """

    own: int
    inner: int
    backward: int
    inner_backward: int
    lent: int
    inner_lent: int
    forward: int
    learns: bool


def kept(layers: Layers, updates: Mapping[str, Update], work: Work) -> Kept:
    """What one of some layers that are alike keeps.

    Args:
        updates: how its weights learn, by their names.
    """
    size = work.rows * work.tokens * work.hidden * work.numbers.width
    memory = Value(work.rows * work.read * work.hidden * work.numbers.width, work.memory_learns)
    x, tape = Value(size, work.learns), Tape()
    norms = [one for one in layers.weights if _is_norm(one) and one.name.endswith("weight")]
    result = _Layer(layers, updates, work, tape, iter(norms)).run(x, memory)
    both = memory, x
    return Kept(
        own=tape.kept([memory]),
        inner=tape.kept(both),
        backward=tape.backward([memory]),
        inner_backward=tape.backward(both),
        lent=tape.lent([memory]),
        inner_lent=tape.lent(both),
        forward=tape.forward(both),
        learns=result.learns,
    )


@dataclass
class _Layer:
    layers: Layers
    updates: Mapping[str, Update]
    work: Work
    tape: Tape
    norms: Iterator[Weight]

    def run(self, x: Value, memory: Value) -> Value:
        """Norms stand before what they are for; one that stands behind it keeps the same."""
        weights = [one for one in self.layers.weights if one.kind == "matrix" and not _is_norm(one)]
        across = [one for one in weights if OVER_ENCODER.intersection(one.name.split("."))]
        inside = [one for one in weights if one not in across]
        own, rest = _split(inside)
        norms = [one for one in self.layers.weights if _is_norm(one) and one.name.endswith("weight")]
        sandwich = len(norms) >= 4 and not across
        if self.layers.attention is not None:
            x = self._branch(x, lambda y: self._attend(y, y, own, False), sandwich)
            if across:
                x = self._branch(x, lambda y: self._attend(y, memory, _split(across)[0], True), False)
        return self._branch(x, lambda y: self._feed_forward(y, rest), sandwich)

    def _branch(self, x: Value, inner: Callable[[Value], Value], sandwich: bool) -> Value:
        normed = self._norm(x)
        y = inner(normed)
        self.tape.hold([normed])
        if sandwich:
            y = self._norm(y)
        y = operations.dropout(self.tape, self.work.numbers, y, self.layers.dropout)
        return self.tape.run([x, y], x.size, passes=True)

    def _norm(self, x: Value, weight: Weight | None = None, tokens: int | None = None) -> Value:
        weight = weight or next(self.norms, None)
        tokens = tokens or self.work.rows * self.work.tokens
        learns = weight is not None and self.updates[weight.name].whole
        bias = weight is not None and any(
            one.name == weight.name.removesuffix("weight") + "bias" for one in self.layers.weights
        )
        if bias or weight is None:
            return operations.layer_norm(self.tape, x, tokens, learns)
        return operations.rms_norm(self.tape, self.work.numbers, x, tokens, learns, self.work.norm)

    def _linear(self, x: Value, before: int, after: int, weight: Weight | None) -> Value:
        update = Update() if weight is None else self.updates[weight.name]
        return operations.linear(self.tape, self.work.numbers, x, (before, after), update)

    def _attend(self, x: Value, memory: Value, weights: Sequence[Weight], over_encoder: bool) -> Value:
        shape = self.layers.attention
        assert shape is not None
        tape, work, hidden = self.tape, self.work, self.work.hidden
        wide, narrow, values = shape.heads * shape.size, shape.keys * shape.size, shape.keys * shape.value_size
        if (joint := _named(weights, JOINT)) is not None and not over_encoder:
            whole = self._linear(x, hidden, wide + narrow + values, joint)
            each = work.rows * work.tokens * work.numbers.width
            q, k, v = tape.split(whole, (wide * each, narrow * each, values * each))
        else:
            q = self._linear(x, hidden, wide, _named(weights, QUERIES))
            k = self._linear(memory, hidden, narrow, _named(weights, KEYS))
            v = self._linear(memory, hidden, values, _named(weights, VALUES))
        if not over_encoder:
            q, k = self._head_norm(q, "q_norm", shape.heads), self._head_norm(k, "k_norm", shape.keys)
            if work.rotary:
                q, k = operations.rotary(tape, q), operations.rotary(tape, k)
        out = work.rows * work.tokens * shape.heads * shape.value_size * work.numbers.width
        seen = operations.attention(tape, work.numbers, work.kind, q, k, v, out, self._scores(shape, over_encoder))
        found = self._linear(seen, shape.heads * shape.value_size, hidden, _behind(weights))
        tape.hold([q, k, v, seen])
        return found

    def _head_norm(self, x: Value, name: str, heads: int) -> Value:
        weight = next((one for one in self.layers.weights if f".{name}." in f".{one.name}"), None)
        return x if weight is None else self._norm(x, weight, self.work.rows * self.work.tokens * heads)

    def _scores(self, shape: Attention, over_encoder: bool) -> Scores:
        work = self.work
        mask = work.mask_over_encoder if over_encoder else work.mask
        windowed = not over_encoder and shape.window is not None and shape.window < work.tokens
        return Scores(
            work.rows,
            shape.heads,
            shape.heads // shape.keys,
            work.tokens,
            work.read if over_encoder else work.tokens,
            mask or windowed,
            shape.dropout,
            bias=shape.bias,
            bias_learns=False,
            soft_cap=shape.soft_cap,
            exact=work.rotary,
            copied=work.copied,
        )

    def _feed_forward(self, x: Value, weights: Sequence[Weight]) -> Value:
        shape = self.layers.feed_forward
        if not shape.experts:
            return self._dense(x, shape.width, shape, weights)
        shared = [one for one in weights if not one.experts]
        mixed = self._experts(x, shape, shared)
        if not shape.shared:
            return mixed
        beside = self._dense(x, shape.shared, shape, shared)
        return self.tape.run([mixed, beside], x.size, passes=True)

    def _dense(self, x: Value, width: int, shape: FeedForward, weights: Sequence[Weight]) -> Value:
        """Gate and up may be one matrix; then what they make is kept as one."""
        tape, hidden = self.tape, self.work.hidden
        last = weights[-1] if weights else None
        first = [one for one in weights[:-1] if width in one.shape or 2 * width in one.shape]
        if shape.gated and len(first) == 1:
            both = self._linear(x, hidden, 2 * width, first[0])
            inner = self._gated(tape.split(both, (both.size // 2, both.size // 2)), shape.activation)
        elif shape.gated:
            gate = self._linear(x, hidden, width, first[0] if first else None)
            up = self._linear(x, hidden, width, first[1] if len(first) > 1 else None)
            inner = self._gated((gate, up), shape.activation)
        else:
            up = self._linear(x, hidden, width, first[0] if first else None)
            inner = operations.activation(tape, shape.activation, up)
        inner = operations.dropout(tape, self.work.numbers, inner, shape.dropout)
        return self._linear(inner, width, hidden, last)

    def _gated(self, parts: Sequence[Value], name: str) -> Value:
        gate, up = parts
        return operations.product(self.tape, operations.activation(self.tape, name, gate), up)

    def _experts(self, x: Value, shape: FeedForward, weights: Sequence[Weight]) -> Value:
        """Each token is copied for each of its experts and sorted by them (grouped matrix products)."""
        tape, numbers, tokens = self.tape, self.work.numbers, self.work.rows * self.work.tokens
        router = next((one for one in weights if one.shape[0] == shape.experts), None)
        logits = self._linear(x, self.work.hidden, shape.experts, router)
        full = operations.FP32 * tokens * shape.experts
        shares = tape.run([tape.run([logits], full)], full, keeps_result=True)
        places, copies = Value(8 * tokens * shape.chosen), x.size * shape.chosen
        chosen = tape.run([shares], operations.FP32 * tokens * shape.chosen, [places])
        given = tape.run([x], copies, [places])
        wide = copies // self.work.hidden * shape.width
        both = self._grouped(given, wide * (2 if shape.gated else 1), first=True)
        if shape.gated:
            inner = self._gated(tape.split(both, (wide, wide)), shape.activation)
        else:
            inner = operations.activation(tape, shape.activation, both)
        done = self._grouped(inner, copies, first=False)
        full = copies // numbers.width * operations.FP32  # shares are fp32
        weighted = tape.run([done, chosen], full, [done, chosen], work=full)
        return tape.run([tape.run([weighted], full, [places])], x.size)

    def _grouped(self, x: Value, size: int, *, first: bool) -> Value:
        """With an adapter PEFT adds it to all experts' weights, and the sum is kept."""
        experts = [one for one in self.layers.weights if one.experts and one.kind == "matrix"]
        mine = experts[:1] if first else experts[1:]
        updates = [self.updates[one.name] for one in mine]
        learns = any(update.whole or update.rank for update in updates)
        adapted = [one for one, update in zip(mine, updates, strict=True) if update.rank]
        sums = [self.tape.run([], one.size * self.work.numbers.width, trains=True) for one in adapted]
        return self.tape.run([x, *sums], size, [*([x] if learns else []), *sums], trains=learns)


def _is_norm(weight: Weight) -> bool:
    owner = weight.name.split(".")[-2] if "." in weight.name else weight.name
    return (
        weight.kind == "vector"
        and ("norm" in owner.lower() or owner.startswith("ln_"))
        and not owner.endswith(("q_norm", "k_norm"))
    )


def _leaf(weight: Weight) -> str:
    return weight.name.removesuffix(".weight").split(".")[-1]


def _named(weights: Sequence[Weight], names: set[str]) -> Weight | None:
    return next((one for one in weights if _leaf(one) in names), None)


def _split(weights: Sequence[Weight]) -> tuple[Sequence[Weight], Sequence[Weight]]:
    """Matrices of attention, which come first and end with the one behind it, and the others."""
    known = QUERIES | KEYS | VALUES | JOINT
    last = max((place for place, one in enumerate(weights) if _leaf(one) in known), default=-1)
    return (weights[: last + 2], weights[last + 2 :]) if last >= 0 else ((), weights)


def _behind(weights: Sequence[Weight]) -> Weight | None:
    return weights[-1] if weights else None
