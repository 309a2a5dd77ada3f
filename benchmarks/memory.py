"""Peak memory of a rank beside the formula: what a frozen base costs, and what does not exist for it.

    python benchmarks/memory.py FOLDER          a few minutes; a table on the terminal, FOLDER/report.json

A rank's peak is the kernel's VmHWM. The peak of the same run with a model of almost nothing (libraries, buffers of a
fixed size) is taken off. fp32, short rows, so that weights and state decide and not activations.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
RANKS, VOCABULARY = 2, 2048
RECIPE = """\
model:
  init: {{architecture: llama, vocab_size: {vocabulary}, config: {{hidden_size: {hidden}, intermediate_size: {inner},
         num_hidden_layers: {layers}, num_attention_heads: 8, num_key_value_heads: 8, max_position_embeddings: 64,
         tie_word_embeddings: true}}}}
data: {{train: {data}, fields: {{prompt: question, completion: answer}}, row_tokens: 64, cache: {cache}}}
train: {{steps: 3, lr: 1.0e-4, global_batch: 2, micro_batch: 1}}
engine: {{dtype: fp32}}
checkpoint: {{every: 1000}}
"""
SIZES = {"large": {"hidden": 1024, "inner": 2816, "layers": 16}, "nothing": {"hidden": 64, "inner": 64, "layers": 1}}
ADAPTERS = {"full": "adapter={type: none}", "lora": "adapter={type: lora, r: 8}"}


def peak(folder: Path, size: str, adapter: str, stage: int) -> tuple[int, int, int]:
    """(bytes of rank 1 at its peak, parameters trained, parameters in all)."""
    run = folder / f"{size}-{adapter}-zero{stage}"
    command = [str(Path(sys.executable).with_name("distft")), "train", str(folder / f"{size}.yaml"), ADAPTERS[adapter]]
    command += [f"engine.zero_stage={stage}", f"--run-dir={run}", f"--nproc={RANKS}"]
    # glibc keeps freed memory of up to 32 MB a piece for itself, unless the threshold is fixed
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    highest = 0
    said = run.with_suffix(".err")
    with said.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=output)
    while process.poll() is None:
        highest = max([highest, *ranks_now(process.pid)])
        time.sleep(0.05)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    found = re.search(r"([\d,]+) of ([\d,]+) parameters", said.read_text())
    assert found is not None
    trained, total = (int(number.replace(",", "")) for number in found.groups())
    return highest, trained, total


def ranks_now(pid: int) -> list[int]:
    found = []
    try:
        for child in psutil.Process(pid).children(recursive=True):
            if child.name() == "distft-rank-1":  # rank 0 also exports
                status = Path(f"/proc/{child.pid}/status").read_text()
                line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
                found.append(int(line.split()[1]) * 1024)
    except (psutil.NoSuchProcess, OSError, StopIteration):
        pass
    return found


def formula(stage: int, trained: int, total: int) -> int:
    """Bytes a rank holds: weights, gradients, masters and moments of what is trained, and their copy in a save.

    Under stage 3 up to 1e9 weights, or an eighth of all, are gathered within a step (`stage3_max_live_parameters`).
    """
    weights = 4 * total // RANKS + 4 * min(total // 8, 10**9) if stage == 3 else 4 * total
    gradients = 4 * trained // (RANKS if stage >= 2 else 1)
    return weights + gradients + 2 * 12 * trained // RANKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for size, numbers in SIZES.items():
        text = RECIPE.format(**numbers, vocabulary=VOCABULARY, data=DATA, cache=folder / "cache")
        (folder / f"{size}.yaml").write_text(text)
    for stage in (1, 2, 3):
        for adapter in ADAPTERS:
            least, _, _ = peak(folder, "nothing", adapter, stage)
            most, trained, total = peak(folder, "large", adapter, stage)
            row = {"adapter": adapter, "stage": stage, "trained": trained, "total": total}
            row |= {"measured": most - least, "formula": formula(stage, trained, total)}
            row["checkpoint"] = sum(
                f.stat().st_size for f in folder.glob(f"large-{adapter}-zero{stage}/checkpoints/*/*")
            )
            rows.append(row)
            print(json.dumps(row), flush=True)
    (folder / "report.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
