"""Starts N gloo ranks of a module on this machine, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]


def run_ranks(module: str, nproc: int, *args: str, timeout: float = 900.0) -> None:
    """Run `python -m module args` as `nproc` ranks; AssertionError with the log of a rank that failed."""
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        logs = [Path(folder) / str(rank) for rank in range(nproc)]
        processes = [start(module, rank, nproc, listener, args, log) for rank, log in enumerate(logs)]
        listener.close()
        deadline = time.monotonic() + timeout
        try:
            while any(process.poll() is None for process in processes):
                assert time.monotonic() < deadline, f"{module} {args} did not end within {timeout} s"
                if any(process.poll() not in (None, 0) for process in processes):
                    time.sleep(2.0)  # the others see a closed connection; what they say of it is not the cause
                    break
                time.sleep(0.05)
            failed = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
            text = logs[failed[0]].read_text(errors="replace")[-6000:] if failed else ""
            assert not failed, f"rank {failed[0]} of {module} {args} failed:\n{text}"
        finally:
            for process in processes:
                process.kill()
                process.wait()


def start(
    module: str, rank: int, nproc: int, listener: socket.socket, args: tuple[str, ...], log: Path
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(listener.getsockname()[1]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DISTFT_PARENT": str(os.getpid()),
    }
    if rank == 0:
        environment["DISTFT_LISTEN_FD"] = str(listener.fileno())
    with open(log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *args],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno()] if rank == 0 else [],
        )
