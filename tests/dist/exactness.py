"""Ranks of the exactness matrix: ours against a plain loop, broken against unbroken, one layout against another.

    python -m tests.dist.exactness reference|equal|options|resume|write|read|relayout FOLDER CONFIG [--steps N] ...

`make exactness` runs all of it on GSM8K (figures in docs/exactness.md); the tests run a part on the embedded sample.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from distft.model.adalora import SENSITIVITY, UNCERTAINTY, RankAllocator
from distft.recipe.schema import Recipe
from distft.process.distributed import Ranks
from distft.recipe.load import load
from tests.dist import scenario

ADAPTERS = {"full": "adapter={type: none}", "lora": "adapter={type: lora, r: 8, alpha: 16}"}
LAYOUTS = {**ADAPTERS, "adalora": "adapter={type: adalora, init_r: 6, target_r: 3}"}
DROPOUT = {"full": "model.init.config.attention_dropout=0.1", "lora": "adapter.dropout=0.1"}


def combinations(*factors: Iterable[Any], half: bool) -> list[tuple[Any, ...]]:
    """All of them; or every other one like the white fields of a board, so that any two values still meet."""
    indexed = itertools.product(*(list(enumerate(factor)) for factor in factors))
    return [tuple(v for _, v in one) for one in indexed if not half or sum(i for i, _ in one) % 2 == 0]


def variant(adapter: str, packing: bool, steps: int) -> list[str]:
    length = [f"train.steps={steps}", "train.weight_decay=0.1"]
    return [ADAPTERS[adapter], f"data.packing={str(packing).lower()}", *length]


# --- a plain loop ---------------------------------------------------------------------------------------------------


def reference(folder: Path, config: Path, steps: int, only: list[str]) -> None:
    """Losses and gradient norms of a plain torch + transformers + PEFT loop that feeds each document by itself.

    It shares with the product the tokens and the order of rows, and no code of model, loss, schedule or optimizer.
    """
    ranks = scenario.join()
    for adapter, packing in itertools.product(ADAPTERS, (True, False)):
        name = f"{adapter}-{'packed' if packing else 'single'}"
        if only and name not in only:
            continue
        overrides = [*variant(adapter, packing, steps), "engine.dtype=fp32", "train.micro_batch=4"]
        opened = scenario.open_run(folder / f"reference-{name}", config, ranks, *overrides)
        result = plain_loop(opened, load(config, overrides), steps)
        (folder / f"reference-{name}.json").write_text(json.dumps(result))
        opened.close()


def plain_loop(opened: scenario.Open, recipe: Recipe, steps: int) -> list[list[float]]:
    from transformers import AutoModelForCausalLM

    session = opened.session
    model: Any = AutoModelForCausalLM.from_pretrained(session.run.base, dtype=torch.float32)
    if recipe.adapter.type == "lora":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(recipe.adapter.seed)
        lora = LoraConfig(r=recipe.adapter.r, lora_alpha=int(recipe.adapter.alpha), target_modules="all-linear")
        model = get_peft_model(model, lora)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices, others = ([p for p in parameters if (p.dim() > 1) is which] for which in (True, False))
    groups = [{"params": matrices, "weight_decay": recipe.train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.train.lr)
    schedule = plain_schedule(optimizer, recipe.train.warmup, steps)
    history = []
    for number in range(steps):
        micros = list(session.loader.step(number))
        documents = [document for micro in micros for row in session.loader.documents(micro) for document in row]
        targets = sum(int(document["targets"].sum()) for document in documents)
        total = 0.0
        for document in documents:
            tokens = torch.from_numpy(document["tokens"].astype("int64"))
            labels = torch.where(torch.from_numpy(document["targets"].copy()), tokens, -100)
            logits = model(input_ids=tokens[None]).logits[0, :-1]
            loss = functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum") / targets
            loss.backward()
            total += loss.item()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, recipe.train.clip))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        history.append([total, norm])
    return history


def plain_schedule(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up and half a cosine, by torch."""

    def factor(done: int) -> float:
        if done < warmup:
            return (done + 1) / warmup
        return (1 + math.cos(math.pi * (done - warmup) / max(1, steps - warmup))) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


# --- ours against it --------------------------------------------------------------------------------------------------


def equal(folder: Path, config: Path, steps: int, only: list[str], dtype: str, half: bool) -> None:
    """Every ZeRO stage, accumulation 1 and 4, packed and not, full and LoRA, on this number of ranks."""
    ranks = scenario.join()
    rows = []
    matrix = combinations(ADAPTERS, (True, False), (1, 4), (0, 1, 2, 3), half=half)
    for adapter, packing, accumulation, stage in matrix:
        name = f"{adapter}-{'packed' if packing else 'single'}"
        if only and name not in only:
            continue
        plain = json.loads((folder / f"reference-{name}.json").read_text())[:steps]
        length = len(json.loads((folder / f"reference-{name}.json").read_text()))
        micro = load(config, []).train.global_batch // (ranks.world * accumulation)
        overrides = [f"engine.dtype={dtype}", f"engine.zero_stage={stage}", f"train.micro_batch={micro}"]
        run = folder / f"equal-{dtype}-{name}-{ranks.world}x{accumulation}-zero{stage}"
        opened = scenario.open_run(run, config, ranks, *variant(adapter, packing, length), *overrides)
        opened.advance(len(plain))
        opened.close()
        if ranks.first:
            assert json.loads((run / "attention.json").read_text()) == {"varlen": True}
            ours = scenario.losses(run)
            gaps = [abs(ours[step][0] - plain[step - 1][0]) for step in range(1, len(plain) + 1)]
            row = {"adapter": adapter, "packing": packing, "accumulation": accumulation, "stage": stage}
            row |= {"ranks": ranks.world, "dtype": dtype, "steps": len(plain), "worst": max(gaps)}
            row |= {"first_loss": plain[0][0], "last_loss": plain[-1][0]}
            rows.append(row)
            print(json.dumps(row), flush=True)
            (folder / f"equal-{dtype}-{ranks.world}.json").write_text(json.dumps(rows, indent=1))


OPTIONS = {
    "offload_optimizer, ZeRO 1": ("engine.zero_stage=1", "engine.offload_optimizer=true"),
    "offload_optimizer, ZeRO 2": ("engine.zero_stage=2", "engine.offload_optimizer=true"),
    "offload_optimizer, ZeRO 3": ("engine.zero_stage=3", "engine.offload_optimizer=true"),
    "both offloads, ZeRO 3": ("engine.zero_stage=3", "engine.offload_optimizer=true", "engine.offload_params=true"),
    "activation checkpointing, ZeRO 2": ("engine.zero_stage=2", "model.activation_checkpointing=true"),
    "activation checkpointing, ZeRO 3": ("engine.zero_stage=3", "model.activation_checkpointing=true"),
    "attention eager": ("engine.zero_stage=2", "model.attention=eager"),
    "activation checkpointing, every second layer, ZeRO 3": (
        "engine.zero_stage=3",
        "model.activation_checkpointing=selective",
    ),
    "attention sdpa, ZeRO 3": ("engine.zero_stage=3", "model.attention=sdpa"),
}


def options(folder: Path, config: Path, steps: int, half: bool) -> None:
    """Settings that must not change the result: within 1e-5 a step of the plain loop, across a save and a restart."""
    ranks = scenario.join()
    for name, adapter in combinations(OPTIONS, ADAPTERS, half=half):
        plain = json.loads((folder / f"reference-{adapter}-packed.json").read_text())
        run = folder / f"option-{adapter}-{list(OPTIONS).index(name)}"
        settings = [*variant(adapter, True, len(plain)), "engine.dtype=fp32", "train.micro_batch=4", *OPTIONS[name]]
        for _ in range(2):
            opened = scenario.open_run(run, config, ranks, *settings)
            opened.advance(steps // 2)
            opened.save()
            opened.close()
        if ranks.first:
            ours = scenario.losses(run)
            assert sorted(ours) == list(range(1, steps // 2 * 2 + 1))
            worst = max(abs(ours[step][0] - plain[step - 1][0]) for step in ours)
            print(f"{adapter}, {name}: {worst:.1e}", flush=True)
            assert worst < 1e-5, f"{adapter}, {name}: {worst}"


# --- broken against unbroken ------------------------------------------------------------------------------------------


def resume(folder: Path, config: Path, steps: int, half: bool) -> None:
    """Stop in the middle, throw everything away, continue: losses, weights and moments must not differ in a bit."""
    ranks = scenario.join()
    rows = []
    for adapter, dtype, stage in combinations(ADAPTERS, ("fp32", "bf16"), (1, 2, 3), half=half):
        overrides = [*variant(adapter, True, steps), DROPOUT[adapter], f"engine.dtype={dtype}"]
        overrides += [f"engine.zero_stage={stage}", "train.micro_batch=2"]
        name = f"{adapter}-{dtype}-zero{stage}"
        unbroken = scenario.open_run(folder / f"unbroken-{name}", config, ranks, *overrides)
        unbroken.advance(steps)
        expected = unbroken.state()
        unbroken.close()
        broken = scenario.open_run(folder / f"broken-{name}", config, ranks, *overrides)
        broken.advance(steps // 2)
        broken.save(slowly=True)
        broken.advance(2)  # steps that are lost and trained again
        broken.close()
        again = scenario.open_run(folder / f"broken-{name}", config, ranks, *overrides)
        assert again.step == steps // 2
        again.advance(steps - steps // 2)
        scenario.same(expected, again.state())
        again.close()
        if ranks.first:
            compare_losses(folder / f"unbroken-{name}", folder / f"broken-{name}", steps, recorded_twice=2)
            rows.append({"adapter": adapter, "dtype": dtype, "stage": stage, "ranks": ranks.world, "steps": steps})
            print(json.dumps(rows[-1]), flush=True)
            (folder / f"resume-{ranks.world}.json").write_text(json.dumps(rows, indent=1))


def compare_losses(unbroken: Path, broken: Path, steps: int, recorded_twice: int) -> None:
    whole, pieces = scenario.losses(unbroken), scenario.losses(broken)
    assert sorted(whole) == sorted(pieces) == list(range(1, steps + 1))
    assert sum(len(values) == 2 for values in pieces.values()) == recorded_twice
    for step in whole:
        assert set(pieces[step]) == set(whole[step]), f"step {step}: {pieces[step]} in place of {whole[step]}"


# --- other layouts ------------------------------------------------------------------------------------------------------


def write_layouts(folder: Path, config: Path, steps: int) -> None:
    """On this number of ranks, under each stage: train, save, and keep what was held at the save."""
    ranks = scenario.join()
    for adapter, stage in itertools.product(LAYOUTS, (0, 1, 2, 3)):
        run = folder / f"layout-{adapter}-{ranks.world}-zero{stage}"
        opened = scenario.open_run(run, config, ranks, *layout(adapter, stage, steps))
        opened.advance(steps // 2)
        opened.save()
        torch.save(whole(opened, ranks), folder / f"{run.name}.held") if ranks.first else whole(opened, ranks)
        opened.close()


def read_layouts(folder: Path, config: Path, steps: int, writers: list[int], on: int) -> None:
    """Load checkpoints of `writers` ranks under every stage here: what is held must be what was held there."""
    ranks = scenario.join()
    for adapter, world, wrote, stage in itertools.product(LAYOUTS, writers, (0, 1, 2, 3), (0, 1, 2, 3)):
        written = folder / f"layout-{adapter}-{world}-zero{wrote}"
        opened = scenario.open_run(written, config, ranks, *layout(adapter, stage, steps))
        assert opened.step == steps // 2
        held = whole(opened, ranks)
        if ranks.first:
            expected = torch.load(folder / f"{written.name}.held", weights_only=True)
            assert held.keys() == expected.keys()
            assert all(torch.equal(held[key], expected[key]) for key in held), f"{written.name} under stage {stage}"
            print(f"{written.name} -> {ranks.world} ranks, stage {stage}: equal", flush=True)
        opened.close()


def layout(adapter: str, stage: int, steps: int) -> list[str]:
    fixed = [LAYOUTS[adapter], f"train.steps={steps}", "engine.dtype=fp32", "train.micro_batch=2"]
    return [*fixed, "track.samples=true", f"engine.zero_stage={stage}"]


def whole(opened: scenario.Open, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Whole masters, moments and live weights, put together from all ranks. Collective; for tests only."""
    import torch.distributed as td

    result: dict[str, torch.Tensor] = {}
    engine = opened.session.engine
    pieces: dict[tuple[str, str], list[tuple[int, torch.Tensor]]] = {}
    for fragment in engine.owned_fragments():
        for kind, tensor in fragment.tensors.items():
            pieces.setdefault((fragment.name, kind), []).append((fragment.offset, tensor))
    for live in engine.live_weights():
        pieces.setdefault((live.name, "live"), []).append((live.offset, live.tensor.float()))
    kept = (SENSITIVITY, UNCERTAINTY) if isinstance(opened.session.allocator, RankAllocator) else ()
    for name, shape in engine.shapes.items():
        for kind in ("master", "exp_avg", "exp_avg_sq", "live", *kept):
            size = torch.Size(shape).numel()
            values, covered = torch.zeros(size), torch.zeros(size)
            for offset, tensor in pieces.get((name, kind), []):
                values[offset : offset + tensor.numel()] = tensor
                covered[offset : offset + tensor.numel()] = 1
            td.all_reduce(values)
            td.all_reduce(covered)
            assert bool((covered > 0).all()), f"{name} {kind} has holes"
            result[f"{name}|{kind}"] = values / covered
    return result


RELAYOUT = ("lora", "adalora")


def relayout(folder: Path, config: Path, steps: int, part: int, stage: int) -> None:
    """One part of runs that change ranks and stage twice; part 0 is the unbroken runs."""
    ranks = scenario.join()
    for adapter in RELAYOUT:
        run = folder / (f"{adapter}-whole" if part == 0 else f"{adapter}-pieces")
        opened = scenario.open_run(run, config, ranks, *layout(adapter, stage, steps))
        opened.advance(steps if part == 0 else steps // 3)
        opened.save()
        if ranks.first:
            run.with_suffix(".adapter.json").write_text(json.dumps(opened.session.allocator.state()))
        opened.close()


def same_samples(folder: Path, adapter: str) -> tuple[dict[int, Any], float]:
    """What both runs fed, by step, and how far their losses are apart at most; AssertionError where they differ."""
    runs = [folder / f"{adapter}-{name}" for name in ("whole", "pieces")]
    fed = [scenario.samples(run) for run in runs]
    assert fed[0] == fed[1], f"{adapter}: the runs were fed different samples"
    states = [run.with_suffix(".adapter.json").read_text() for run in runs]
    assert states[0] == states[1], f"{adapter}: another pattern of ranks"
    one, other = (scenario.losses(run) for run in runs)
    return fed[1], max(abs(one[step][0] - other[step][0]) for step in one)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["reference", "equal", "options", "resume", "write", "read", "relayout"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--writers", nargs="*", type=int, default=[])
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--half", action="store_true", help="every other combination of equal, options, resume")
    parser.add_argument("--stage", type=int, default=2)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.what == "reference":
        reference(args.folder, args.config, args.steps, args.only)
    elif args.what == "equal":
        equal(args.folder, args.config, args.steps, args.only, args.dtype, args.half)
    elif args.what == "options":
        options(args.folder, args.config, args.steps, args.half)
    elif args.what == "resume":
        resume(args.folder, args.config, args.steps, args.half)
    elif args.what == "write":
        write_layouts(args.folder, args.config, args.steps)
    elif args.what == "read":
        read_layouts(args.folder, args.config, args.steps, args.writers, args.stage)
    else:
        relayout(args.folder, args.config, args.steps, args.part, args.stage)


if __name__ == "__main__":
    main()
    scenario.leave()
