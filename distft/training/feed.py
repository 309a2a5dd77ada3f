"""The feed: a thread reads and collates the micro-batches of the next step while this one is computed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distft.data.loader import Census, Loader, MicroBatch
from distft.data.records import Document
from distft.errors import UserError
from distft.process import pulse
from distft.tasks.protocol import Learned, collated, foreseen
from distft.tasks.shared.transfer import tensors_of

AHEAD_BYTES = 64 << 20  # of tensors that wait to be used; one micro-batch may wait whatever it takes
END_SECONDS = 5.0  # that the end of a run waits for a thread that is in the middle of a micro-batch


@dataclass(frozen=True)
class Fed:
    """A micro-batch on the device.

    Attributes:
        last: of this rank's in the step.
        sources: which of several each of its documents is from, int64 [documents], there too; None: there is one.
    """

    micro: MicroBatch
    batch: Any
    last: bool
    sources: torch.Tensor | None = None


@dataclass(frozen=True)
class Totals:
    """Comes before the micro-batches of a step.

    Attributes:
        counts: of all ranks' ones; None if nobody can foresee them.
        census: what the loader's index says of them, if it says anything.
    """

    counts: Mapping[str, int] | None
    census: Census | None


Item = Totals | Fed


class Feed:
    """What a step is fed is the loader's affair, so nothing here is saved, and a run that goes back begins anew.

    The thread prepares what is left of this step and then the next one, and not more than `AHEAD_BYTES` before it is
    used. What it runs into is raised in the step that would have used it. Copies to a GPU are queued behind the work
    of the step before, on the same stream: nobody has to wait for them.

    Args:
        steps: how many there are.
        sources: names of the sources of the data, if there are several.
    """

    def __init__(
        self, task: Learned[Any], loader: Loader, device: torch.device, steps: int, sources: Sequence[str] = ()
    ) -> None:
        self._task, self._loader, self._device, self._steps = task, loader, device, steps
        self.sources = sources
        self._line: _Line | None = None

    def step(self, index: int) -> tuple[Totals, Iterable[Fed]]:
        """What is known of the global batch of step `index`, counted from 0, and this rank's micro-batches, which are
        taken to the end before another step."""
        if self._line is None or self._line.next != index:
            self.close()
            self._line = _Line(self._prepared, index, max(self._steps, index + 1))
        items, place = self._line.step(), f"the data of step {index + 1}"
        pulse.at(place)
        totals = next(items)
        assert isinstance(totals, Totals)
        return totals, _announced(items, place)

    def close(self) -> None:
        """End the thread. What it has prepared is forgotten."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _prepared(self, index: int) -> Iterator[Item]:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # each thread has its own
        census = self._loader.census(index)
        yield Totals(None if census is None else foreseen(self._task, census), census)
        micros = list(self._loader.step(index))
        for micro in micros:
            rows = self._loader.documents(micro)
            yield Fed(micro, collated(self._task, rows, self._device), micro is micros[-1], self._sources_of(rows))

    def _sources_of(self, rows: Sequence[Sequence[Document]]) -> torch.Tensor | None:
        if not self.sources:
            return None
        every = [document.source for row in rows for document in row]
        return torch.tensor(every, dtype=torch.int64).to(self._device, non_blocking=True)


def _announced(fed: Iterator[Item], place: str) -> Iterator[Fed]:
    """Passes a place before each one, so that a rank whose data do not come is named."""
    while True:
        pulse.at(place)
        one = next(fed, None)
        if not isinstance(one, Fed):
            return
        yield one


def check(number: int, counts: Mapping[str, float], found: Mapping[str, float]) -> None:
    """Raises UserError if the micro-batches of step `number` are not what the loss of the step was divided by."""
    for name, count in counts.items():
        if found[name] != count:
            raise UserError(
                f"the token cache is damaged: its index has {count:.0f} {name} in step {number}, and its documents "
                f"have {found[name]:.0f}; delete the folder of the token cache (data.cache), and continue from the "
                "last checkpoint"
            )


class _Line:
    """A thread, and what it has prepared, from one step on.

    Attributes:
        next: the step that is taken next.
    """

    def __init__(self, make: Callable[[int], Iterator[Item]], first: int, end: int) -> None:
        self.next = first
        self._make, self._first, self._end = make, first, end
        self._waiting: deque[Item | BaseException | None] = deque()  # None: that was all of a step
        self._bytes, self._closed = 0, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def step(self) -> Iterator[Item]:
        with self._changed:
            self.next += 1
            self._changed.notify_all()
        return self._taken()

    def _taken(self) -> Iterator[Item]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                one = self._waiting.popleft()
                self._bytes -= _size(one)
                self._changed.notify_all()
            if isinstance(one, BaseException):
                raise one
            if one is None:
                return
            yield one

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(END_SECONDS)

    def _run(self) -> None:
        try:
            for index in range(self._first, self._end):
                prepared = self._make(index)
                while self._is_wanted(index) and (item := next(prepared, None)) is not None:
                    self._put(item)
                if self._closed:
                    return
                self._put(None)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where this is waited for
            self._put(error)

    def _is_wanted(self, index: int) -> bool:
        """Waits until there is room for another micro-batch of step `index`, or nobody wants it any more."""

        def room() -> bool:
            return self._closed or (index <= self.next and not (self._waiting and self._bytes >= AHEAD_BYTES))

        with self._changed:
            self._changed.wait_for(room)
            return not self._closed

    def _put(self, one: Item | BaseException | None) -> None:
        with self._changed:
            self._waiting.append(one)
            self._bytes += _size(one)
            self._changed.notify_all()


def _size(one: object) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(one.batch)) if isinstance(one, Fed) else 0
