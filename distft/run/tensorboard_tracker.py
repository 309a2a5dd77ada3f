"""The only file that knows TensorBoard: one event file in RUN/tensorboard, which shows one gapless curve.

A file is made whole from metrics.jsonl when an attempt begins, and again when a step is repeated. The older file is
emptied when the new one is in place, and removed when the next attempt begins: a TensorBoard without its data server
waits for ever for a file that is gone, and goes on to the next one from a file that has ended.

The records go through TensorBoard's own writer, one event per record and without torch: torch's `SummaryWriter` makes
an event per value, which takes several times as long and twice the space.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from distft.run.files import complete_file
from distft.run.folder import RunDir, this_host
from distft.run.records import MetricsRecord, kind, latest

NOT_DRAWN = {"step", "time", "attempt"}  # keys of all records that are no figures


class TensorBoardTracker:
    """
    Args:
        lines: of metrics.jsonl, those there are before the first record that is logged here.
    """

    def __init__(self, run: RunDir, lines: int) -> None:
        self._run, self._lines = run, lines
        self._folder = run.path / "tensorboard"
        self._folder.mkdir(exist_ok=True)
        for file in self._files():
            if file.stat().st_size == 0:
                file.unlink()
        self._newest: dict[str, int] = {}  # step of the last record of each kind
        self._writer = self._rewrite()

    def log(self, record: MetricsRecord) -> None:
        self._lines += 1
        if int(record["step"]) <= self._newest.get(kind(record), -1):
            self._writer.close()
            self._writer = self._rewrite()  # this record is among those in metrics.jsonl
        else:
            self._write(self._writer, record)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()

    def _rewrite(self) -> Any:
        """A writer that appends to a new file, in which all is that counts so far. All other files are emptied."""
        old = self._files()
        path = self._folder / f"events.out.tfevents.{self._number(old):010d}.{this_host()}"
        self._newest = {}
        with complete_file(path) as temporary:
            writer = writer_to(temporary)
            writer.write(file_version())
            writer.write(all_before_is_void())
            for record in latest(self._run.records(self._lines)):
                self._write(writer, record)
            writer.close()
        for file in old:
            os.truncate(file, 0)
        return writer_to(path)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*tfevents*"))

    def _number(self, old: list[Path]) -> int:
        """TensorBoard reads files in the order of their names: now, in seconds, but above all that are there."""
        numbers = [int(part) for file in old for part in file.name.split(".") if part.isdecimal() and len(part) == 10]
        return max([int(time.time()), *(number + 1 for number in numbers)])

    def _write(self, writer: Any, record: MetricsRecord) -> None:
        self._newest[kind(record)] = int(record["step"])
        if figures := drawn(record):
            writer.write(event(record, figures))


def drawn(record: MetricsRecord) -> dict[str, float]:
    """The figures of a record by their tag; texts and lists are none."""
    return {
        key: float(value)
        for key, value in record.items()
        if key not in NOT_DRAWN and isinstance(value, int | float) and not isinstance(value, bool)
    }


def writer_to(path: Path) -> Any:
    from tensorboard.summary.writer.record_writer import RecordWriter

    return RecordWriter(open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)))


def file_version() -> bytes:
    """What an event file begins with."""
    from tensorboard.compat.proto.event_pb2 import Event

    content: bytes = Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
    return content


def all_before_is_void() -> bytes:
    """A TensorBoard that is open forgets what it has read of older files."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    log = SessionLog(status=SessionLog.START)
    content: bytes = Event(wall_time=time.time(), step=0, session_log=log).SerializeToString()
    return content


def event(record: MetricsRecord, figures: dict[str, float]) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
    made = Event(wall_time=record["time"], step=int(record["step"]), summary=Summary(value=values))
    content: bytes = made.SerializeToString()
    return content
