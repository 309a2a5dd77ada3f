"""Steps with W&B switched off, and with a W&B host that takes connections and never answers, in turn.

python benchmarks/dead_wandb.py FOLDER --repetitions 3
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import distft.sample

RECIPE = """\
model:
  init:
    architecture: llama
    vocab_size: 512
    config: {{hidden_size: 256, intermediate_size: 768, num_hidden_layers: 6, num_attention_heads: 4,
             num_key_value_heads: 4, max_position_embeddings: 256, tie_word_embeddings: true}}
data: {{train: {data}, row_tokens: 256}}
adapter: {{type: none}}
train: {{steps: {steps}, lr: 1.0e-4, global_batch: 4, micro_batch: 4}}
engine: {{zero_stage: 2, dtype: fp32}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    data = Path(distft.sample.__file__).with_name("conversations.jsonl")
    (args.folder / "recipe.yaml").write_text(RECIPE.format(data=data, steps=args.steps))
    found: dict[str, list[float]] = {"off": [], "online": []}
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        for _ in range(args.repetitions):
            for mode, seconds in found.items():
                seconds.append(median_step(args.folder, mode, listener.getsockname()[1]))
                print(mode, seconds[-1], flush=True)
    off, online = (statistics.median(found[mode]) for mode in ("off", "online"))
    print(json.dumps({"median_step_seconds": found, "slow_down": online / off - 1}))


def median_step(folder: Path, mode: str, port: int) -> float:
    """Of one run, from step 11 on: seconds."""
    run = folder / f"run-{mode}"
    shutil.rmtree(run, ignore_errors=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WANDB_BASE_URL": f"http://127.0.0.1:{port}",
        "WANDB_API_KEY": "0" * 40,
    }
    distft = Path(sys.executable).with_name("distft")
    command = [distft, "train", "recipe.yaml", f"track.wandb={mode}", f"--run-dir={run.absolute()}", "--nproc=1"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=600)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(r["seconds"] for r in records if "loss" in r and r["step"] > 10)


if __name__ == "__main__":
    main()
