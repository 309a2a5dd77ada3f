"""distft beside transformers' Trainer with DeepSpeed: what a checkpoint costs, and how soon a run is back.

    python benchmarks/against_trainer.py FOLDER         half an hour, on a quiet machine

Both train the same model of about 100 million parameters from the same rows in the same order, ZeRO 2, fp32, and
alternate. Per side and repetition: a run that saves every 40 s, so that 20 s after a save lie beside 20 s without one
(stall, slow-down); a killed rank that is restarted by the side's own means (torch.distributed.run --max-restarts there,
--max-restarts here); and a start that continues from the checkpoint. Losses must agree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DATA = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
ROW_TOKENS = 64
STEPS_OF_ROWS = 3000
LONG = 100  # problems a text
RECIPE = """\
model: {{path: {model}}}
data: {{train: {data}, row_tokens: {tokens}, packing: false, group_by_length: false, cache: {cache}}}
train: {{steps: 1000, lr: 1.0e-4, schedule: constant, global_batch: {ranks}, micro_batch: 1}}
engine: {{zero_stage: 2, dtype: fp32}}
checkpoint: {{every: 1000, keep: 2}}
"""
LLAMA = {
    "hidden_size": 640,
    "intermediate_size": 1728,
    "num_hidden_layers": 20,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
LORA = "adapter={type: lora, r: 16, alpha: 32, targets: all-linear}"


EVERY = {"full": 13, "lora": 55}  # steps that take about 20 s on the machine of docs/performance.md


class Side(Protocol):
    name: str

    def command(self, run: Path, steps: int, every: int) -> list[str]: ...

    def steps(self, run: Path) -> list[dict[str, Any]]:
        """{"step", "time", "loss"} of each step, in the order in which they were taken."""

    def a_rank(self, pid: int) -> psutil.Process: ...


class Ours:
    name = "distft"

    def __init__(self, folder: Path, lora: bool, ranks: int) -> None:
        self._folder, self._lora, self._ranks = folder, lora, ranks

    def command(self, run: Path, steps: int, every: int) -> list[str]:
        adapter = LORA if self._lora else "adapter={type: none}"
        options = [adapter, f"train.steps={steps}", f"checkpoint.every={every or 10**6}", f"--run-dir={run}"]
        distft = str(Path(sys.executable).with_name("distft"))
        return [
            distft,
            "train",
            str(self._folder / "recipe.yaml"),
            *options,
            f"--nproc={self._ranks}",
            "--max-restarts=3",
        ]

    def steps(self, run: Path) -> list[dict[str, Any]]:
        return [r for r in lines(run / "metrics.jsonl") if "loss" in r]

    def a_rank(self, pid: int) -> psutil.Process:
        children = psutil.Process(pid).children(recursive=True)
        return next(child for child in children if child.name() == f"distft-rank-{self._ranks - 1}")


class Theirs:
    name = "Trainer"

    def __init__(self, folder: Path, lora: bool, ranks: int) -> None:
        self._folder, self._lora, self._ranks = folder, lora, ranks

    def command(self, run: Path, steps: int, every: int) -> list[str]:
        script = [
            str(ROOT / "benchmarks" / "hf_trainer.py"),
            str(self._folder / "model"),
            str(self._folder / "rows.jsonl"),
        ]
        options = [str(run), f"--steps={steps}", f"--every={every}", *(["--lora"] if self._lora else [])]
        start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={self._ranks}", "--max-restarts=3"]
        return [*start, "--monitor-interval=0.1", "--standalone", *script, *options]

    def steps(self, run: Path) -> list[dict[str, Any]]:
        return lines(run / "steps.jsonl")

    def a_rank(self, pid: int) -> psutil.Process:
        children = psutil.Process(pid).children(recursive=True)
        return next(child for child in children if child.environ().get("RANK") == str(self._ranks - 1))


def lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }


def start(side: Side, run: Path, steps: int, every: int) -> subprocess.Popen[bytes]:
    run.mkdir(parents=True, exist_ok=True)
    with open(run.parent / f"{run.name}.log", "ab") as output:
        command = side.command(run, steps, every)
        return subprocess.Popen(command, env=environment(), stdout=output, stderr=output)


def finish(process: subprocess.Popen[bytes], run: Path) -> None:
    code = process.wait()
    assert code == 0, f"{run} ended with {code}; see {run}.log"


def until_steps(side: Side, run: Path, wanted: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many steps were recorded in all attempts together."""
    while len(side.steps(run)) < wanted:
        assert process.poll() is None, f"{run} ended before step {wanted}"
        time.sleep(0.02)


def gaps(steps: list[dict[str, Any]]) -> dict[int, float]:
    """Seconds from the end of the step before to the end of each; what happened after the step before is in it."""
    return {b["step"]: b["time"] - a["time"] for a, b in itertools.pairwise(steps)}


def cost_of_saving(side: Side, folder: Path, every: int, pairs: int) -> dict[str, list[float]]:
    """What follows a save, beside as many steps that follow none, in turn within one run.

    The machine's speed drifts by more than what is looked for, so runs with and without saves cannot be compared.
    """
    run = folder / f"{side.name}-saving"
    finish(start(side, run, 2 * every * (pairs + 1) + 1, 2 * every), run)
    took = gaps(side.steps(run))
    found: dict[str, list[float]] = {"step": [], "stall": [], "slow_down": []}
    for save in range(2 * every, 2 * every * (pairs + 1), 2 * every):
        after = [took[step] for step in range(save + 1, save + 1 + every)]  # the first one holds the save
        usual = [took[step] for step in range(save + 1 + every, save + 1 + 2 * every)]
        found["step"].append(statistics.median(usual))
        around = [took[step] for step in (*range(save - 2, save + 1), *range(save + 2, save + 5))]
        found["stall"].append(after[0] - statistics.median(around))  # the speed may have drifted before `usual`
        found["slow_down"].append(sum(after) / sum(usual) - 1)
    return {**found, "last_loss": [side.steps(run)[-1]["loss"]]}


def return_after_kill(side: Side, folder: Path, every: int, times: int) -> dict[str, list[float]]:
    """A rank is killed after a save; then all is, and the command is given again. Seconds to the next step's end."""
    run = folder / f"{side.name}-killed"
    found: dict[str, list[float]] = {"restart": [], "start": []}
    process = start(side, run, 10_000, every)
    try:
        for _ in range(times):
            here = len(side.steps(run))
            # a checkpoint that is written behind the training is committed by then
            until_steps(side, run, here + 2 * every, process)
            here, killed = len(side.steps(run)), time.time()
            side.a_rank(process.pid).kill()
            found["restart"].append(first_after(side, run, killed, here, process))
            here = len(side.steps(run))
            stop(process)
            began = time.time()
            process = start(side, run, 10_000, every)
            found["start"].append(first_after(side, run, began, here, process))
    finally:
        stop(process)
    return found


def first_after(side: Side, run: Path, event: float, known: int, process: subprocess.Popen[bytes]) -> float:
    """Seconds from an event to the end of the first step that came out of a checkpoint after it."""
    while True:
        steps = side.steps(run)
        for before, line in zip(steps[known - 1 :], steps[known:], strict=False):
            if line["time"] > event and line["step"] <= before["step"]:
                return float(line["time"]) - event
        assert process.poll() is None, f"{run} ended before it came back"
        time.sleep(0.02)


def stop(process: subprocess.Popen[bytes]) -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        child.send_signal(signal.SIGKILL)
    process.kill()
    process.wait()


def set_up(folder: Path, ranks: int) -> None:
    """Model, recipe and rows: the rows that distft feeds, written down for the other side."""
    from distft.data import token_cache
    from distft.data.corpus import Corpus
    from distft.data.loader import Slots
    from distft.data.packing import one_per_row
    from distft.data.sources import sources_of
    from distft.model import random_init
    from distft.model.base_model import load_processor
    from distft.recipe.load import load
    from distft.recipe.schema import ModelInit
    from distft.tasks.protocol import Setting
    from distft.tasks.registry import spec_of
    from distft.training import datasets

    texts = [f"{r['question']}\n{r['answer']}\n\n" for r in lines(DATA)]
    data = folder / "texts.jsonl"  # long ones: a step of a short row is over sooner, which is not to be measured
    joined = ["".join(texts[at : at + LONG]) for at in range(0, len(texts), LONG)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in joined))
    (folder / "recipe.yaml").write_text(
        RECIPE.format(model=folder / "model", data=data, tokens=ROW_TOKENS, cache=folder / "cache", ranks=ranks)
    )
    recipe = load(folder / "recipe.yaml", [])
    [part] = recipe.parts()
    spec, source = spec_of(part), sources_of(part, "train")[0]
    if not (folder / "model").exists():
        init = ModelInit(architecture="llama", vocab_size=4096, config=dict(LLAMA))
        random_init.create(init, spec.model, (), [(spec, source)], folder / "model")
    family = spec.model.family
    encoder = spec.encoder(Setting(recipe, (), lambda: load_processor(folder / "model", recipe.model, family)))
    corpus = Corpus.open(token_cache.build_cache(source, encoder, recipe.data.cache, lambda: None, lambda number: None))
    rows = datasets.Dataset(corpus, [one_per_row(len(corpus))], "")
    loader = datasets.training_loader(recipe, spec.model, {None: rows}, Slots(ranks, 1, 0, 1), None)
    with open(folder / "rows.jsonl", "w") as file:
        for step in range(STEPS_OF_ROWS):
            for micro in loader.step(step):
                [[document]] = loader.documents(micro)
                tokens, targets = document["tokens"].tolist(), document["targets"].tolist()
                labels = [t if wanted else -100 for t, wanted in zip(tokens, targets, strict=True)]
                file.write(json.dumps({"input_ids": tokens, "labels": labels}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=1, help="1 leaves a core idle, as on a node with GPUs")
    parser.add_argument("--repetitions", type=int, default=2, help="of both sides in turn")
    parser.add_argument("--pairs", type=int, default=4, help="saves that are looked at in each repetition")
    parser.add_argument("--kills", type=int, default=2, help="and kills")
    parser.add_argument("--kinds", nargs="*", default=["full", "lora"])
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    set_up(folder, args.ranks)
    report: dict[str, dict[str, dict[str, list[float]]]] = {}
    for kind in args.kinds:
        for repetition in range(args.repetitions):
            for side in (Ours(folder, kind == "lora", args.ranks), Theirs(folder, kind == "lora", args.ranks)):
                place = folder / f"{kind}-{repetition}"
                place.mkdir(exist_ok=True)
                found = cost_of_saving(side, place, EVERY[kind], args.pairs)
                found |= return_after_kill(side, place, EVERY[kind], args.kills)
                kept = report.setdefault(kind, {}).setdefault(side.name, {})
                for name, values in found.items():
                    kept[name] = kept.get(name, []) + values
                print(kind, repetition, side.name, json.dumps(found), flush=True)
                (folder / "report.json").write_text(json.dumps(report, indent=1))
            ours, theirs = (report[kind][name]["last_loss"][-1] for name in ("distft", "Trainer"))
            assert abs(ours - theirs) < 1e-4 * theirs, f"the sides do not train the same: losses {ours} and {theirs}"
        print(f"{kind}: median (smallest to largest)")
        for name in ("step", "stall", "slow_down", "restart", "start", "last_loss"):
            print(f"  {name}: " + " | ".join(f"{who} {spread(values[name])}" for who, values in report[kind].items()))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g}, {len(values)})"


if __name__ == "__main__":
    main()
