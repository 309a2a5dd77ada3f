"""A symbolic run: which values a computation keeps for its backward pass, and how many bytes a pass needs at most.

It knows sizes only. Rules are those of autograd: an operation keeps what its derivative is computed from; backward goes
through operations in reverse; a gradient lives until the operation that made its value has used it, and what was kept
until the last operation that kept it is through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Value:
    """A tensor. `size`: its bytes; `learns`: a gradient flows to it; `whole`: what it is a part of, and lives with."""

    size: int
    learns: bool = False
    whole: Value | None = None


@dataclass(frozen=True)
class _Operation:
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    keeps: Sequence[Value]
    work: int
    passes: bool


@dataclass(eq=False)
class _Gradient:
    size: int
    owners: int = 1


@dataclass
class _Backward:
    """Bytes alive during a backward pass, now and at most."""

    live: int
    most: int = 0
    gradients: dict[Value, _Gradient] = field(default_factory=dict)

    def take(self, size: int) -> None:
        self.live += size
        self.most = max(self.most, self.live)

    def release(self, gradient: _Gradient) -> None:
        gradient.owners -= 1
        if not gradient.owners:
            self.live -= gradient.size

    def arrive(self, value: Value, gradient: _Gradient) -> None:
        """Where a value was used twice, the sum of its gradients is a third tensor."""
        if (other := self.gradients.get(value)) is not None:
            self.take(value.size)
            self.release(other)
            self.release(gradient)
            gradient = _Gradient(value.size)
        self.gradients[value] = gradient


class Tape:
    """Operations in the order in which they were run."""

    def __init__(self) -> None:
        self._operations: list[_Operation] = []
        self._lent: list[tuple[int, int]] = []  # (operations before, bytes)
        self._held: dict[Value, int] = {}  # number of the operation until whose end a value has a name

    def lend(self, size: int) -> None:
        """Forward takes so many bytes here, and gives them back."""
        self._lent.append((len(self._operations), size))

    def run(
        self,
        inputs: Iterable[Value],
        size: int,
        keeps: Iterable[Value] = (),
        *,
        keeps_result: bool = False,
        trains: bool = False,
        passes: bool = False,
        work: int = 0,
    ) -> Value:
        """An operation and its result.

        Args:
            size: bytes of the result.
            keeps: what backward needs.
            keeps_result: it needs the result too.
            trains: it has a weight that is trained.
            passes: the gradients of its inputs are that of the result, and no new tensors.
            work: bytes that backward needs for itself.
        """
        given = tuple(inputs)
        result = Value(size, trains or any(value.learns for value in given))
        if result.learns:
            kept = (value.whole or value for value in (*keeps, *([result] if keeps_result else [])))
            self._operations.append(_Operation(given, (result,), tuple(dict.fromkeys(kept)), work, passes))
        return result

    def split(self, value: Value, sizes: Sequence[int]) -> list[Value]:
        """Parts of a value, which take no bytes of their own; their gradients are put together in a new tensor."""
        parts = [Value(size, value.learns, value) for size in sizes]
        if value.learns:
            self._operations.append(_Operation((value,), parts, (), 0, False))
        return parts

    def hold(self, values: Iterable[Value]) -> None:
        """The model's code has names for them until now: in a forward pass that keeps nothing they are alive."""
        self._held.update((value.whole or value, len(self._operations) - 1) for value in values)

    def kept(self, known: Iterable[Value] = ()) -> int:
        """Bytes of all values that are kept, less those that are `known` to be alive anyway."""
        return _size(self._operations, known)

    def lent(self, known: Iterable[Value] = ()) -> int:
        """Most bytes alive in forward while some are lent: what was kept until then, and these; 0: none are."""
        known = set(known)
        return max((_size(self._operations[:before], known) + size for before, size in self._lent), default=0)

    def forward(self, known: Iterable[Value] = ()) -> int:
        """Most bytes alive in a forward pass that keeps nothing: a value lives until the last operation that reads it,
        and what an operation makes for backward until its end. Of operations whose result learns."""
        known = set(known)
        last: dict[Value, int] = {}
        for number, operation in enumerate(self._operations):
            last.update((value.whole or value, number) for value in (*operation.inputs, *operation.outputs))
        last.update((value, max(last[value], number)) for value, number in self._held.items() if value in last)
        live, most, there = 0, 0, set(known)
        for number, operation in enumerate(self._operations):
            made = {value.whole or value for value in operation.outputs} - there
            live += sum(value.size for value in made)
            there |= made
            most = max(most, live + sum(value.size for value in operation.keeps if value not in there))
            over = {value for value in there - known if last[value] == number}
            live -= sum(value.size for value in over)
            there -= over
        return most

    def backward(self, known: Iterable[Value] = ()) -> int:
        """Most bytes alive in backward from the last result: what was kept, gradients, and what operations need."""
        known = set(known)
        if not self._operations:
            return 0
        uses = Counter(value for operation in self._operations for value in operation.keeps)
        run = _Backward(self.kept(known))
        (last,) = self._operations[-1].outputs
        run.take(last.size)
        run.gradients[last] = _Gradient(last.size)
        for operation in reversed(self._operations):
            arrived = [run.gradients.pop(output, None) for output in operation.outputs]
            _step(run, operation, [gradient for gradient in arrived if gradient is not None])
            for value in operation.keeps:
                uses[value] -= 1
                if not uses[value] and value not in known:
                    run.live -= value.size
        return run.most


def _size(operations: Iterable[_Operation], known: Iterable[Value]) -> int:
    values = {value for operation in operations for value in operation.keeps}
    return sum(value.size for value in values.difference(known))


def _step(run: _Backward, operation: _Operation, gradients: Sequence[_Gradient]) -> None:
    """One operation's backward: gradients of its inputs, while that of its result is alive."""
    if not gradients:
        return
    learning = [value for value in operation.inputs if value.learns]
    if operation.passes:
        gradients[0].owners += len(learning)
        made = [gradients[0]] * len(learning)
    else:
        made = [_Gradient(value.size) for value in learning]
        run.take(operation.work + sum(one.size for one in made))
        run.live -= operation.work
    for gradient in gradients:
        run.release(gradient)
    for value, one in zip(learning, made, strict=True):
        run.arrive(value, one)
