"""`make demo`: the whole product on the embedded sample, by its own command line.

A tiny base model learns the handbook of an invented support desk; LoRA then teaches it to answer, on two
processes under ZeRO-2. Half-way a real SIGTERM stops the run, and the same command continues it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distft import starters
from distft.errors import DONE, PREEMPTED
from distft.process.interpreter import running
from distft.run.folder import RunDir

QUESTIONS = Path(str(files("distft.sample"))) / "questions.jsonl"
POLL_SECONDS = 0.1

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Exam:
    """Answers to the held-out questions, in their order."""

    prompts: list[str]
    expected: list[str]
    answers: list[str]

    def right(self) -> list[bool]:
        pairs = zip(self.expected, self.answers, strict=True)
        return [phrase.lower() in answer.lower() for phrase, answer in pairs]


def main() -> None:
    began = time.monotonic()
    runs = Path("runs")
    base, lora = runs / "demo-base", runs / "demo"
    fresh(base, lora)
    title("1. A tiny base model and its tokenizer, from the handbook's plain text")
    distft("train", recipe("demo-base"), "--run-dir", str(base), "--nproc", "2")
    distft("export", str(base), str(runs / "demo-base-model"))
    before = examine(base)
    show_one("before", before)
    title("2. LoRA on the conversations: 2 processes, ZeRO-2, interrupted half-way by SIGTERM")
    command = ("train", recipe("demo"), "--run-dir", str(lora), "--nproc", "2")
    interrupt_half_way(RunDir(lora), command)
    title("3. The same command again")
    distft(*command)
    distft("status", str(lora))
    after = examine(lora)
    show_one("after", after)
    report(RunDir(lora), before, after, time.monotonic() - began)


def fresh(*folders: Path) -> None:
    """The demo always shows a whole run: what an earlier demo left is moved out of its way."""
    for folder in folders:
        if folder.exists():
            folder.rename(folder.with_name(f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"))


def recipe(name: str) -> str:
    """A recipe that travels with the package, put where its paths are right: beside the runs."""
    path = Path("runs") / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(starters.recipe(name), encoding="utf-8")
    return str(path)


def title(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def distft(*arguments: str) -> None:
    """One command, as a person would type it."""
    console.print(f"$ distft {' '.join(arguments)}", style="dim")
    code = subprocess.run([sys.executable, *running("distft", *arguments)]).returncode
    if code != DONE:
        sys.exit(f"demo: that ended with exit code {code}")


def interrupt_half_way(run: RunDir, command: tuple[str, ...]) -> None:
    console.print(f"$ distft {' '.join(command)}", style="dim")
    process = subprocess.Popen([sys.executable, *running("distft", *command)])
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        last = max((record["step"] for record in run.records() if "loss" in record), default=0)
        if last and last >= total_steps(run) // 2:
            process.send_signal(signal.SIGTERM)
            break
    code = process.wait()
    if code != PREEMPTED:
        sys.exit(f"demo: the interrupted run ended with exit code {code} in place of {PREEMPTED}")
    console.print(f"exit code {code}: preempted, everything is saved")


def total_steps(run: RunDir) -> int:
    from distft.recipe.load import load_resolved

    return load_resolved(run.config).train.steps or 0


def examine(run_dir: Path) -> Exam:
    """Put the held-out questions to the model of a run."""
    questions = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answers.jsonl"
        distft("predict", str(run_dir), "--input", str(QUESTIONS), "--output", str(out), "--max-tokens", "60")
        answers = [json.loads(line)["answer"] for line in out.read_text(encoding="utf-8").splitlines()]
    return Exam([q["prompt"] for q in questions], [q["expect"] for q in questions], answers)


def show_one(when: str, exam: Exam) -> None:
    console.print(f"question      {exam.prompts[0]}")
    console.print(f"answer {when:6} {exam.answers[0]}", markup=False)


def report(run: RunDir, before: Exam, after: Exam, seconds: float) -> None:
    """Everything the demo promises, as figures; a promise that was not kept is an error."""
    table = Table("question", "answer after", "before", "after", box=None, header_style="dim")
    rows = zip(after.prompts, after.answers, before.right(), after.right(), strict=True)
    for prompt, answer, was, now in rows:
        table.add_row(prompt, answer, *("yes" if right else "no" for right in (was, now)))
    title("4. Held-out questions: does the answer hold the key phrase?")
    console.print(table)
    losses = [record["eval_loss"] for record in run.records() if "eval_loss" in record]
    fall = 1 - losses[-1] / losses[0]
    attempts = run.read().attempts
    console.print(f"\nright answers      {sum(before.right())} of 10 before, {sum(after.right())} of 10 after")
    console.print(f"held-out loss      {losses[0]:.3f} -> {losses[-1]:.3f} (-{fall:.0%})")
    console.print(
        "attempts           "
        + "; ".join(f"{a.number}: steps {a.first_step}-{a.last_step}, {a.cause}" for a in attempts)
    )
    console.print(f"run folder         {run.path}")
    console.print(f"loss chart         {run.chart}")
    console.print(f"took               {seconds:.0f} s")
    kept: dict[str, Any] = {
        "held-out loss falls by 30 %": fall >= 0.3,
        "at least 8 of 10 right after": sum(after.right()) >= 8,
        "at most 2 of 10 right before": sum(before.right()) <= 2,
        "two attempts": len(attempts) == 2,
    }
    if broken := [promise for promise, held in kept.items() if not held]:
        sys.exit(f"demo: not kept: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
