"""`distft submit --check`, once per node: the ranks report where they are, and sum a vector together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from distft.errors import DONE, FAILED, RunFailed, UserError
from distft.process import environment
from distft.process.interpreter import running
from distft.run.files import write_atomically
from distft.run.folder import this_host
from launchers.parent import Claim, Node, rank_environment
from launchers.slurm.node import NodePlace, listen_near, place

MEET_SECONDS = 60.0


def main() -> int:
    here, folder = place(os.environ), Path(os.environ[environment.RUN_DIR])
    ends = (
        f"time limit at {time.strftime('%H:%M:%S', time.localtime(here.ends))}" if here.ends else "time limit unknown"
    )
    print(
        f"{this_host()}: node {here.index + 1} of {len(here.hosts)}, {here.ranks} ranks, Python {sys.executable}, "
        f"{len(os.sched_getaffinity(0))} CPUs, job {here.job}, {ends}; sees {folder.parent}",
        flush=True,
    )
    node = meet(here, folder)
    claim = Claim(attempt=0, token="")
    ranks = []
    for local in range(node.nproc):
        variables = {**rank_environment(node, claim, local), environment.CHECK: str(folder)}
        keep = []
        if node.listener and local == 0:
            variables[environment.LISTEN_FD] = str(node.listener.fileno())
            keep.append(node.listener.fileno())
        ranks.append(
            subprocess.Popen([sys.executable, *running("distft.commands.network_check")], env=variables, pass_fds=keep)
        )
    codes = [rank.wait() for rank in ranks]
    return DONE if not any(codes) else FAILED


def meet(here: NodePlace, folder: Path) -> Node:
    """The first node writes its port into the folder; that the others read it shows that they share it."""
    path = folder / "port"
    if here.leads:
        listener = listen_near(20000 + int(here.job) % 20000)
        write_atomically(path, str(listener.getsockname()[1]))
        return Node(here.ranks, 0, len(here.hosts), here.hosts[0], listener.getsockname()[1], listener)
    deadline = time.monotonic() + MEET_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{this_host()} cannot see what {here.hosts[0]} wrote to {folder}; use a folder that all nodes share"
            )
        time.sleep(0.2)
    return Node(here.ranks, here.index, len(here.hosts), here.hosts[0], int(path.read_text()))


if __name__ == "__main__":
    try:
        code = main()
    except (UserError, RunFailed) as error:
        print(f"distft: error: {error}", flush=True)
        code = FAILED
    sys.exit(code)
