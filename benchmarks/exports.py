"""What an export takes: seconds, CPU time, memory and bytes, of a random Llama of 0.38 billion parameters in bf16.

    python -m benchmarks.exports FOLDER [--runs N]

The whole model in one process beside a tensor at a time by one and by two processes: full fine-tuning, and a LoRA of
rank 16 on all linear layers that is merged. JSON lines. Memory is what all processes have together, less what imports
take; mapped files count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers

from distft.checkpoint.best import choose_checkpoint
from distft.checkpoint.state import Stored
from distft.engine import deepspeed
from distft.model import adapters, export
from distft.model.context import RunContext
from distft.model.export_pieces import drop_notes
from distft.recipe.adapters import Lora
from distft.recipe.load import load_resolved
from distft.run.folder import RunDir
from tests.models.trained_runs import trained_run, write_checkpoint

MODEL = (
    "{architecture: llama, vocab_size: 8000, config: {hidden_size: 1024, intermediate_size: 4096, "
    "num_hidden_layers: 24, num_attention_heads: 16, num_key_value_heads: 8, max_position_embeddings: 512, "
    "tie_word_embeddings: false}}"
)
ADAPTERS = {"full": "{type: none}", "merged": "{type: lora, r: 16, alpha: 32}"}
WAYS = ("whole", "1", "2")
POLL_SECONDS = 0.02


def make(folder: Path, adapter: str) -> None:
    """A run, with a base in bf16 as most models have it."""
    run = trained_run(folder, "causal", adapter, "bf16", MODEL).run
    transformers.AutoModelForCausalLM.from_pretrained(run.base, dtype=torch.bfloat16).save_pretrained(run.base)
    write_checkpoint(RunContext(run, load_resolved(run.config)), seed=0)


def together(children: list[str]) -> float:
    """MB of memory of this process and its children; what they share counts once (Pss)."""
    found = 0.0
    for pid in ("self", *children):
        with suppress(OSError):  # it has ended
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            found += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1.024e-3
    return found


class Peak(threading.Thread):
    """Looks at this process and its children until it is told to stop; `most`: MB that they had together at most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over, self.most, self._task = threading.Event(), 0.0, threading.get_native_id()

    def run(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            children = Path(f"/proc/self/task/{self._task}/children").read_text().split()
            self.most = max(self.most, together(children))


def transferred(key: str) -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(run_dir: Path, way: str, out: Path) -> dict[str, Any]:
    """One export, by this process."""
    run = RunDir(run_dir)
    recipe = load_resolved(run.config)
    deepspeed.imported()
    adapters.import_code(Lora(type="lora"))
    transformers.LlamaForCausalLM  # noqa: B018 - imported now
    stored, merged = choose_checkpoint(run, recipe), isinstance(recipe.adapter, Lora)
    context = RunContext(run, recipe)
    imports, peak = together([]), Peak()
    read, written, before = transferred("rchar"), transferred("wchar"), time.monotonic()
    peak.start()
    out.mkdir(parents=True)
    if way == "whole":
        export.whole(context, stored, merged).save(out, 1)
    else:
        export.apart(context, Stored(stored.folder, mapped=False), merged).save(out, int(way))
        drop_notes(out)
    os.sync()
    seconds = time.monotonic() - before
    peak.over.set()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sum(one.ru_utime + one.ru_stime for one in used), 1),  # with imports
        "memory_MB": round(peak.most - imports),
        "read_GB": round((transferred("rchar") - read) / 1e9, 2),  # not what is mapped
        "written_GB": round((transferred("wchar") - written) / 1e9, 2),
    }


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs=2, metavar=("RUN", "WAY"), help="one export, in this process")
    args = parser.parse_args()
    if args.only is not None:
        print(json.dumps(measure(args.folder / args.only[0] / "run", args.only[1], args.folder / "out")))
        return
    for name, adapter in ADAPTERS.items():
        if not (args.folder / name / "run" / "run.json").exists():
            make(args.folder / name, adapter)
        for _ in range(args.runs):
            for way in WAYS:
                shutil.rmtree(args.folder / "out", ignore_errors=True)
                command = [sys.executable, "-m", "benchmarks.exports", str(args.folder), "--only", name, way]
                ended = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(ended.stdout.splitlines()[-1])
                print(json.dumps({"run": name, "way": way, **found, "bytes": digest(args.folder / "out")}), flush=True)


if __name__ == "__main__":
    main()
