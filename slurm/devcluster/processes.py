"""Starts processes, remembers them by pid and start time, and ends those and no others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from layout import Failed, Folder

DAEMON_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(command: Sequence[str | Path], *, stdin: str = "", seconds: float = 20, folder: Folder | None = None) -> str:
    """A command's standard output; Failed, with the last it wrote, when it does not end well and in time."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:{DAEMON_PATH}"}
    if folder is not None:
        environment = {key: value for key, value in environment.items() if not key.startswith("SLURM_")}
        environment |= {"SLURM_CONF": str(folder.slurm_conf), "SLURM_TIME_FORMAT": "%s"}
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        raise Failed(f"`{' '.join(words)}` did not end within {seconds:g} seconds") from None
    except OSError as error:
        raise Failed(f"`{words[0]}` cannot be run: {error.strerror}") from None
    if done.returncode:
        raise Failed(f"`{' '.join(words)}` failed: {_last_lines(done.stderr + done.stdout)}")
    return done.stdout


def start(folder: Folder, name: str, command: Sequence[str | Path], **environment: str) -> subprocess.Popen[bytes]:
    """Starts a process that outlives this one, with a bare environment: nothing of the caller's reaches the daemons."""
    settings = {"PATH": DAEMON_PATH, "LC_ALL": "C", "SLURM_CONF": str(folder.slurm_conf), **environment}
    with folder.output(name).open("ab") as log:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env=settings,
        )
    aside = folder.record(name).with_suffix(".new")
    aside.write_text(json.dumps({"pid": child.pid, "started": _stat(child.pid)[1]}))
    aside.rename(folder.record(name))
    return child


def _stat(pid: int) -> tuple[str, int]:
    """A process's state letter and start time in clock ticks since boot; ("", 0) where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[19])


def _runs(pid: int, started: int) -> bool:
    letter, when = _stat(pid)
    return when == started and letter not in ("", "Z", "X")  # this machine's init may never reap: a zombie is dead


def living_pid(folder: Folder, name: str) -> int | None:
    """The recorded process's pid while it runs. A pid that the kernel gave to another process since is not it."""
    try:
        record = json.loads(folder.record(name).read_text())
        pid, started = int(record["pid"]), int(record["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pid if _runs(pid, started) else None


def recorded_names(folder: Folder) -> list[str]:
    return sorted(path.stem for path in (folder.root / "pids").glob("*.json"))


def kill(folder: Folder, names: Sequence[str], seconds: float = 20) -> None:
    """SIGKILL to the recorded processes, their process groups and their children; returns when they are gone.

    The child of a node's `unshare` is the first process of the node's pid namespace: it is gone only when every process
    in there is, so that waiting for it is waiting for the jobs.
    """
    targets: list[tuple[int, int]] = []
    for name in names:
        pid = living_pid(folder, name)
        if pid is not None:
            targets += [(each, _stat(each)[1]) for each in (pid, *_children(pid))]
    for pid, started in targets:
        if _runs(pid, started):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(pid) == pid:
                    os.killpg(pid, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)
    wait_for("the killed processes are gone", lambda: not any(_runs(*target) for target in targets), seconds)
    for name in names:
        folder.record(name).unlink(missing_ok=True)


def kill_jobs_on(folder: Folder, node: str) -> None:
    """SIGKILL to everything in a node but its Slurm daemons and the shell that is its process 1."""
    unshare = living_pid(folder, node)
    firsts = _children(unshare) if unshare is not None else []
    below = [child for first in firsts for child in _children(first)]
    while below:
        pid = below.pop()
        below += _children(pid)
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            if Path(f"/proc/{pid}/comm").read_text().strip() not in ("slurmd", "slurmstepd"):
                os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def wait_for(what: str, test: Callable[[], bool], seconds: float, needs: tuple[Folder, str] | None = None) -> None:
    """Until test() holds. `needs` names the recorded process without which it never will."""
    end = time.monotonic() + seconds
    while not test():
        if needs is not None and living_pid(*needs) is None:
            log = needs[0].output(needs[1])
            raise Failed(f"{needs[1]} ended before {what}: {_last_lines(_tail(log))} (see {log})")
        if time.monotonic() > end:
            where = f" (see {needs[0].output(needs[1])})" if needs is not None else ""
            raise Failed(f"it did not come to pass within {seconds:g} seconds that {what}{where}")
        time.sleep(0.05)


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-2000:]
    except OSError:
        return ""


def _last_lines(text: str) -> str:
    """Two of them: `ip` and others say the cause first and then that they failed."""
    return "; ".join([line.strip() for line in text.splitlines() if line.strip()][-2:]) or "it said nothing"
