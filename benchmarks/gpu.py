"""What to run first on a machine with GPUs: about 30 checks of the installed distft, in ten minutes on one GPU.

    python benchmarks/gpu.py --out /scratch/me/gpu-check          with two or more GPUs, NCCL between two ranks as well
    python benchmarks/gpu.py --out /tmp/check --cpu               without a GPU: shows that the checks themselves work
    python benchmarks/gpu.py --out ... --only stages,resume       some of them

One line per check, PASS, FAIL or SKIP with the reason; OUT/result.json has all figures. Exit code 1 if one failed.
docs/gpu.md says what each failure means.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import distft.sample

SAMPLE = Path(distft.sample.__file__).parent
DISTFT = [sys.executable, "-P", "-m", "distft"]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
SECONDS = 300  # of one command, at most
LORA, FULL = "{type: lora, r: 16, alpha: 32, targets: all-linear}", "{type: none}"
SHAPE = (
    "{hidden_size: 512, intermediate_size: 1024, num_hidden_layers: 2, num_attention_heads: 8, "
    "num_key_value_heads: 4, max_position_embeddings: 2048, tie_word_embeddings: false}"
)
BASE = f"""\
model: {{init: {{architecture: llama, vocab_size: 1500, config: {SHAPE}}}}}
data: {{train: {SAMPLE}/conversations.jsonl, row_tokens: 512}}
train: {{steps: 1, global_batch: 2, micro_batch: 2}}
engine: {{dtype: fp32}}
"""
RECIPE = """\
model: {{path: {base}}}
data: {{train: {sample}/conversations.jsonl, eval: {sample}/heldout.jsonl, row_tokens: 512}}
train: {{steps: 4, lr: 1.0e-3, global_batch: 8, micro_batch: 2}}
checkpoint: {{every: 100}}
"""

ENCODER = (
    "model={init: {architecture: bert, vocab_size: 1500, config: {hidden_size: 512, intermediate_size: 1024, "
    "num_hidden_layers: 2, num_attention_heads: 8, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}}",
    "task={type: sequence-classification}",
    f"data={{train: {SAMPLE}/reviews.tsv, columns: [text, label], row_tokens: 128}}",
)


@dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
        losses: by step; none if it failed.
        wrong: what it said then.
        log: all that it and its ranks said.
    """

    losses: list[float]
    wrong: str
    seconds: float
    last: dict[str, Any] = field(default_factory=dict)
    log: str = ""


class Bench:
    """The machine, the folder, and what was found so far."""

    def __init__(self, out: Path, on_cpu: bool) -> None:
        import torch

        self.out, self.began, self.found = out, time.monotonic(), list[dict[str, Any]]()
        self.gpus = 0 if on_cpu else torch.cuda.device_count()
        self.environment = NO_GPU if on_cpu else {}
        self.nproc = 1 if self.gpus == 1 else 2
        self.recipe = out / "recipe.yaml"

    def say(self, name: str, passed: bool | None, detail: str = "", **figures: Any) -> None:
        """A result; None: it was skipped, for the reason in `detail`."""
        word = {True: "PASS", False: "FAIL", None: "SKIP"}[passed]
        print(f"[{time.monotonic() - self.began:4.0f} s] {word}  {name}  {detail}", flush=True)
        self.found.append({"name": name, "result": word, "detail": detail, **figures})
        (self.out / "result.json").write_text(json.dumps(self.found, indent=1))

    def command(self, *words: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
        """Exit code and output; 124 if it took too long."""
        try:
            done = subprocess.run(
                words,
                env={**os.environ, **(self.environment if environment is None else environment)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124, f"took longer than {SECONDS} s"
        return done.returncode, done.stdout

    def train(self, name: str, *overrides: str, adapter: str = LORA, on_cpu: bool = False) -> Trained:
        folder = self.out / "runs" / name
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        began = time.monotonic()
        code, said = self.command(
            *DISTFT,
            *("train", str(self.recipe), f"adapter={adapter}", *overrides),
            *("--run-dir", str(folder), "--nproc", str(1 if on_cpu else self.nproc)),
            environment=NO_GPU if on_cpu else None,
        )
        seconds = time.monotonic() - began
        metrics = folder / "metrics.jsonl"
        records = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        steps = [record for record in records if "grad_norm" in record]
        log = said + "".join(path.read_text(errors="replace") for path in sorted(folder.glob("logs/*/*.log")))
        wrong = "" if code == 0 else (said.strip().splitlines() or [f"exit code {code}"])[-1][:300]
        losses = [] if wrong else [record["loss"] for record in steps]
        return Trained(losses, wrong, seconds, steps[-1] if steps else {}, log)

    def compare(self, name: str, found: Trained, expected: Trained, tolerance: float) -> None:
        """The losses of both, relative."""
        pairs = list(zip(found.losses, expected.losses, strict=False))
        worst = max((abs(a - b) / max(abs(b), 1e-9) for a, b in pairs), default=float("inf"))
        passed = bool(pairs) and len(found.losses) == len(expected.losses) and worst <= tolerance
        self.say(
            name, passed, found.wrong or expected.wrong or f"apart {worst:.1e}, {found.seconds:.0f} s", apart=worst
        )


def make_base(bench: Bench) -> None:
    recipe = bench.out / "base.yaml"
    recipe.write_text(BASE)
    folder = bench.out / "base"
    if not (folder / "base/config.json").exists():
        code, said = bench.command(
            *DISTFT, "train", str(recipe), "--run-dir", str(folder), "--nproc", "1", environment=NO_GPU
        )
        if code:
            sys.exit(f"the base model could not be made: {said[-500:]}")
    bench.recipe.write_text(RECIPE.format(base=folder / "base", sample=SAMPLE))


def environment(bench: Bench) -> None:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(bench.gpus)]
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if bench.gpus else None  # type: ignore[no-untyped-call]
    about = {"torch": torch.__version__, "gpus": names, "nccl": nccl, **{name: has(name) for name in OPTIONAL}}
    bench.say("the environment", True, json.dumps(about), **about)


OPTIONAL = ("flash_attn", "bitsandbytes", "liger_kernel")


def has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def stages(bench: Bench) -> None:
    """Every ZeRO stage and dtype beside fp32 on the CPU: NCCL, bf16, sharding, the forked ranks."""
    for kind, adapter in (("lora", LORA), ("full", FULL)):
        expected = bench.train(f"cpu-{kind}", "engine.dtype=fp32", adapter=adapter, on_cpu=True)
        for dtype, tolerance, some in (("fp32", 2e-3, (3,)), ("bf16", 1e-2, (0, 1, 2, 3))):
            for stage in some:
                overrides = (f"engine.dtype={dtype}", f"engine.zero_stage={stage}")
                found = bench.train(f"{kind}-{dtype}-zero{stage}", *overrides, adapter=adapter)
                what = f"{kind}, {dtype}, ZeRO {stage}, {bench.nproc} rank(s): the losses of fp32 on a CPU"
                bench.compare(what, found, expected, tolerance)
                if (kind, dtype, stage) == ("lora", "bf16", 2):
                    look_at_a_run(bench, found)
                if (kind, dtype, stage) == ("full", "bf16", 3):
                    sharded = re.search(r"ZeRO 3: ([1-9]\d*) of \d+ weights are sharded", found.log)
                    bench.say("ZeRO 3 shards weights", sharded is not None, sharded.group() if sharded else "")


def look_at_a_run(bench: Bench, found: Trained) -> None:
    bench.say("ranks are forked and not started afresh", "imports everything itself" not in found.log)
    if bench.gpus:
        memory, mfu = found.last.get("memory_bytes", 0), found.last.get("mfu")
        bench.say("the memory is the GPU's", memory > 0, f"{memory / 1e9:.2f} GB", memory=memory)
        known = None if mfu is None else 0 < mfu < 1
        bench.say(
            "MFU is a share", known, "this GPU's peak is not in the table" if mfu is None else f"{mfu:.4f}", mfu=mfu
        )


def recomputation(bench: Bench) -> None:
    for stage in (2, 3):
        plain = bench.train(f"plain-zero{stage}", f"engine.zero_stage={stage}")
        for which in ("selective", "full"):
            words = (f"engine.zero_stage={stage}", f"model.activation_checkpointing={which}")
            again = bench.train(f"{which}-zero{stage}", *words)
            bench.compare(f"{which} recomputation changes no loss, ZeRO {stage}", again, plain, 1e-4)
    found = bench.train("auto", "train.micro_batch=auto", "model.activation_checkpointing=auto")
    kept = bench.out / "runs" / "auto" / "batch.json"
    settled = json.loads(kept.read_text()) if kept.exists() else {}
    figures = {"measured": found.last.get("worst_memory_bytes"), **settled}
    bench.say("auto settles on a micro-batch that fits", bool(settled) and not found.wrong, found.wrong, **figures)


def attention(bench: Bench) -> None:
    """All kinds keep the documents of a row apart."""
    one = ("train.steps=1", "train.global_batch=64", "train.micro_batch=4")
    eager = bench.train("attention-eager", "model.attention=eager", *one)
    for kind in ("auto", "varlen", "sdpa", "flash_attention_2"):
        if kind == "flash_attention_2" and not (bench.gpus and has("flash_attn")):
            bench.say("flash attention", None, "flash_attn is not installed, or there is no GPU")
            continue
        found = bench.train(f"attention-{kind}", f"model.attention={kind}", *one)
        bench.compare(f"packed rows, attention {kind}: the loss of eager", found, eager, 5e-3)
    padded = bench.train("encoder-sdpa", *ENCODER, "model.attention=sdpa", *one, adapter=FULL)
    found = bench.train("encoder-varlen", *ENCODER, "model.attention=varlen", *one, adapter=FULL)
    bench.compare("an encoder without padding: the loss of padded rows", found, padded, 5e-3)


def offload(bench: Bench) -> None:
    for stage, overrides in ((2, ()), (3, ("engine.offload_params=true",))):
        common = (f"engine.zero_stage={stage}",)
        plain = bench.train(f"kept-zero{stage}", *common, adapter=FULL)
        found = bench.train(
            f"offloaded-zero{stage}", *common, "engine.offload_optimizer=true", *overrides, adapter=FULL
        )
        bench.compare(f"offload changes no loss, ZeRO {stage}", found, plain, 1e-2)


def qlora(bench: Bench) -> None:
    if not has("bitsandbytes"):
        bench.say("QLoRA", None, "bitsandbytes is not installed")
        return
    found = bench.train("qlora", adapter=LORA.replace("}", ", quantize: nf4}"))
    bench.compare("QLoRA: near the losses of LoRA", found, bench.train("unquantized"), 0.1)


def resume(bench: Bench) -> None:
    """With deterministic kernels, bit for bit."""
    for kind, adapter, stage in (("lora", LORA, 2), ("full", FULL, 3)):
        recipe = (str(bench.recipe), f"adapter={adapter}", f"engine.zero_stage={stage}")
        options = ("--kills", "1", "--steps", "6", "--nproc", str(bench.nproc))
        code, said = bench.command(*DISTFT, "verify-resume", *recipe, *options)
        bench.say(
            f"killed and continued, {kind}, ZeRO {stage}: the same bits", code == 0, "" if code == 0 else said[-400:]
        )


def commands(bench: Bench) -> None:
    run = bench.out / "runs/for-commands"
    if wrong := bench.train("for-commands").wrong:
        bench.say("a run for predict, eval and export", False, wrong)
        return
    for words in (
        ("eval", str(run)),
        ("predict", str(run), "--prompt", "Hello", "--max-tokens", "8"),
        ("export", str(run), str(bench.out / f"merged-{os.getpid()}"), "--merged"),
    ):
        code, said = bench.command(*DISTFT, *words)
        bench.say(f"distft {words[0]}", code == 0, "" if code == 0 else said[-300:])


def profile(bench: Bench) -> None:
    """The parts of a step add up on each rank, those of the device are there, and losses stay as they are."""
    same = "engine.deterministic=true"
    found = bench.train("profiled", same, "--profile", "2", "--trace")
    bench.compare("a profiled run: the same losses", found, bench.train("unprofiled", same), 0.0)
    try:
        content = json.loads((bench.out / "runs/profiled/logs/attempt-001/profile.json").read_text())
    except OSError as error:
        bench.say("a profile is written", False, str(error))
        return
    for rank in content["ranks"]:
        parts = {name: round(seconds, 4) for name, seconds in rank["parts"].items() if seconds}
        whole = abs(sum(parts.values()) / rank["seconds"] - 1.0) < 0.01
        missing = {"forward", "attention", "loss", "backward", "attention_backward", "optimizer"} - parts.keys()
        name = f"the profile of rank {rank['rank']} on {content['device']} adds up, and no part is missing"
        bench.say(name, whole and not missing, json.dumps(parts), **parts)


def speed(bench: Bench) -> None:
    """An 8B shape: tokens per second, memory, waits for the device, and where the time goes."""
    code, said = bench.command(
        *(sys.executable, str(Path(__file__).with_name("gpu_speed.py"))), *(() if bench.gpus else ("--small",))
    )
    lines = [json.loads(line) for line in said.splitlines() if line.startswith('{"measured"')]
    for line in lines:
        name, passed = line.pop("measured"), line.pop("passed", True)
        bench.say(name, passed, json.dumps(line), **line)
    if code or not lines:
        bench.say("speed", False, said[-600:])


CHECKS: dict[str, Callable[[Bench], None]] = {
    "environment": environment,
    "stages": stages,
    "recomputation": recomputation,
    "attention": attention,
    "offload": offload,
    "qlora": qlora,
    "resume": resume,
    "commands": commands,
    "profile": profile,
    "speed": speed,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true", help="without a GPU")
    parser.add_argument("--only", default=",".join(CHECKS), help=f"of {', '.join(CHECKS)}")
    args = parser.parse_args()
    wanted = args.only.split(",")
    if unknown := sorted(set(wanted) - CHECKS.keys()):
        parser.error(f"--only {unknown[0]}: unknown; the checks are {', '.join(CHECKS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.out.absolute(), args.cpu)
    if not args.cpu and not bench.gpus:
        bench.say("a GPU is visible", False, "torch sees none; with --cpu the checks themselves are tried")
        return 1
    make_base(bench)
    for name in wanted:
        CHECKS[name](bench)
    failed = [one["name"] for one in bench.found if one["result"] == "FAIL"]
    skipped = sum(one["result"] == "SKIP" for one in bench.found)
    passed = len(bench.found) - len(failed) - skipped
    print(f"{passed} passed, {len(failed)} failed, {skipped} skipped; {args.out}/result.json, logs in {args.out}/runs")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
