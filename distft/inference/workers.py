"""The worker processes of `distft predict` and `distft eval`, started here or by srun."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distft.errors import RunFailed, UserError
from distft.process import environment
from distft.process.devices import allocator_settings
from distft.process.interpreter import running

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 300.0  # with ranks that something else starts, and that may come late or never
STARTED_HERE = environment.PASS  # in the environment of ranks whose parent puts the parts together
CHECKPOINT = environment.CHECKPOINT  # and the one that their parent chose


UNSET = "unset RANK LOCAL_RANK WORLD_SIZE"
STARTERS = (
    *("SLURM_PROCID", "TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MPI_LOCALRANKID"),
    *("FLUX_TASK_RANK", "JSM_NAMESPACE_RANK", "KUBERNETES_SERVICE_HOST"),
)  # what those set in the environment of a process who start several


def rank_and_world() -> tuple[int, int] | None:
    """Of a process that somebody else starts several times; None for one that is alone, or starts the others.

    Raises:
        UserError: the variables that say so are no numbers, or nothing is seen of who would start the others.
    """
    if "RANK" not in os.environ:
        return None
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        raise UserError(
            f"RANK is set, so RANK and WORLD_SIZE must both be numbers; if it is left over: `{UNSET}`"
        ) from None
    if world > 1 and STARTED_HERE not in os.environ and not started_among_others():
        raise UserError(
            f"RANK is {rank} and WORLD_SIZE {world}, but nothing like srun, torchrun or mpirun has started this "
            f"process, so it would wait in vain for other ranks; if these variables are left over: `{UNSET}`, and "
            "have distft start the ranks (--nproc)"
        )
    return rank, world


def started_among_others() -> bool:
    """Whether a program that starts several processes has started this one; a shell within srun is a single task."""
    alone = os.environ.get("SLURM_STEP_NUM_TASKS") == "1"
    return any(name in os.environ for name in STARTERS if not (alone and name == "SLURM_PROCID"))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep others from working in `folder`; for the process that puts the parts together.

    Raises:
        UserError: another one is at it.
    """
    if (rank_and_world() or (0, 1))[0] > 0 or STARTED_HERE in os.environ:
        yield
        return
    path = folder.with_name(f"{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another command is using {folder}; wait for it or stop it first") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def start_workers(nproc: int, part: str | None, checkpoint: Path | None, shards: int = 1) -> None:
    """This very command, several times; of several tasks for `part` alone. All use the checkpoint that is named: a run
    that still trains makes others.

    Args:
        shards: how many of them hold a model together.

    Raises:
        RunFailed: one of them was killed.
    """
    threads = max(1, (os.cpu_count() or 1) // nproc)
    common = {
        **allocator_settings(os.environ),
        **os.environ,
        "WORLD_SIZE": str(nproc),
        environment.PARENT: str(os.getpid()),
        STARTED_HERE: "1",
    }
    common.setdefault("OMP_NUM_THREADS", str(threads))
    if checkpoint is not None:
        common[CHECKPOINT] = str(checkpoint)
    common[environment.SHARDS] = str(shards)
    door = socket.create_server(("127.0.0.1", 0))  # where the ranks meet: rank 0 is given it, so the port stays ours
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(door.getsockname()[1])}
    common[environment.LISTEN_FD] = str(door.fileno())
    command = [sys.executable, *running("distft", *sys.argv[1:], *(["--task", part] if part else []))]
    with door:
        ranks = [
            subprocess.Popen(
                command,
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                pass_fds=[door.fileno()] if rank == 0 else [],
            )
            for rank in range(nproc)
        ]
    try:
        while any(rank.poll() is None for rank in ranks):
            check_codes([rank.poll() for rank in ranks])
            time.sleep(POLL_SECONDS)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    check_codes([rank.returncode for rank in ranks])


def check_codes(codes: Sequence[int | None]) -> None:
    """Raises RunFailed if a rank was killed, and SystemExit if one has failed and said why."""
    killed = [(rank, -code) for rank, code in enumerate(codes) if code is not None and code < 0]
    for rank, number in killed[:1]:
        raise RunFailed(
            f"rank {rank} was killed ({signal.Signals(number).name}; SIGKILL is what happens when memory runs out), "
            "so all ranks have ended; run the same command again, which goes on where it was"
        )
    if bad := [code for code in codes if code]:
        raise SystemExit(max(bad))  # of one that lost another it is 1


def wait_for(happened: Callable[[], bool]) -> bool:
    """Whether it has, before patience is at its end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
