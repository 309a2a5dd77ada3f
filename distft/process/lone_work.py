"""Work that one process does while its peers wait: shows that it gets on, also inside libraries that say nothing.

Such work (encoding the data, the digest of a model, a download, the export) may take hours, so no limit in seconds can
tell it from a hang. What tells is whether it gets on: it counts that it moves (`pulse.moving`), or its threads use the
CPU or read and write. Threads that serve the peers do not count, because they do so while the work hangs. Work in
child processes is not seen: it has to count its moves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distft.process import pulse

LOOK_SECONDS = 1.0
LEAST_TICKS = 2  # of CPU time between two looks, 10 ms each
LEAST_BYTES = 4096  # read or written between two looks

SERVICES = ("pt_", "gloo_", "NCCL", "cuda-")  # names of threads: torch's store and groups, NCCL, CUDA
_TASKS = Path("/proc/self/task")


class Activity:
    """CPU time and bytes of a process's threads, less those that serve its peers: by their names, and threads of Python
    that were there before. Pools of threads that libraries have made earlier count. Linux."""

    def __init__(self) -> None:
        mine = threading.get_native_id()
        self._bystanders = {one.native_id for one in threading.enumerate()} - {mine}
        self._seen = {thread: _used(thread) for thread in self._workers()}

    def ignore_this_thread(self) -> None:
        self._bystanders.add(threading.get_native_id())

    def _workers(self) -> set[int]:
        return {thread for thread in _threads() - self._bystanders if not _name(thread).startswith(SERVICES)}

    def went_on(self) -> bool:
        """Whether there was any since this was asked last."""
        now = {thread: _used(thread) for thread in self._workers()}
        ticks = transferred = 0
        for thread, used in now.items():
            before = self._seen.get(thread, (0, 0))
            ticks += max(0, used[0] - before[0])  # less than before: it has ended, or another one has its number
            transferred += max(0, used[1] - before[1])
        self._seen = now
        return ticks >= LEAST_TICKS or transferred >= LEAST_BYTES


def _threads() -> set[int]:
    return {int(entry.name) for entry in _TASKS.iterdir()}


def _name(thread: int) -> str:
    try:
        return (_TASKS / str(thread) / "comm").read_text()
    except OSError:
        return ""


def _used(thread: int) -> tuple[int, int]:
    """Clock ticks of CPU time, and bytes read and written; zeros if the thread has ended."""
    try:
        fields = (_TASKS / str(thread) / "stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
    except OSError:
        return 0, 0
    try:
        lines = (_TASKS / str(thread) / "io").read_text().splitlines()
    except OSError:  # a kernel that does not count
        return ticks, 0
    return ticks, sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar", "read_", "write_")))


@contextmanager
def lone_work(tell: Callable[[int], None] = lambda moves: None) -> Iterator[None]:
    """Within, the pulse moves as long as the work does.

    Args:
        tell: is given a number that has grown whenever the work has moved, about once a second.
    """
    ended, activity = threading.Event(), Activity()

    def look() -> None:
        activity.ignore_this_thread()
        counted = pulse.moves()
        while not ended.wait(LOOK_SECONDS):
            if activity.went_on():
                pulse.moving()
            if pulse.moves() != counted:
                counted = pulse.moves()
                tell(counted)

    thread = threading.Thread(target=look, name="lone work", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
