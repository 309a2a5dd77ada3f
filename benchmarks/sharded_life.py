"""The life of a model that no rank holds whole: load, three steps, save, kill, resume, evaluate; ZeRO-3 on 2 ranks.

    python -m benchmarks.sharded_life FOLDER [--lora 1.3] [--full 0.5] [--code WORKTREE]     by hand; minutes

Random Llamas of about so many billion parameters, in bf16: one with LoRA (r 8), one fine-tuned in full. Of each phase
and each rank: the peak of memory (VmHWM, less that of the same phase with a model of almost nothing), bytes asked of
files (rchar; what is memory-mapped is not in it), bytes that came from the disk, and bytes that went there, all in MB.
Files of models and checkpoints are dropped from the page cache before each start. `--code`: a worktree of another
commit, to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
RANKS, VOCABULARY, AT = 2, 32_000, 3
SIZES = {  # billions of parameters: hidden, inner, layers
    "0.0": (64, 64, 1),
    "0.15": (768, 2048, 18),
    "0.3": (1024, 2816, 22),
    "0.5": (1280, 3456, 23),
    "1.3": (2048, 5504, 24),
}
NOTHING = "0.0"
RECIPE = """\
task: {{type: causal-lm}}
model: {{path: {model}, attention: sdpa}}
data: {{train: {data}, eval: {held}, row_tokens: 32, cache: {cache}}}
adapter: {adapter}
train: {{steps: 4, lr: 1.0e-5, global_batch: 2, micro_batch: 1}}
engine: {{zero_stage: 3, dtype: bf16}}
checkpoint: {{every: 3}}
"""
ADAPTERS = {"lora": "{type: lora, r: 8}", "full": "{type: none}"}
Counters = dict[int, dict[str, int]]


@dataclass(frozen=True)
class Phase:
    """What is measured from the end of the phase before to when `over` says so.

    Args:
        over: is given the run folder and what was said so far.
    """

    name: str
    over: Callable[[Path, str], bool]


def recorded(run: Path, key: str, step: int) -> bool:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return any((found := json.loads(line)).get("step") == step and key in found for line in lines if line.endswith("}"))


FIRST = (
    Phase("load", lambda run, said: "parameters are trained" in said),
    Phase("three steps", lambda run, said: recorded(run, "loss", AT)),
    Phase("save", lambda run, said: (run / "checkpoints" / f"step-{AT:08d}").exists()),
)
SECOND = (
    Phase("resume", lambda run, said: "continuing after step" in said),
    Phase("a step", lambda run, said: recorded(run, "loss", AT + 1)),
    Phase("evaluate", lambda run, said: recorded(run, "eval_loss", AT + 1)),
)


def make(folder: Path, size: str) -> Path:
    """A random Llama in several files, with a tokenizer of letters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    made = folder / f"model-{size}"
    if made.exists():
        return made
    hidden, inner, layers = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY if size != NOTHING else 64,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(made, max_shard_size="500MB")
    torch.set_default_dtype(torch.float32)
    letters = {letter: number for number, letter in enumerate(["<e>", *"abcdefghijklmnopqrstuvwxyz "])}
    tokenizer = Tokenizer(models.WordLevel(letters, "<e>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>", pad_token="<e>").save_pretrained(made)
    return made


def ranks_of(pid: int) -> dict[int, int]:
    """Process ids by rank."""
    found = {}
    try:
        for child in psutil.Process(pid).children(recursive=True):
            if child.name().startswith("distft-rank-"):
                found[int(child.name().rpartition("-")[2])] = child.pid
    except psutil.NoSuchProcess:
        pass
    return found


def counters(pids: Mapping[int, int]) -> Counters:
    found: Counters = {}
    for rank, pid in pids.items():
        try:
            text = Path(f"/proc/{pid}/io").read_text() + Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        pairs = (line.split(":", 1) for line in text.splitlines())
        values = {key: value.split()[0] for key, value in pairs if value.strip()}
        found[rank] = {key: int(values[key]) for key in ("rchar", "read_bytes", "write_bytes") if key in values}
        found[rank]["peak"] = 1024 * int(values.get("VmHWM", "0"))
    return found


def forget(folder: Path) -> None:
    """Have the page cache drop the files of a folder."""
    os.sync()
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def attempt(recipe: Path, run: Path, code: Path, phases: Sequence[Phase]) -> list[dict[str, object]]:
    """Start or continue a run, measure the phases, and kill it."""
    command = [sys.executable, "-m", "distft", "train", str(recipe), f"--run-dir={run}", f"--nproc={RANKS}"]
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    log, rows = run.with_name(f"{run.name}.log"), []
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables, "PYTHONPATH": str(code)},
            cwd=code,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    pids: dict[int, int] = {}
    before: Counters = {}
    now: Counters = {}
    began, waiting = time.monotonic(), list(phases)
    while waiting and process.poll() is None:
        if len(pids) < RANKS:
            pids = ranks_of(process.pid)
        now = counters(pids) or now
        if not waiting[0].over(run, log.read_text(errors="replace")):
            time.sleep(0.02)
            continue
        now = counters(pids)
        row: dict[str, object] = {"phase": waiting.pop(0).name, "seconds": time.monotonic() - began}
        for rank, values in sorted(now.items()):
            then = before.get(rank, {})
            row[str(rank)] = {key: value - (then.get(key, 0) if key != "peak" else 0) for key, value in values.items()}
        rows.append(row)
        before, began = now, time.monotonic()
        for pid in pids.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak of the next phase is its own
    if waiting:
        sys.exit(f"{' '.join(command)} ended with {process.returncode} before {waiting[0].name}; see {log}")
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        child.kill()
    process.wait()
    return rows


def life(folder: Path, size: str, adapter: str, code: Path) -> list[dict[str, object]]:
    model, run, recipe = make(folder, size), folder / f"{adapter}-{size}", folder / f"{adapter}-{size}.yaml"
    shutil.rmtree(run, ignore_errors=True)
    (model / "distft-checksums.json").unlink(missing_ok=True)
    data, held = folder / "lines.jsonl", folder / "held.jsonl"
    for path, lines in ((data, 8), (held, RANKS)):
        path.write_text("".join(json.dumps({"text": f"{'x' * line} of what is read"}) + "\n" for line in range(lines)))
    text = RECIPE.format(model=model, data=data, held=held, cache=folder / "cache", adapter=ADAPTERS[adapter])
    recipe.write_text(text)
    found = []
    for phases in (FIRST, SECOND):  # what is done with a trained run (export, merge, predict) may follow here
        forget(folder)
        found += attempt(recipe, run, code, phases)
        time.sleep(2.0)  # the lease of what was killed
    return found


def table(adapter: str, size: str, rows: Sequence[dict[str, object]], nothing: Sequence[dict[str, object]]) -> None:
    for row, least in zip(rows, nothing, strict=True):
        cells = [f"{adapter} {size} B", str(row["phase"]), f"{row['seconds']:.1f}"]
        for key in ("peak", "rchar", "read_bytes", "write_bytes"):
            values = []
            for rank in range(RANKS):
                own, other = row[str(rank)], least[str(rank)]
                assert isinstance(own, dict)
                assert isinstance(other, dict)
                values.append(f"{(own[key] - other[key]) / 1e6:,.0f}")
            cells.append(" / ".join(values))
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lora", choices=SIZES, default="0.3")
    parser.add_argument("--full", choices=SIZES, default="0.15")
    parser.add_argument("--code", type=Path, default=ROOT)
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    names = ("peak", "read", "from the disk", "to the disk")
    print("|  | phase | seconds | " + " | ".join(f"{name}, MB (rank 0 / 1)" for name in names) + " |")
    print("|---|---|---|---|---|---|---|")
    for adapter, size in (("lora", options.lora), ("full", options.full)):
        nothing = life(folder, NOTHING, adapter, options.code.absolute())
        table(adapter, size, life(folder, size, adapter, options.code.absolute()), nothing)


if __name__ == "__main__":
    main()
