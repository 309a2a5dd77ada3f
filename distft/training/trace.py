"""A trace of torch's profiler, read from its file one event at a time: what ran on which thread, and on the device."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LABEL = "distft: "  # begins the names of our own spans
STEP = LABEL + "step"
_HOST = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"}
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_GAP = re.compile(r"[\s,]*")
_EVERY = 20_000  # events between two signs of life


class Event(NamedTuple):
    """Seconds are of the trace's own clock.

    Attributes:
        sequence: of the autograd node that an operation makes or evaluates; -1: none.
        forward_thread: autograd's number of the thread whose forward pass made the node that is evaluated; 0: this is
            no evaluation.
        correlation: the same for a launch on the host and what it has launched; -1: none.
    """

    name: str
    thread: int
    begin: float
    end: float
    sequence: int = -1
    forward_thread: int = 0
    correlation: int = -1


@dataclass
class Trace:
    """
    Attributes:
        host: by thread.
        works: collectives of gloo in flight, which threads of its own carry out.
        device: kernels and copies of all streams.
    """

    host: dict[int, list[Event]] = field(default_factory=dict)
    works: list[Event] = field(default_factory=list)
    device: list[Event] = field(default_factory=list)

    @property
    def main(self) -> int:
        """The thread that trains."""
        return next(thread for thread, events in self.host.items() if any(event.name == STEP for event in events))


def read_trace(path: Path, alive: Callable[[], None] = lambda: None) -> Trace:
    """
    Args:
        alive: is called now and then.

    Raises:
        ValueError: it is no such trace.
    """
    found, zero = Trace(), 0.0
    for number, raw in enumerate(_objects(path)):
        if number % _EVERY == 0:
            alive()
        kind = raw.get("cat")
        if raw.get("ph") != "X" or not (kind in _HOST or kind in _DEVICE):
            continue
        zero = zero or raw["ts"]
        event = _event(raw, zero)
        if kind in _DEVICE:
            found.device.append(event)
        elif event.name.startswith("gloo:"):
            found.works.append(event)
        else:
            found.host.setdefault(event.thread, []).append(event)
    for events in (*found.host.values(), found.works, found.device):
        events.sort(key=lambda event: (event.begin, -event.end))
    if not any(event.name == STEP for events in found.host.values() for event in events):
        raise ValueError(f"the trace {path.name} holds no step")
    return found


def _event(raw: dict[str, Any], zero: float) -> Event:
    """Times are from `zero`: an event ends exactly when the next one begins, if the trace says so."""
    about = raw.get("args", {})
    return Event(
        name=sys.intern(raw["name"]),
        thread=int(raw["tid"]),
        begin=1e-6 * (raw["ts"] - zero),
        end=1e-6 * (raw["ts"] + raw["dur"] - zero),
        sequence=about.get("Sequence number", -1),
        forward_thread=about.get("Fwd thread id", 0),
        correlation=about.get("correlation", -1),
    )


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """Those of the list of events, one by one: together they take ten times the room of their text."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        text = file.read()
    found = re.search(r'"traceEvents"\s*:\s*\[', text)
    if found is None:
        raise ValueError(f"{path.name} is no trace")
    decoder, at = json.JSONDecoder(), found.end()
    while True:
        at = gap.end() if (gap := _GAP.match(text, at)) else at
        if text[at : at + 1] in ("]", ""):
            return
        one, at = decoder.raw_decode(text, at)
        yield one
