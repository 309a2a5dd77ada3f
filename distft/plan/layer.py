"""What a layer of a transformer does, operation by operation, as far as it decides what training keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from distft.plan import operations
from distft.plan.architecture import Attention, FeedForward, Layers, Weight
from distft.plan.names import (
    JOINT,
    KEYS,
    LATENT,
    OVER_ENCODER,
    QUERIES,
    VALUES,
    behind,
    is_norm,
    leaf,
    named,
    split_at_attention,
)
from distft.plan.operations import Scores, Update
from distft.plan.tape import Tape, Value
from distft.plan.work import Kept, Work


def kept(layers: Layers, updates: Mapping[str, Update], work: Work) -> Kept:
    """What one of some layers that are alike keeps.

    Args:
        updates: how its weights learn, by their names.
    """
    size = work.rows * work.tokens * work.hidden * work.numbers.width
    memory = Value(work.rows * work.read * work.hidden * work.numbers.width, work.memory_learns)
    x, tape = Value(size, work.learns), Tape()
    norms = [one for one in layers.weights if is_norm(one) and one.name.endswith("weight")]
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
        weights = [one for one in self.layers.weights if one.kind == "matrix" and not is_norm(one)]
        across = [one for one in weights if OVER_ENCODER.intersection(one.name.split("."))]
        inside = [one for one in weights if one not in across]
        own, rest = split_at_attention(inside)
        norms = [one for one in self.layers.weights if is_norm(one) and one.name.endswith("weight")]
        sandwich = len(norms) >= 4 and not across
        if self.layers.parallel:
            return self._beside(x, own, rest, len(norms))
        if self.layers.attention is not None:
            x = self._branch(x, lambda y: self._attend(y, y, own, False), sandwich)
            if across:
                x = self._branch(x, lambda y: self._attend(y, memory, split_at_attention(across)[0], True), False)
        return self._branch(x, lambda y: self._feed_forward(y, rest), sandwich)

    def _beside(self, x: Value, own: Sequence[Weight], rest: Sequence[Weight], norms: int) -> Value:
        """Attention and feed-forward see the same input, through one norm or one each, and are added to it at once."""
        y = self._norm(x)
        seen = self._attend(y, y, own, False)
        self.tape.hold([y])
        given = self._norm(x) if norms > 1 else y
        fed = self._feed_forward(given, rest)
        self.tape.hold([given])
        seen, fed = (operations.dropout(self.tape, self.work.numbers, one, self.layers.dropout) for one in (seen, fed))
        return self.tape.run([x, seen, fed], x.size, passes=True)

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
        if named(weights, LATENT) is not None:
            q, k, v = self._latent(x, weights, shape)
        elif (joint := named(weights, JOINT)) is not None and not over_encoder:
            whole = self._linear(x, hidden, wide + narrow + values, joint)
            each = work.rows * work.tokens * work.numbers.width
            q, k, v = tape.split(whole, (wide * each, narrow * each, values * each))
        else:
            q = self._linear(x, hidden, wide, named(weights, QUERIES))
            k = self._linear(memory, hidden, narrow, named(weights, KEYS))
            v = self._linear(memory, hidden, values, named(weights, VALUES))
        if not over_encoder:
            q, k = self._head_norm(q, "q_norm", shape.heads), self._head_norm(k, "k_norm", shape.keys)
            if work.rotary and named(weights, LATENT) is None:
                q, k = operations.rotary(tape, q), operations.rotary(tape, k)
        out = work.rows * work.tokens * shape.heads * shape.value_size * work.numbers.width
        seen = operations.attention(tape, work.numbers, work.kind, q, k, v, out, self._scores(shape, over_encoder))
        found = self._linear(seen, shape.heads * shape.value_size, hidden, behind(weights))
        tape.hold([q, k, v, seen])
        return found

    def _latent(self, x: Value, weights: Sequence[Weight], shape: Attention) -> tuple[Value, Value, Value]:
        """Queries, and keys and values, from a few numbers of a token; some numbers of a head tell positions
        (DeepSeek-V2, arXiv:2405.04434)."""
        tape, hidden, own = self.tape, self.work.hidden, {leaf(one): one for one in weights}
        each = self.work.rows * self.work.tokens * self.work.numbers.width
        down, up = own["kv_a_proj_with_mqa"], own["kv_b_proj"]
        rank, turned = up.shape[1], down.shape[0] - up.shape[1]
        if "q_a_proj" in own:
            few = own["q_a_proj"].shape[0]
            low = self._head_norm(self._linear(x, hidden, few, own["q_a_proj"]), "q_a_layernorm", 1)
            q = self._linear(low, few, shape.heads * shape.size, own["q_b_proj"])
        else:
            q = self._linear(x, hidden, shape.heads * shape.size, own["q_proj"])
        plain = shape.heads * (shape.size - turned) * each
        straight, turning = tape.split(q, (plain, q.size - plain))
        q = tape.run([straight, operations.rotary(tape, turning)], q.size)
        both = tape.split(self._linear(x, hidden, rank + turned, down), (rank * each, turned * each))
        low, turning = self._head_norm(both[0], "kv_a_layernorm", 1), operations.rotary(tape, both[1])
        values = shape.heads * shape.value_size
        wide = self._linear(low, rank, values + plain // each, up)
        straight, v = tape.split(wide, (plain, values * each))
        return q, tape.run([straight, turning], shape.heads * shape.size * each), v

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
            bias=shape.bias and not (over_encoder and work.kind == "varlen"),
            bias_learns=False,
            soft_cap=shape.soft_cap,
            exact=work.rotary,
            copied=work.copied,
            uneven=shape.size != shape.value_size,
            both_ways=over_encoder or not shape.causal,
        )

    def _feed_forward(self, x: Value, weights: Sequence[Weight]) -> Value:
        shape = self.layers.feed_forward
        if not shape.experts:
            return self._dense(x, shape.width, shape, weights)
        shared = [one for one in weights if not one.experts]
        router = next((one for one in shared if one.shape[0] == shape.experts), None)
        mixed = self._experts(x, shape, router)
        if not shape.shared:
            return mixed
        beside = self._dense(
            x, shape.shared, shape, [one for one in shared if one is not router and 1 not in one.shape]
        )
        for one in (one for one in shared if 1 in one.shape):  # a share of it for each token
            share = self._linear(x, self.work.hidden, 1, one)
            beside = operations.product(self.tape, self.tape.run([share], share.size, keeps_result=True), beside)
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

    def _experts(self, x: Value, shape: FeedForward, router: Weight | None) -> Value:
        """Each token is copied for each of its experts and sorted by them (grouped matrix products)."""
        tape, numbers, tokens = self.tape, self.work.numbers, self.work.rows * self.work.tokens
        exact = x.size // numbers.width * operations.FP32 if shape.exact_router else x.size
        seen = x if exact == x.size else tape.run([x], exact)
        logits = self._linear(seen, self.work.hidden, shape.experts, router)
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
        ordered = tape.run([weighted], full, [places])
        tape.hold([given, done])
        return tape.run([ordered], x.size)

    def _grouped(self, x: Value, size: int, *, first: bool) -> Value:
        """With an adapter PEFT makes its product, adds it to all experts' weights, and the sum is kept."""
        experts = [one for one in self.layers.weights if one.experts and one.kind == "matrix"]
        mine = experts[:1] if first else experts[1:]
        updates = [self.updates[one.name] for one in mine]
        learns = any(update.whole or update.rank for update in updates)
        adapted = [one for one, update in zip(mine, updates, strict=True) if update.rank]
        wide = [one.size * self.work.numbers.width for one in adapted]
        sums = [self.tape.run([self.tape.run([], each, trains=True)], each, passes=True) for each in wide]
        return self.tape.run([x, *sums], size, [*([x] if learns else []), *sums], trains=learns)
