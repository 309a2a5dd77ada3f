"""`distft submit --check`, once per node: the ranks report where they are, sum a vector, and train a small model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import distft
from distft.errors import DONE, FAILED, RunFailed, UserError
from distft.process import environment
from distft.process.interpreter import running
from distft.recipe.load import dump, load_resolved
from distft.recipe.schema import Recipe
from distft.run.files import write_atomically
from distft.run.folder import RunDir, this_host
from launchers.parent import Claim, Node, rank_environment
from launchers.slurm.node import NodePlace, listen_near, place

MEET_SECONDS = 60.0
TIMEOUT_SECONDS = 120  # of a collective
RECIPE, RUN, TRAINED = "recipe.yaml", "run", "trained"  # in the folder of the check
MODEL = {
    "architecture": "llama",
    "vocab_size": 500,
    "config": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
STEPS = 3
LOG_LINES = 15


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
    if here.leads:
        prepare_training(folder, len(here.hosts) * here.ranks)
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
    if node.listener is not None:
        node.listener.close()
    return FAILED if any(codes) else train(here, folder)


def prepare_training(folder: Path, world: int) -> None:
    """A run of a small model under the recipe's engine, in the folder of the check."""
    wanted = load_resolved(folder / RECIPE)
    sample = Path(distft.__file__).parent / "sample" / "conversations.jsonl"
    small = {
        "name": "check",
        "model": {"init": MODEL, "attention": wanted.model.attention},
        "data": {"train": str(sample), "row_tokens": 64, "cache": str(folder / "cache")},
        "train": {"steps": STEPS, "micro_batch": 2, "global_batch": 2 * world},
        "engine": wanted.engine.model_dump() | {"timeout": TIMEOUT_SECONDS},
        "checkpoint": {"every": STEPS},
    }
    RunDir(folder / RUN).create("check", dump(Recipe.model_validate(small)))


def train(here: NodePlace, folder: Path) -> int:
    """The way of every run: this node's light parent, its fork server, ranks, steps, a checkpoint, the export."""
    run = RunDir(folder / RUN)
    variables = {**os.environ, environment.RUN_DIR: str(run.path)}
    code = subprocess.run([sys.executable, *running("launchers.slurm.node")], env=variables, check=False).returncode
    if not here.leads:
        return code
    if code != DONE:
        for path in sorted(run.logs.glob("*/rank-*.log"))[:1]:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            print(f"the end of {path.name}:", *lines[-LOG_LINES:], sep="\n    ", flush=True)
        print(f"training a small model: FAILED (exit code {code})", flush=True)
        return code
    steps = [record for record in run.records() if "grad_norm" in record]
    engine = load_resolved(run.config).engine
    print(
        f"training a small model with {len(here.hosts) * here.ranks} forked ranks, ZeRO {engine.zero_stage}, "
        f"{engine.dtype}: {STEPS} steps of {steps[-1]['seconds']:.3f} s, loss {steps[-1]['loss']:.3f}, a checkpoint "
        "and an export",
        flush=True,
    )
    (folder / TRAINED).touch()
    return DONE


def meet(here: NodePlace, folder: Path) -> Node:
    """The first node writes its port into the folder; that the others read it shows that they share it."""
    path = folder / "port"
    if here.leads:
        listener = listen_near(20000 + int(here.job) % 20000)
        write_atomically(path, str(listener.getsockname()[1]))
        return here.node(here.hosts[0], listener.getsockname()[1], MEET_SECONDS, listener)
    deadline = time.monotonic() + MEET_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{this_host()} cannot see what {here.hosts[0]} wrote to {folder}; use a folder that all nodes share"
            )
        time.sleep(0.2)
    return here.node(here.hosts[0], int(path.read_text()), MEET_SECONDS)


if __name__ == "__main__":
    try:
        code = main()
    except (UserError, RunFailed) as error:
        print(f"distft: error: {error}", flush=True)
        code = FAILED
    sys.exit(code)
