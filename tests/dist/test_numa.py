"""Threads that a forked rank starts after it was bound to some cores keep to them too: those of OpenMP."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.dist.launch import ROOT

CORES = sorted(os.sched_getaffinity(0))
RANK = """
import os, re, torch
from pathlib import Path
server = len(os.listdir("/proc/self/task"))
if (pid := os.fork()) == 0:
    os.sched_setaffinity(0, {CORE})
    matrix = torch.ones(600, 600, requires_grad=True)
    torch.exp(torch.ones(1 << 20) * matrix.sum()).sum().backward()
    tasks = list(Path("/proc/self/task").iterdir())
    masks = {re.search(r"Cpus_allowed_list:\\s*(\\S+)", (task / "status").read_text())[1] for task in tasks}
    print(server, len(tasks), *masks, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


@pytest.mark.skipif(len(CORES) < 2, reason="there is one core only")
def test_threads_that_are_started_later_keep_to_the_cores_of_the_rank() -> None:
    variables = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    program = RANK.replace("CORE", str(CORES[1]))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )
    server, threads, *masks = done.stdout.split()
    assert (server, masks) == ("1", [str(CORES[1])])
    assert int(threads) >= 2
