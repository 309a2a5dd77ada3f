"""The fork server of a node: it imports torch and DeepSpeed once, then forks the ranks.

Its light parent orders ranks over a socket (DISTFT_FORKSERVER_FD), and is told of their beginning and end. It outlives
an attempt, so that the next one in the same allocation starts without imports.

    order   {"run": "runs/x", "number": 3, "environment": {...}, "files": ["log", ...]}, and those descriptors
    news    {"ready": true}, {"number": 3, "pid": 4711}, {"pid": 4711, "code": 75}
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

from distft.process import environment, lifetime, stop_signals
from distft.process.interpreter import running
from distft.run.commits import recipe_of
from distft.run.folder import RunDir

POLL_SECONDS = 0.02  # between two looks for ranks that have ended
MESSAGE_BYTES = 1 << 16
MOST_FILES = 8


def serve(run_dir: Path) -> int:
    """Fork ranks until the light parent hangs up. Returns in each rank too, with its exit code.

    Raises:
        UserError, RunFailed, Preempted: in a rank; see `distft.errors`.
    """
    lifetime.die_with_parent()
    lifetime.name("distft-fork")
    # CUDA's driver does not survive a fork, so nothing here may wake it; NVML tells as much.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    connection = socket.socket(fileno=int(os.environ.pop(environment.FORKSERVER_FD)))
    import_all(run_dir)
    tell(connection, {"ready": True})
    ranks: set[int] = set()
    while (order := next_order(connection, ranks)) is not None:
        request, files = order
        sys.stdout.flush()
        sys.stderr.flush()
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            connection.close()
            return become_rank(request, files, server)
        for file in files:
            os.close(file)
        ranks.add(pid)
        tell(connection, {"number": request["number"], "pid": pid})
    return 0


def import_all(run_dir: Path) -> None:
    """What ranks of this run will import."""
    gc.disable()  # modules stay; to look for garbage among them is a sixth of the time
    from distft.engine import deepspeed
    from distft.model import adapters, base_model, document_attention  # noqa: F401
    from distft.tasks.registry import specs_of
    from distft.training import final, loop  # noqa: F401

    run = RunDir(run_dir)
    recipe = recipe_of(run)
    deepspeed.imported()
    for spec in specs_of(recipe).values():
        base_model.import_code(recipe.model, spec.model.auto_class)
    adapters.import_code(recipe.adapter)
    gc.freeze()  # nor do the ranks look there, which would copy the memory that they share
    gc.enable()


def next_order(connection: socket.socket, ranks: set[int]) -> tuple[dict[str, Any], list[int]] | None:
    """Wait for an order, and tell meanwhile which ranks have ended. None: the light parent has hung up."""
    while True:
        for pid in sorted(ranks):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                ranks.discard(pid)
                tell(connection, {"pid": pid, "code": os.waitstatus_to_exitcode(status)})
        readable, _, _ = select.select([connection], [], [], POLL_SECONDS if ranks else None)
        if readable:
            message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, MOST_FILES)
            return (json.loads(message), files) if message else None


def tell(connection: socket.socket, news: dict[str, Any]) -> None:
    connection.send(json.dumps(news).encode())


def become_rank(request: dict[str, Any], files: list[int], server: int) -> int:
    """Be the rank that was ordered. Returns its exit code."""
    os.environ.update(request["environment"] | {environment.PARENT: str(server)})
    lifetime.die_with_parent()
    exports = environment.WORK in os.environ
    lifetime.name("distft-export" if exports else f"distft-rank-{request['number']}")
    for name, descriptor in zip(request["files"], files, strict=True):
        if name == "log":
            for standard in (sys.stdout, sys.stderr):
                os.dup2(descriptor, standard.fileno())
            os.close(descriptor)
        else:
            os.environ[name] = str(descriptor)
    if not survived_fork():
        start_afresh(request["run"], files)
    return work(Path(request["run"]))


def work(run_dir: Path) -> int:
    """What this process was started for: a rank's part in an attempt, or the export. Returns its exit code."""
    stop_signals.listen()
    if environment.WORK in os.environ:
        from distft.training.final import write_final

        return write_final(run_dir)
    from distft.training.loop import run_attempt

    return run_attempt(run_dir)


def survived_fork() -> bool:
    """Whether what was imported works in a forked process: no other threads were lost, and CUDA can still be used."""
    import torch

    if len(os.listdir(f"/proc/{os.getppid()}/task")) > 1 or torch.cuda._is_in_bad_fork():
        return False
    if not torch.cuda.is_available():
        return True
    cuda_success = 0
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == cuda_success)
    except OSError:  # a GPU of another maker, of which nothing is known here
        return False


def start_afresh(run_dir: str, files: list[int]) -> None:
    """Do the imports again, in a new program."""
    print("a library started threads or CUDA when it was imported; this rank imports everything itself", flush=True)
    for descriptor in files:
        try:
            os.set_inheritable(descriptor, True)
        except OSError:  # that of the log, which is in its place
            continue
    os.execv(sys.executable, [sys.executable, *running("distft", "train", "--run-dir", run_dir)])
