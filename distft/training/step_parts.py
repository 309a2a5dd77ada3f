"""From a trace to the parts of a step's time: each instant of a profiled step belongs to one part, so they add up.

On a CPU the main thread decides (`timeline`). It is in a collective when it is inside one, or runs no operation while
gloo works; the time of data, checkpoints and evaluations stays theirs.

On a GPU the device decides: a kernel or copy belongs to the part that launched it, also if a collective runs beside it.
With only collectives running it is communication. With nothing running the host decides: in data, a checkpoint, an
evaluation or a collective of gloo it is that; otherwise the device waits for work to be launched. That was never run
on a GPU: none was at hand.
"""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from distft.run import profile
from distft.training.timeline import COLLECTIVE, OPERATION, Segment, Timelines, joined
from distft.training.trace import STEP, Event, Trace

_KEPT = {profile.DATA, profile.CHECKPOINT, profile.EVALUATION}  # by the host: of it nothing goes to communication
Interval = tuple[float, float]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Taken:
    """A collective: how long it took on this rank, and how much of that nothing else was done."""

    name: str
    seconds: float
    exposed: float


@dataclass
class Parts:
    """Of one rank.

    Attributes:
        seconds: by part, of all profiled steps. That of collectives is communication, the waiting in them too.
        collectives: in their order.
        host_waits: how long the host waited for the device, which is no part of its own.
    """

    seconds: dict[str, float]
    collectives: list[Taken] = field(default_factory=list)
    host_waits: float = 0.0

    @property
    def digest(self) -> str:
        """The same on ranks that have done the same collectives in the same order."""
        return hashlib.sha256("\n".join(one.name for one in self.collectives).encode()).hexdigest()

    def waited(self, least: Sequence[float]) -> float:
        """How long this rank was early. In a collective it waits as much longer as another rank comes later.

        Args:
            least: the seconds of each collective on the rank that came last, and so waited for nobody.
        """
        pairs = zip(self.collectives, least, strict=True)
        return sum(min(one.exposed, max(0.0, one.seconds - shortest)) for one, shortest in pairs)


def parts_of(trace: Trace) -> Parts:
    host, lines = trace.host[trace.main], Timelines(trace)
    steps = [(event.begin, event.end) for event in host if event.name == STEP]
    free = Free(steps)
    computing = [event for event in trace.device if not _talks(event)]
    talking = [event for event in trace.device if _talks(event)]
    line = list(joined(lines.main))
    names, blocked = _blocked(line, trace, lines, steps[0][0])
    seconds = dict.fromkeys(profile.PARTS, 0.0)
    seconds |= free.take((event.begin, event.end, lines.part_of_launch(event)) for event in computing)
    by_device = free.take((event.begin, event.end, number) for number, event in enumerate(talking))
    by_host = free.take(blocked)
    for part, rest in free.take((one.begin, one.end, one.part) for one in line).items():
        idle = trace.device and part not in {*_KEPT, profile.OTHER}
        seconds[profile.LAUNCHING if idle else part] += rest
    seconds[profile.OTHER] += free.left
    seconds[profile.COMMUNICATION] += sum(by_device.values()) + sum(by_host.values())
    lengths: defaultdict[int, float] = defaultdict(float)
    for begin, end, number in blocked:
        lengths[number] += end - begin
    collectives = [Taken(name, lengths[number], by_host.get(number, 0.0)) for number, name in enumerate(names)]
    for number, event in enumerate(talking):
        collectives.append(Taken(event.name.partition("(")[0], event.end - event.begin, by_device.get(number, 0.0)))
    waits = [(e.begin, e.end, "host") for e in host if e.correlation >= 0 and "Synchronize" in e.name]
    return Parts(seconds, collectives, Free(steps).take(waits).get("host", 0.0))


def _talks(event: Event) -> bool:
    return "nccl" in event.name.lower()


class Free:
    """Time that nobody has taken yet.

    Args:
        intervals: in their order, apart from each other.
    """

    def __init__(self, intervals: Sequence[Interval]) -> None:
        self._intervals = list(intervals)

    @property
    def left(self) -> float:
        return sum(end - begin for begin, end in self._intervals)

    def take(self, events: Iterable[tuple[float, float, K]]) -> dict[K, float]:
        """Give events (begin, end, key) what is free of their time. Returns the seconds by key.

        Args:
            events: by their beginning; if some lie over each other, the earlier one comes first.
        """
        taken: defaultdict[K, float] = defaultdict(float)
        left: list[Interval] = []
        pieces = iter([*self._intervals, (float("inf"), float("inf"))])
        begin, end = next(pieces)
        for start, stop, key in events:
            while end <= start:
                left.append((begin, end))
                begin, end = next(pieces)
            if begin < start < end:
                left.append((begin, start))
                begin = start
            while begin < stop:
                upto = min(end, stop)
                taken[key] += upto - begin
                begin = upto
                if begin == end:
                    begin, end = next(pieces)
        left.append((begin, end))
        self._intervals = [one for one in [*left, *pieces] if one[0] < one[1]]
        return dict(taken)


def _blocked(
    line: Sequence[Segment], trace: Trace, lines: Timelines, since: float
) -> tuple[list[str], list[tuple[float, float, int]]]:
    """Names of the collectives that the main thread has begun, and when it did nothing but one of them."""
    begun: list[Event] = []
    reached = since
    for event in trace.host[trace.main]:
        if event.name.startswith("c10d::") and event.begin >= reached:  # none within another one
            reached = event.end
            if lines.part_at(event.begin) not in _KEPT:
                begun.append(event)
    begins = [event.begin for event in begun]
    works = _union((work.begin, work.end) for work in trace.works)
    blocked = []
    for one in line:
        number = bisect_right(begins, one.begin) - 1
        if number < 0 or one.part in _KEPT or one.state == OPERATION:
            continue
        found = [(one.begin, one.end)] if one.state == COLLECTIVE else _within(works, one.begin, one.end)
        blocked += [(begin, end, number) for begin, end in found]
    return [event.name for event in begun], blocked


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """
    Args:
        intervals: by their beginning.
    """
    found: list[Interval] = []
    for begin, end in intervals:
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def _within(intervals: Sequence[Interval], begin: float, end: float) -> list[Interval]:
    """What of intervals lies between two moments."""
    first = bisect_right(intervals, begin, key=lambda one: one[1])
    found = []
    for one in itertools.islice(intervals, first, None):
        if one[0] >= end:
            break
        found.append((max(begin, one[0]), min(end, one[1])))
    return found
