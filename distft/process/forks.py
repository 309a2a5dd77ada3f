"""Forks: pieces of work in child processes, which share what was made before and end with their parent."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from distft.errors import RunFailed, UserError
from distft.process import environment, lifetime, pulse, stop_signals

GRACE_SECONDS = 10.0  # between the word to stop and a kill
POLL_SECONDS = 0.01

Work = Callable[[Callable[[], None]], None]
"""Is given what raises `Stopped` when it is to stop."""


class Stopped(Exception):
    """The parent has no more use for this work, or has died."""


class Forks:
    """Children of this process, each with one piece of work.

    A child hears stop signals from its parent only, so that whoever signals a whole process group stops them once. It
    runs on one thread: those of its parent are lost in a fork, and it must use no GPU.
    """

    def __init__(self) -> None:
        self._ear, self._mouth = os.pipe()  # closing the mouth says stop, as the parent's death does
        self._outcomes: dict[int, tuple[int, int]] = {}  # of a child: the key of its work, a file in memory

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._mouth)
        patience = time.monotonic() + GRACE_SECONDS
        while self._outcomes and time.monotonic() < patience:
            for _ in self.ended():
                pass
            time.sleep(POLL_SECONDS)
        for child, (_, outcome) in self._outcomes.items():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(outcome)
        self._outcomes.clear()
        os.close(self._ear)

    def __len__(self) -> int:
        """How many are at work."""
        return len(self._outcomes)

    def start(self, key: int, work: Work) -> None:
        outcome, parent = os.memfd_create("outcome"), os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        with without_tokenizer_threads():
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = self._work(work, outcome, parent)
                finally:
                    os._exit(code)
        self._outcomes[child] = key, outcome

    def _work(self, work: Work, outcome: int, parent: int) -> int:
        try:
            os.close(self._mouth)
            os.environ[environment.PARENT] = str(parent)
            lifetime.die_with_parent()
            lifetime.name("distft-child")
            pulse.silence()
            gc.freeze()  # what was made before stays: to look at it would copy the memory that is shared
            for number in stop_signals.SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            if "torch" in sys.modules:  # OpenMP's threads do not survive a fork
                sys.modules["torch"].set_num_threads(1)
            work(self._check)
            return 0
        except Stopped:
            return 0
        except BaseException as error:  # noqa: BLE001 - the parent raises it
            os.write(outcome, json.dumps(_told(error)).encode())
            return 1

    def _check(self) -> None:
        if select.select([self._ear], [], [], 0)[0]:
            raise Stopped

    def ended(self) -> Iterator[tuple[int, Exception | None]]:
        """Works that have ended since this was asked last: their keys, and what they raised."""
        for child, (key, outcome) in list(self._outcomes.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                del self._outcomes[child]
                yield key, _error(outcome, os.waitstatus_to_exitcode(status))


def _told(error: BaseException) -> dict[str, object]:
    if isinstance(error, UserError):
        return {"refused": str(error)}
    if isinstance(error, OSError):
        return {"errno": error.errno, "strerror": error.strerror, "filename": str(error.filename or "")}
    return {"failed": "".join(traceback.format_exception(error))}


def _error(outcome: int, code: int) -> Exception | None:
    with os.fdopen(outcome, "rb") as file:
        file.seek(0)
        content = file.read()
    told = json.loads(content) if content else {}
    if code == 0:
        return None
    if "refused" in told:
        return UserError(told["refused"])
    if "errno" in told:
        return OSError(told["errno"], told["strerror"], told["filename"] or None)
    if code < 0:
        return RunFailed(
            f"a child process was killed by {signal.Signals(-code).name}, by the system if memory ran out; "
            "run the same command again"
        )
    return RuntimeError(f"a child process failed:\n{told.get('failed', f'exit code {code}')}")


@contextmanager
def without_tokenizer_threads() -> Iterator[None]:
    """The library `tokenizers` looks at this variable when it is forked; its threads are lost too."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
