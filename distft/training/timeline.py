"""The time of a thread in a trace, divided by what it was at work on: the part of a step, and whether it computed.

A part comes from our own spans, which nest: phases of a step (`profile.Profile.phase`), and within forward passes those
of modules. In a backward pass it comes from the span in which the autograd node was made that is being evaluated, and
of what is computed again there from the spans of the modules.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from distft.run import profile
from distft.training.trace import LABEL, STEP, Event, Trace

MODEL, REST, HEAD = "model", "rest", "head"  # spans of modules, beside profile.ATTENTION
OPERATION, COLLECTIVE, NEITHER = "operation", "collective", "neither"
_UNDIVIDED = {profile.DATA, profile.OPTIMIZER, profile.CHECKPOINT, profile.EVALUATION, profile.BACKWARD}
_EVALUATES = "autograd::engine::evaluate_function"
_BACKWARD = {profile.ATTENTION: profile.ATTENTION_BACKWARD, profile.LOSS: profile.LOSS_BACKWARD}
_FORWARD = {
    "": profile.LOSS,  # outside the model: what is made of its output
    MODEL: profile.FORWARD,
    REST: profile.FORWARD,
    HEAD: profile.LOSS,
    profile.ATTENTION: profile.ATTENTION,
}


class Segment(NamedTuple):
    """A stretch of time. `state`: what its innermost event is: an operation, a collective, or neither of them."""

    begin: float
    end: float
    part: str
    state: str


class _Frame(NamedTuple):
    """An event that has not ended. `phase`: of the step."""

    end: float
    phase: str
    part: str
    state: str


class Timelines:
    """Those of a trace. Beside the thread that trains there is autograd's on a GPU, and others that move batches."""

    def __init__(self, trace: Trace) -> None:
        self._made: dict[tuple[int, int], str] = {}  # parts of autograd nodes, by thread and sequence number
        self._main = trace.main
        evaluated = (one for events in trace.host.values() for one in events if one.forward_thread)
        first = min(evaluated, key=lambda one: one.begin, default=None)
        self._forward_thread = first.forward_thread if first else 0  # of the main thread, in autograd's numbers
        lines = {self._main: list(self._line(trace.host[self._main], profile.OTHER))}
        for thread, events in trace.host.items():
            if thread != self._main:
                evaluates = any(event.name.startswith(_EVALUATES) for event in events)
                lines[thread] = list(self._line(events, profile.BACKWARD if evaluates else profile.DATA))
        self.main: Sequence[Segment] = lines[self._main]
        self._lookups = {thread: Lookup(line) for thread, line in lines.items()}
        self._launches = {
            event.correlation: (thread, event.begin)
            for thread, events in trace.host.items()
            for event in events
            if event.correlation >= 0
        }

    def part_at(self, moment: float) -> str:
        """Of the main thread."""
        return self._lookups[self._main].part(moment)

    def part_of_launch(self, work: Event) -> str:
        """Of what launched a kernel or copy."""
        thread, moment = self._launches.get(work.correlation, (self._main, None))
        return self._lookups[thread].part(moment) if moment is not None else profile.OTHER

    def _line(self, events: Sequence[Event], outside: str) -> Iterator[Segment]:
        """
        Args:
            outside: the phase of what no span of the thread is around.
        """
        stack = [_Frame(float("inf"), outside, outside, NEITHER)]
        reached = float("-inf")
        for event in events:
            while stack[-1].end <= event.begin:
                ended = stack.pop()
                yield Segment(reached, ended.end, ended.part, ended.state)
                reached = ended.end
            if event.begin > reached:
                yield Segment(reached, event.begin, stack[-1].part, stack[-1].state)
                reached = event.begin
            stack.append(self._frame(event, stack[-1]))
        while len(stack) > 1:
            ended = stack.pop()
            yield Segment(reached, ended.end, ended.part, ended.state)
            reached = ended.end

    def _frame(self, event: Event, around: _Frame) -> _Frame:
        end = min(event.end, around.end)
        if event.name.startswith(LABEL):
            phase, part = self._of_span(event.name.removeprefix(LABEL), around)
            return _Frame(end, phase, part, NEITHER)
        phase, part = around.phase, around.part
        if event.forward_thread and event.name.startswith(_EVALUATES) and phase == profile.BACKWARD:
            made_on = self._main if event.forward_thread == self._forward_thread else event.thread
            part = _BACKWARD.get(self._made.get((made_on, event.sequence), ""), profile.BACKWARD)
        elif event.sequence >= 0 and not event.forward_thread:
            # several operations have the number of a node; the last one to begin is the one that makes it
            self._made[event.thread, event.sequence] = _forward_of(part)
        return _Frame(end, phase, part, _state(event.name, around))

    @staticmethod
    def _of_span(name: str, around: _Frame) -> tuple[str, str]:
        """(phase, part) within one of our spans."""
        if name == STEP.removeprefix(LABEL):
            return profile.OTHER, profile.OTHER
        if name == profile.FORWARD:
            return name, profile.LOSS
        if name in _UNDIVIDED:
            return name, name
        part = around.part
        if around.phase == profile.FORWARD:
            part = _FORWARD[name]
        elif around.phase == profile.BACKWARD:
            part = _BACKWARD.get(_FORWARD[name], profile.BACKWARD)
        return around.phase, part


def _forward_of(part: str) -> str:
    """What a part of a backward pass is called in the forward pass that is done again there."""
    return next((forward for forward, backward in _BACKWARD.items() if backward == part), part)


def _state(name: str, around: _Frame) -> str:
    space, found, _ = name.partition("::")
    if space == "c10d" or around.state == COLLECTIVE:
        return COLLECTIVE
    return OPERATION if found and space not in ("autograd", "torch", "profiler") else NEITHER


class Lookup:
    """The part of a thread at a moment."""

    def __init__(self, line: Sequence[Segment]) -> None:
        self._line = line
        self._begins = [segment.begin for segment in line]

    def part(self, moment: float) -> str:
        index = bisect_right(self._begins, moment) - 1
        if index < 0 or moment >= self._line[index].end:
            return profile.OTHER
        return self._line[index].part


def joined(line: Iterable[Segment]) -> Iterator[Segment]:
    """With neighbours of the same kind as one."""
    last: Segment | None = None
    for one in line:
        if last is not None and last.end == one.begin and (last.part, last.state) == (one.part, one.state):
            last = last._replace(end=one.end)
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last
