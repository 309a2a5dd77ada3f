"""Ranks that compare adapters under ZeRO with plain single-process loops of torch, transformers and PEFT.

    python -m tests.dist.adapters reference|paper|equal|resume FOLDER CONFIG [--steps N] ...

The plain loop is what PEFT's documentation prescribes; `make adapters` runs all of it on GSM8K, the tests run a part.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch

from distft.model.adalora import RankAllocator
from distft.recipe.adalora_phases import plan_phases
from distft.recipe.adapters import AdaLora, Lora
from distft.recipe.schema import Recipe
from distft.recipe.load import load
from tests.dist import scenario
from tests.dist.exactness import combinations, compare_losses, plain_schedule

VARIANTS = {
    "lora": "adapter={type: lora, r: 4}",
    "rslora": "adapter={type: lora, r: 4, rslora: true}",
    "dora": "adapter={type: lora, r: 4, dora: true}",
    "lora_plus": "adapter={type: lora, r: 4, lora_plus: 4.0}",
    "modules_to_save": "adapter={type: lora, r: 4, targets: [q_proj, v_proj], modules_to_save: [down_proj]}",
    "partial": "adapter={type: partial, train: ['model.layers.1.*', model.norm.weight]}",
    "adalora": "adapter={type: adalora, init_r: 6, target_r: 3}",
}


def settings(variant: str, steps: int, *more: str) -> list[str]:
    return [VARIANTS[variant], f"train.steps={steps}", "engine.dtype=fp32", *more]


# --- a plain loop ---------------------------------------------------------------------------------------------------


def reference(folder: Path, config: Path, steps: int, only: list[str]) -> None:
    """Per step: the loss with AdaLoRA's regulariser, the pattern of ranks, and how many singular values are zero."""
    ranks = scenario.join()
    for variant in only or VARIANTS:
        overrides = [*settings(variant, steps), "train.micro_batch=4", "data.packing=false"]
        opened = scenario.open_run(folder / f"reference-{variant}", config, ranks, *overrides)
        history = plain_loop(opened, load(config, overrides), steps)
        (folder / f"reference-{variant}.json").write_text(json.dumps(history))
        opened.close()


def plain_loop(
    opened: scenario.Open, recipe: Recipe, steps: int, as_in_the_paper: bool = False
) -> list[dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    session = opened.session
    base = AutoModelForCausalLM.from_pretrained(session.run.base, dtype=torch.float32)
    model = adapted(base, recipe, steps)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = plain_optimizer(model, parameters, recipe)
    allocator = PaperAllocator(model, recipe, steps) if as_in_the_paper else None
    rates = plain_schedule(optimizer, recipe.train.warmup, steps)
    history = []
    for number in range(1, steps + 1):
        micros = list(session.loader.step(number - 1))
        documents = [document for micro in micros for row in session.loader.documents(micro) for document in row]
        output = model(**padded(documents))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.train.clip)
        if allocator is not None:
            allocator.before_step(number)
        optimizer.step()
        found: dict[str, Any] = {"loss": output.loss.item()}
        if allocator is not None:
            allocator.after_step(number)
            found["pattern"] = {
                name.removeprefix("base_model.model."): kept for name, kept in allocator.pattern.items()
            }
        elif isinstance(recipe.adapter, AdaLora):
            model.base_model.update_and_allocate(number)
            pattern = model.peft_config["default"].rank_pattern or {}
            found["pattern"] = {name.removesuffix(".lora_E.default"): kept for name, kept in pattern.items()}
            values = [p for name, p in model.named_parameters() if ".lora_E." in name]
            found["zeros"] = sum(int((value == 0).sum()) for value in values)
        optimizer.zero_grad()
        rates.step()
        history.append(found)
    return history


def padded(documents: list[Any]) -> dict[str, torch.Tensor]:
    width = max(len(document["tokens"]) for document in documents)
    ids = torch.zeros(len(documents), width, dtype=torch.int64)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, document in enumerate(documents):
        length = len(document["tokens"])
        ids[row, :length] = torch.from_numpy(document["tokens"].astype("int64"))
        targets = torch.from_numpy(document["targets"].copy())
        labels[row, :length] = torch.where(targets, ids[row, :length], -100)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def adapted(base: Any, recipe: Recipe, steps: int) -> Any:
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    adapter = recipe.adapter
    if not isinstance(adapter, Lora | AdaLora):
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(name.startswith("model.layers.1.") or name == "model.norm.weight")
        return base
    common = {
        "lora_alpha": int(adapter.alpha),
        "target_modules": adapter.targets,
        "modules_to_save": adapter.modules_to_save or None,
        "task_type": "CAUSAL_LM",
    }
    config: Any
    if isinstance(adapter, Lora):
        config = LoraConfig(r=adapter.r, use_rslora=adapter.rslora, use_dora=adapter.dora, **common)  # type: ignore[arg-type]
    else:
        numbers = {"total_step": steps, "tinit": steps // 10, "tfinal": steps * 3 // 10}
        between = steps - steps // 10 - steps * 3 // 10
        interval = adapter.delta_t or max(1, min(10, between // 10))
        config = AdaLoraConfig(init_r=6, target_r=3, deltaT=interval, **numbers, **common)  # type: ignore[arg-type]
    torch.manual_seed(adapter.seed)
    return get_peft_model(base, config)


def plain_optimizer(model: Any, parameters: list[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    train, adapter = recipe.train, recipe.adapter
    if isinstance(adapter, Lora) and adapter.lora_plus is not None:
        from peft.optimizers import create_loraplus_optimizer

        optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=train.lr, loraplus_lr_ratio=adapter.lora_plus, weight_decay=train.weight_decay
        )
        return optimizer
    return torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay)


class PaperAllocator:
    """Algorithm 1 of the paper, word for word: sensitivity of the weights before the step, masks after every step."""

    def __init__(self, model: Any, recipe: Recipe, steps: int) -> None:
        assert isinstance(recipe.adapter, AdaLora)
        self._adapter, self._schedule = recipe.adapter, plan_phases(recipe.adapter, steps)
        self._parameters = {name: p for name, p in model.named_parameters() if ".lora_" in name and p.requires_grad}
        self._smooth = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self._parameters.items()}
        self._modules = sorted({name.partition(".lora_")[0] for name in self._parameters})
        self.pattern: dict[str, list[bool]] = {}

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        if step >= self._schedule.fixed_at:
            return
        for name, p in self._parameters.items():
            sensitivity, uncertainty = self._smooth[name]
            now = (p * p.grad).abs()  # type: ignore[operator]
            sensitivity.mul_(self._adapter.beta1).add_(now, alpha=1 - self._adapter.beta1)
            uncertainty.mul_(self._adapter.beta2).add_((now - sensitivity).abs(), alpha=1 - self._adapter.beta2)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        count = len(self._modules)
        budget = self._schedule.budget(step, self._adapter.init_r * count, self._adapter.target_r * count)
        if budget >= self._adapter.init_r * count:
            return
        if step <= self._schedule.fixed_at:
            scores = {module: self._score(module) for module in self._modules}
            highest = torch.cat(list(scores.values())).sort(descending=True).values[budget - 1]
            self.pattern = {module: (score >= highest).tolist() for module, score in scores.items()}
        for module, kept in self.pattern.items():
            self._parameters[f"{module}.lora_E.default"][~torch.tensor(kept)] = 0.0

    def _score(self, module: str) -> torch.Tensor:
        a, e, b = (torch.mul(*self._smooth[f"{module}.lora_{letter}.default"]) for letter in "AEB")
        return e.view(-1) + a.mean(1) + b.mean(0)


def paper(folder: Path, config: Path, steps: int) -> None:
    """How far PEFT's order is from the paper's, in a plain loop with delta_t 1: losses, and singular values kept by both."""
    ranks = scenario.join()
    overrides = [*settings("adalora", steps, "adapter.delta_t=1"), "train.micro_batch=4", "data.packing=false"]
    found = {}
    for order in ("PEFT", "paper"):
        opened = scenario.open_run(folder / f"order-{order}", config, ranks, *overrides)
        found[order] = plain_loop(opened, load(config, overrides), steps, order == "paper")
        opened.close()
    ours, theirs = ([found[order][-1]["pattern"], found[order]] for order in ("PEFT", "paper"))
    kept = sum(map(sum, ours[0].values()))
    both = sum(a and b for module in ours[0] for a, b in zip(ours[0][module], theirs[0][module], strict=True))
    apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(ours[1], theirs[1], strict=True))
    print(json.dumps({"steps": steps, "kept": kept, "kept by both": both, "losses apart": apart}), flush=True)
    (folder / "paper.json").write_text(json.dumps({"steps": steps, "kept": kept, "both": both, "apart": apart}))


# --- ours against it --------------------------------------------------------------------------------------------------


def equal(folder: Path, config: Path, steps: int, only: list[str], half: bool) -> None:
    """Every ZeRO stage on this number of ranks: losses within 1e-5, the same pattern after every step."""
    ranks = scenario.join()
    rows = []
    wanted = list(only or VARIANTS)
    # A part: AdaLoRA under every stage, the others under one each, DoRA under 3.
    some = [(name, (index + 1) % 4) for index, name in enumerate(wanted) if name != "adalora"]
    some += [("adalora", stage) for stage in (0, 1, 2, 3)]
    for variant, stage in some if half else itertools.product(wanted, (0, 1, 2, 3)):
        plain = json.loads((folder / f"reference-{variant}.json").read_text())
        micro = load(config, []).train.global_batch // (ranks.world * 2)
        run = folder / f"equal-{variant}-{ranks.world}-zero{stage}"
        more = (f"engine.zero_stage={stage}", f"train.micro_batch={micro}", "data.packing=false")
        opened = scenario.open_run(run, config, ranks, *settings(variant, steps, *more))
        allocations = compare_steps(opened, plain)
        opened.close()
        if ranks.first:
            worst = max(abs(loss - plain[step - 1]["loss"]) for step, loss in recorded(run).items())
            row = {"variant": variant, "stage": stage, "ranks": ranks.world, "steps": steps, "worst": worst}
            row |= {"first_loss": plain[0]["loss"], "last_loss": plain[-1]["loss"], "allocations": allocations}
            rows.append(row)
            print(json.dumps(row), flush=True)
            (folder / f"equal-{ranks.world}.json").write_text(json.dumps(rows, indent=1))


def recorded(run: Path) -> dict[int, float]:
    """Loss by step, with AdaLoRA's regulariser as PEFT's own loss has it (weight 0.5)."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "loss" in record:
            found[record["step"]] = record["loss"] + 0.5 * record.get("orthogonality", 0.0)
    return found


def compare_steps(opened: scenario.Open, plain: list[dict[str, Any]]) -> int:
    """Train, and look after every step. Returns how often ranks were given out anew."""
    before: dict[str, list[bool]] = {}
    changes = 0
    for number, expected in enumerate(plain, start=1):
        opened.advance(1)
        allocator = opened.session.allocator
        if not isinstance(allocator, RankAllocator):
            continue
        pattern = {name.removeprefix("base_model.model."): kept for name, kept in allocator.state()["pattern"].items()}
        if expected["pattern"]:
            assert pattern == expected["pattern"], f"another pattern after step {number}"
        else:
            assert all(all(kept) for kept in pattern.values())
        changes += pattern != before
        before = pattern
        if masked_now(allocator, number):
            masked_are_zero(opened, allocator.state()["pattern"], number)
    return changes


def masked_now(allocator: RankAllocator, step: int) -> bool:
    schedule = allocator._schedule
    return schedule.allocates(step) or step > schedule.fixed_at


def masked_are_zero(opened: scenario.Open, pattern: dict[str, list[bool]], step: int) -> None:
    """Exactly, in masters and in the weights the model computes with; others are not."""
    engine = opened.session.engine
    values = [(f.name, f.offset, f.tensors["master"]) for f in engine.fragments()]
    values += [(live.name, live.offset, live.tensor) for live in engine.live_weights()]
    values += [
        (name, 0, p.detach().view(-1))
        for name, p in engine.module.named_parameters()
        if p.requires_grad and p.numel() == math.prod(engine.shapes[name])
    ]
    seen = 0
    for name, offset, tensor in values:
        if ".lora_E." not in name:
            continue
        kept = torch.tensor(pattern[name.partition(".lora_E.")[0]])[offset : offset + tensor.numel()]
        assert not bool(tensor[~kept].any()), f"{name} is not masked after step {step}"
        assert bool((tensor[kept] != 0).all()), f"{name} is zero where it is kept"
        seen += int((~kept).sum())
    assert seen > 0 or opened.session.ranks.world > 1


# --- broken against unbroken ------------------------------------------------------------------------------------------


def resume(folder: Path, config: Path, steps: int, half: bool) -> None:
    """AdaLoRA, stopped in every phase: before tinit, between allocations, at one, at the last one, and after it."""
    ranks = scenario.join()
    for index, (dtype, stage) in enumerate(combinations(("fp32", "bf16"), (0, 1, 2, 3), half=half)):
        more = [f"engine.dtype={dtype}", f"engine.zero_stage={stage}", "train.micro_batch=2", "adapter.dropout=0.1"]
        overrides = settings("adalora", steps, "adapter.delta_t=2", *more)
        name = f"{dtype}-zero{stage}"
        unbroken = scenario.open_run(folder / f"unbroken-{name}", config, ranks, *overrides)
        unbroken.advance(steps)
        expected, pattern = unbroken.state(), unbroken.session.allocator.state()
        unbroken.close()
        fixed, even = steps - steps * 3 // 10, steps // 4 * 2
        stops = [1, even, fixed, fixed + 1, even + 1]
        for stop in [stops[index]] if half else stops:
            run = folder / f"broken-{name}-{stop}"
            broken = scenario.open_run(run, config, ranks, *overrides)
            broken.advance(stop)
            broken.save()
            broken.advance(1)  # a step that is lost and trained again
            broken.close()
            again = scenario.open_run(run, config, ranks, *overrides)
            assert again.step == stop
            again.advance(steps - stop)
            scenario.same(expected, again.state())
            assert again.session.allocator.state() == pattern
            again.close()
            if ranks.first:
                compare_losses(folder / f"unbroken-{name}", run, steps, recorded_twice=1)
                print(f"{name}, stopped after step {stop} of {steps}: the same bits", flush=True)


def small(folder: Path, config: Path) -> None:
    """Weights so small that ZeRO 3 keeps them whole once they were used, as trials do before a checkpoint is read."""
    ranks = scenario.join()
    overrides = [*settings("adalora", 8, "engine.zero_stage=3"), "adapter.init_r=3", "adapter.target_r=2"]
    unbroken = scenario.open_run(folder / "unbroken-small", config, ranks, *overrides)
    unbroken.advance(4)
    expected = unbroken.state()
    unbroken.close()
    broken = scenario.open_run(folder / "broken-small", config, ranks, *overrides)
    broken.advance(3)
    broken.save()
    broken.close()
    again = scenario.open_run(folder / "broken-small", config, ranks, *overrides)
    assert again.step == 3
    held = [parameter for parameter in again.session.engine.module.parameters() if parameter.requires_grad]
    assert any(parameter.numel() for parameter in held), "ZeRO 3 keeps no trained weight whole here"
    again.advance(1)
    scenario.same(expected, again.state())
    again.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["reference", "paper", "equal", "resume", "small"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--half", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.what == "reference":
        reference(args.folder, args.config, args.steps, args.only)
    elif args.what == "paper":
        paper(args.folder, args.config, args.steps)
    elif args.what == "equal":
        equal(args.folder, args.config, args.steps, args.only, args.half)
    elif args.what == "small":
        small(args.folder, args.config)
    else:
        resume(args.folder, args.config, args.steps, args.half)


if __name__ == "__main__":
    main()
    scenario.leave()
