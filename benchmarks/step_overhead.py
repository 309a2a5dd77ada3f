"""What a step takes outside forward, backward and optimizer, by the number of ranks and of documents.

    python -m benchmarks.step_overhead [--ranks 1 2] [--documents 1e3 1e4 1e5 1e6] [--steps 40]     fifteen minutes

A Qwen2 of 200,000 parameters (hidden 64, 4 layers), packed rows of 512 tokens, four micro-batches of a row for each
rank, fp32, ZeRO stage 0 (one rank) or 1, a thread a rank. Documents are lines of 5 to 60 words. Of rank 0, medians of
the steps but the first four, in milliseconds: `step`, all of it; `outside`, the rest of the wall time without forward,
backward and the engine's step (it holds the waiting for other ranks); `cpu`, the rest of the CPU time of the whole
process, the thread that prepares the next batch with it; `loader`, what this thread does for a step, by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """\
model:
  init:
    architecture: qwen2
    vocab_size: 600
    config: {{hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4, num_attention_heads: 4,
              num_key_value_heads: 4, max_position_embeddings: 2048, tie_word_embeddings: true}}
data: {{train: {data}, row_tokens: 512, cache: {cache}}}
train: {{steps: 100000, lr: 1.0e-4, schedule: constant, global_batch: {batch}, micro_batch: 1}}
engine: {{zero_stage: {stage}, dtype: fp32}}
"""
WORDS = ("a", "step", "of", "training", "reads", "rows", "and", "writes", "down", "what", "has", "come", "of", "them")
FIRST = 4  # steps that do not count


def write(path: Path, documents: int) -> None:
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(documents):
            file.write(json.dumps({"text": " ".join(chance.choices(WORDS, k=chance.randint(5, 60)))}) + "\n")


class Watch:
    """Seconds that methods of objects take in a step: wall, and CPU of this thread."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    @contextmanager
    def spending(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.thread_time() - cpu

    def over(self, owner: Any, method: str) -> None:
        work = getattr(owner, method)

        def timed(*given: Any, **options: Any) -> Any:
            with self.spending():
                return work(*given, **options)

        setattr(owner, method, timed)


def rank(folder: Path, steps: int) -> None:
    import torch

    from benchmarks.step_cost import Silent, opened
    from distft.process import distributed
    from distft.training import loop

    torch.set_num_threads(1)
    ranks = distributed.init(600)
    found: dict[str, list[float]] = {"step": [], "outside": [], "cpu": [], "loader": []}
    with opened(folder / "run", folder / "recipe.yaml", ranks) as session:
        watch = Watch()
        for owner, method in ((session.task, "loss"), (session.engine, "backward"), (session.engine, "step")):
            watch.over(owner, method)
        for _ in range(steps):
            watch.wall = watch.cpu = 0.0
            wall, cpu = time.perf_counter(), time.process_time()
            loop.step(session, Silent())  # type: ignore[arg-type]
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            found["step"].append(wall)
            found["outside"].append(wall - watch.wall)
            found["cpu"].append(cpu - watch.cpu)
        session.feed.close()
        for number in range(steps):
            begin = time.thread_time()
            list(session.feed._prepared(number))
            found["loader"].append(time.thread_time() - begin)
    if ranks.first:
        print(json.dumps({name: round(1000 * statistics.median(times[FIRST:]), 2) for name, times in found.items()}))
    sys.stdout.flush()
    os._exit(0)  # threads of gloo


def case(folder: Path, data: Path, world: int, steps: int) -> dict[str, Any]:
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    recipe = RECIPE.format(data=data, cache=data.parent, batch=4 * world, stage=0 if world == 1 else 1)
    (folder / "recipe.yaml").write_text(recipe)
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.step_overhead", "--rank-in", str(folder), "--steps", str(steps)]
    begun = [
        subprocess.Popen(
            command,
            env=os.environ | given | {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(world)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for i in range(world)
    ]
    told = [process.communicate()[0] for process in begun]
    found: dict[str, Any] = json.loads(told[0].splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--documents", nargs="+", type=float, default=[1e3, 1e4, 1e5, 1e6])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rank-in", type=Path, help="for its own processes")
    args = parser.parse_args()
    if args.rank_in:
        rank(args.rank_in, args.steps)
    with TemporaryDirectory() as temporary:
        for documents in map(int, args.documents):
            data = Path(temporary) / f"{documents}.jsonl"
            write(data, documents)
            for world in args.ranks:
                found = case(Path(temporary) / f"{documents}-{world}", data, world, args.steps)
                print(json.dumps({"documents": documents, "ranks": world} | found), flush=True)


if __name__ == "__main__":
    main()
