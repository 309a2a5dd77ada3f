"""The lease of a run: one attempt may write at a time, by flock on a machine and a lease between machines.

`lock` is held with flock and falls with its last holder; that is enough on one machine. Between machines it is not:
locks cross some file systems and not others, and a node that was cut off keeps its processes, and its lock, while the
scheduler already runs the next attempt elsewhere. So `lease.json` names the holder, who renews it. Whoever takes it
over writes another token, and an attempt that no longer finds its own token there may record and commit nothing.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from distft.errors import RunFailed, UserError
from distft.run.files import write_atomically
from distft.run.folder import RunDir, this_host

RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0  # not renewed for so long: its holder is gone
POLL_SECONDS = 0.5
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


def new_token() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Lease:
    """The content of lease.json. `port` 0: the ranks of this holder cannot meet yet."""

    host: str
    pid: int
    job: str | None = None  # of the scheduler
    restart: int = 0  # how often the scheduler has started that job again
    attempt: int = 0
    address: str = ""  # where the ranks of the attempt meet
    port: int = 0
    ranks: int = 0  # per node
    token: str = field(default_factory=new_token)
    released: bool = False

    def __str__(self) -> str:
        job = f"job {self.job}, restart {self.restart}, " if self.job else ""
        process = f"{job}process {self.pid} on {self.host}"
        return f"attempt {self.attempt} ({process})" if self.attempt else process


class Held:
    """The lease while it is ours."""

    def __init__(self, run: RunDir, lease: Lease, lock: int) -> None:
        self.run, self.lease, self.lock = run, lease, lock
        self._renewed = time.monotonic()

    def publish(self, attempt: int, address: str, port: int, ranks: int) -> None:
        """Tell the other nodes of this attempt where its ranks meet, and how many there are per node."""
        self.check()
        self.lease = dataclasses.replace(self.lease, attempt=attempt, address=address, port=port, ranks=ranks)
        _write(self.run, self.lease)

    def change_token(self) -> None:
        """Fence off the ranks of the attempt before: wherever they live on, they find another token."""
        self.check()
        self.lease = dataclasses.replace(self.lease, token=new_token(), address="", port=0)
        _write(self.run, self.lease)

    def check(self) -> None:
        """Raises RunFailed where another attempt has taken over."""
        Fence(self.run, self.lease.token).check()

    def renew(self) -> None:
        """Show that the holder lives; cheap enough to call in every turn of a loop.

        Raises:
            RunFailed: another attempt has taken over.
        """
        if time.monotonic() - self._renewed > RENEW_SECONDS:
            self._renewed = time.monotonic()
            self.check()
            os.utime(_path(self.run))

    def release(self) -> None:
        if (found := read_lease(self.run)) and found.token == self.lease.token:
            with suppress(OSError):  # a full disk; it will go stale
                _write(self.run, dataclasses.replace(self.lease, released=True))


@dataclass(frozen=True)
class Fence:
    """What a rank asks before it records or commits. `token` None: nobody else is expected (tests)."""

    run: RunDir
    token: str | None

    def check(self) -> None:
        """Raises RunFailed where another attempt has taken over."""
        if self.token is None:
            return
        found = read_lease(self.run)
        if found is None and not self.run.path.exists():
            raise RunFailed(f"{self.run.path} has disappeared; restore it and run the same command again")
        if found is None or found.token != self.token:
            who = str(found) if found else "another process"
            raise RunFailed(f"{who} has taken over {self.run.path}; nothing more is written by this attempt")


def read_lease(run: RunDir) -> Lease | None:
    """The lease in a run folder, if there is one. A damaged one counts as none: the lock and renewal decide."""
    try:
        return Lease(**json.loads(_path(run).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def renewed_at(run: RunDir) -> float:
    """When the holder last showed that it lives, by the clock of the file system; 0.0 if there is no lease."""
    try:
        return _path(run).stat().st_mtime
    except OSError:
        return 0.0


def alive(run: RunDir) -> bool:
    """Whether an attempt is at work in this folder, here or elsewhere."""
    lease = read_lease(run)
    if lease is not None and not lease.released and lease.host != this_host():
        return _seconds_since_renewal(run) < STALE_SECONDS
    try:
        descriptor = os.open(run.path / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    except PermissionError:  # somebody else's run
        return lease is not None and not lease.released and _seconds_since_renewal(run) < STALE_SECONDS
    try:
        locked = try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
    return not locked if locked is not None else lease is not None and _lives(run, lease)


@contextmanager
def hold_run(
    run: RunDir,
    job: str | None = None,
    restart: int = 0,
    patience: float = 0.0,
    is_over: Callable[[str], bool] = lambda job: False,
) -> Iterator[Held]:
    """Hold a run. The descriptor of its lock is handed to the ranks, so that it outlives a killed parent.

    Args:
        patience: seconds to wait for another holder.
        is_over: whether the scheduler says that a job has ended; its lease then counts no more.

    Raises:
        UserError: another attempt holds it; the message names that attempt.
    """
    descriptor = os.open(run.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + patience
        while (holder := _in_the_way(run, descriptor, job, restart, is_over)) is not None:
            if time.monotonic() >= deadline:
                raise UserError(f"{run.path} is in use by {holder}; wait for it or stop it first")
            time.sleep(POLL_SECONDS)
        lease = Lease(host=this_host(), pid=os.getpid(), job=job, restart=restart)
        _write(run, lease)
        held = Held(run, lease, descriptor)
        try:
            yield held
        finally:
            held.release()
    finally:
        os.close(descriptor)


def _in_the_way(
    run: RunDir, descriptor: int, job: str | None, restart: int, is_over: Callable[[str], bool]
) -> str | None:
    """Who else holds the run, in words; None where it may be taken."""
    lease = read_lease(run)
    if lease is not None and lease.job is not None and lease.job == job and lease.restart < restart:
        try_lock(descriptor, fcntl.LOCK_EX)  # the scheduler gave that attempt up; one that lives on is fenced off
        return None
    locked = try_lock(descriptor, fcntl.LOCK_EX)
    if locked is False:
        return str(lease) if lease is not None and not lease.released else "another process that has just started"
    if lease is None or lease.released:
        return None
    if lease.host == this_host():
        return str(lease) if locked is None and _lives(run, lease) else None
    if lease.job is not None and is_over(lease.job):
        return None
    return str(lease) if _seconds_since_renewal(run) < STALE_SECONDS else None


def try_lock(descriptor: int, how: int) -> bool | None:
    """Whether the lock is ours now; None where this file system has no locks."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _lives(run: RunDir, lease: Lease) -> bool:
    """Without a lock: whether the holder on this machine is at work, by its process and its renewals."""
    there = Path(f"/proc/{lease.pid}").exists() and lease.pid != os.getpid()
    return not lease.released and there and _seconds_since_renewal(run) < STALE_SECONDS


def _path(run: RunDir) -> Path:
    return run.path / "lease.json"


def _write(run: RunDir, lease: Lease) -> None:
    write_atomically(_path(run), json.dumps(dataclasses.asdict(lease), indent=1) + "\n")


def _seconds_since_renewal(run: RunDir) -> float:
    """By the clock of the file system: those of two nodes may differ."""
    probe = run.path / f".clock.{this_host()}.{os.getpid()}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
    except OSError:  # a folder we may only read
        now = time.time()
    try:
        return now - _path(run).stat().st_mtime
    except OSError:
        return STALE_SECONDS
