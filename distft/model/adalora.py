"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512) under any ZeRO stage: which singular values to keep.

PEFT supplies the layers, W + B diag(E) A. Its allocator needs whole gradients and weights in one process; here every
rank works on the fragments it holds, and only one score a singular value is summed over the ranks.

    before a step   add the gradient of the regulariser; keep the gradients, which the step forgets
    after a step    importance of every entry; at an allocation the scores, the pattern; E is masked where it says so

The order is that of PEFT's documentation: sensitivity is |weight after the step x gradient of the step, as clipped|.
Between two allocations masked values may grow again, as in the paper; from the last one on they stay exactly zero,
in masters and live weights. Their moments are left alone: a value that comes back continues with its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from distft.engine.deepspeed import Engine
from distft.engine.fragments import Fragment
from distft.errors import UserError
from distft.process import distributed
from distft.recipe.adalora_phases import Phases, plan_phases
from distft.recipe.adapters import AdaLora

SENSITIVITY, UNCERTAINTY = "sensitivity", "uncertainty"  # smoothed, by entry; they are saved like moments
Pattern = dict[str, list[bool]]


class Allocator(Protocol):
    """What an adapter does around an optimizer step."""

    def before_step(self) -> None:
        """Between the last backward and the step. Collective."""

    def after_step(self, step: int, norm: float | None) -> dict[str, Any]:
        """After optimizer step `step`; `norm` is its gradient norm before clipping, None where it was not taken.

        Returns a record of the ranks where they were given out anew, else nothing. Collective."""

    def figures(self, step: int) -> dict[str, float]:
        """What is worth recording in each step."""

    def state(self) -> dict[str, Any]:
        """For JSON: what a checkpoint must hold beside tensors."""

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave. Raises UserError where it is of another adapter."""

    def verdict(self) -> str | None:
        """What is to be said of it when the run is finished."""


class NoAllocator:
    """Adapters whose shape stays as it is, and none."""

    def before_step(self) -> None:
        pass

    def after_step(self, step: int, norm: float | None) -> dict[str, Any]:
        return {}

    def figures(self, step: int) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass

    def verdict(self) -> str | None:
        return None


@dataclass(frozen=True)
class Weight:
    """The adapter of one weight: names of its parameters A [r, in], E [r, 1] and B [out, r]."""

    module: str
    a: str
    e: str
    b: str
    rank: int
    width: int  # in
    height: int  # out


class RankAllocator:
    """Gives out ranks over all weights of a model. Every rank of the run must call the same methods in the same order.

    Args:
        total: optimizer steps of the run.
        clip: as in the recipe; 0 switches clipping off.
    """

    def __init__(self, adapter: AdaLora, total: int, clip: float, engine: Engine) -> None:
        self._adapter, self._clip, self._engine = adapter, clip, engine
        self._schedule: Phases = plan_phases(adapter, total)
        self._weights = list(weights(engine.shapes))
        self._by_name = {name: weight for weight in self._weights for name in (weight.a, weight.e, weight.b)}
        self._initial = adapter.init_r * len(self._weights)
        self._target = adapter.target_r * len(self._weights)
        self._pattern: Pattern = {weight.module: [True] * weight.rank for weight in self._weights}
        self._gradients: dict[tuple[str, int], torch.Tensor] = {}
        self._orthogonality = 0.0
        engine.keep((SENSITIVITY, UNCERTAINTY), self._by_name.keys())

    @torch.no_grad()
    def before_step(self) -> None:
        distances = [distance for weight in self._weights for distance in self._regularise(weight)]
        self._orthogonality = float(sum(distances)) / len(distances)
        self._gradients = {
            (piece.name, piece.offset): piece.tensor.float().clone()
            for piece in self._engine.gradients(self._by_name.keys())
        }

    def _regularise(self, weight: Weight) -> Iterator[torch.Tensor]:
        """Add the gradient of orthogonal_weight x the mean over all A and B of |A A' - I| (Frobenius), as PEFT has it.

        It is computed in closed form, once a step: under ZeRO-3 no weight is whole when backward comes to a term that
        belongs to no module. Yields the norms.
        """
        factor = self._adapter.orthogonal_weight / (2 * len(self._weights))
        with self._engine.whole((weight.a, weight.b)) as live:
            for name, matrix in live.items():
                rows = matrix.float() if name == weight.a else matrix.float().T
                excess = rows @ rows.T - torch.eye(len(rows), device=rows.device)
                norm = torch.linalg.norm(excess)
                yield norm
                gradient = (2 * factor) * (excess @ rows) / norm.clamp_min(torch.finfo(torch.float32).tiny)
                self._engine.add_to_gradient(name, gradient if name == weight.a else gradient.T)

    @torch.no_grad()
    def after_step(self, step: int, norm: float | None) -> dict[str, Any]:
        gradients, self._gradients = self._gradients, {}
        if norm is not None and step < self._schedule.fixed_at:
            self._weigh(gradients, min(1.0, self._clip / (norm + 1e-6)) if self._clip > 0 else 1.0)
        after = step > self._schedule.fixed_at
        # a run that was shortened may never see the step in which the last ranks go
        due = self._schedule.allocates(step) or (after and sum(self._ranks().values()) > self._target)
        if due:
            self._allocate(self._schedule.budget(step, self._initial, self._target))
        if due or after:
            for weight in self._weights:
                self._engine.mask(weight.e, torch.tensor(self._pattern[weight.module]))
        return {"ranks": self._ranks()} if due else {}

    def _weigh(self, gradients: dict[tuple[str, int], torch.Tensor], clipped: float) -> None:
        """Smooth the sensitivity and its uncertainty, entry by entry (equations 9 and 10)."""
        beta1, beta2 = self._adapter.beta1, self._adapter.beta2
        for fragment in self._engine.fragments():
            gradient = gradients.get((fragment.name, fragment.offset))
            if gradient is None:
                continue
            sensitivity, uncertainty = fragment.tensors[SENSITIVITY], fragment.tensors[UNCERTAINTY]
            now = (fragment.tensors["master"] * gradient.mul_(clipped)).abs_()
            sensitivity.mul_(beta1).add_(now, alpha=1 - beta1)
            uncertainty.mul_(beta2).add_(now.sub_(sensitivity).abs_(), alpha=1 - beta2)

    def _allocate(self, budget: int) -> None:
        """Keep the `budget` singular values with the highest scores, over all weights; of equal ones the first."""
        highest = torch.sort(self._scores(), descending=True, stable=True).indices[:budget]
        kept = torch.zeros(self._initial, dtype=torch.bool)
        kept[highest] = True
        parts = torch.split(kept, [weight.rank for weight in self._weights])
        self._pattern = {weight.module: part.tolist() for weight, part in zip(self._weights, parts, strict=True)}

    def _scores(self) -> torch.Tensor:
        """One of each singular value, fp64, weight after weight: its own and the means of its two vectors' (eq. 7)."""
        scores = {weight.module: torch.zeros(weight.rank, dtype=torch.float64) for weight in self._weights}
        for fragment in self._engine.owned_fragments():
            weight = self._by_name.get(fragment.name)
            if weight is not None:
                scores[weight.module] += part_of_scores(weight, fragment)
        return torch.tensor(distributed.sum_over_ranks(torch.cat(list(scores.values())).tolist()), dtype=torch.float64)

    def _ranks(self) -> dict[str, int]:
        return {module: sum(kept) for module, kept in self._pattern.items()}

    def figures(self, step: int) -> dict[str, float]:
        budget = self._schedule.budget(step, self._initial, self._target)
        return {"rank_budget": budget, "rank": sum(self._ranks().values()), "orthogonality": self._orthogonality}

    def state(self) -> dict[str, Any]:
        return {"total": self._schedule.total, "pattern": self._pattern}

    def load(self, state: dict[str, Any]) -> None:
        pattern: Pattern = state.get("pattern", {})
        if {module: len(kept) for module, kept in pattern.items()} != {w.module: w.rank for w in self._weights}:
            raise UserError("the checkpoint's rank pattern belongs to another adapter; use another checkpoint")
        self._pattern = {module: list(kept) for module, kept in pattern.items()}

    def verdict(self) -> str | None:
        ranks, shape = self._ranks(), self._schedule
        if all(all(kept) for kept in self._pattern.values()):
            return (
                f"AdaLoRA: no rank changed in {shape.total} steps (tinit {shape.tinit}, tfinal {shape.tfinal}, "
                f"delta_t {shape.delta_t}); this was plain LoRA of rank {self._adapter.init_r}"
            )
        spread = f"{min(ranks.values())} to {max(ranks.values())} per weight"
        return f"AdaLoRA: {sum(ranks.values())} of {self._initial} ranks are left, {spread}; `distft ranks` shows them"


def weights(shapes: dict[str, tuple[int, ...]]) -> Iterator[Weight]:
    """The weights that have an adapter, from the shapes of all trained parameters by name."""
    for name, shape in shapes.items():
        if ".lora_A." in name:
            a, e, b = (name.replace(".lora_A.", f".lora_{letter}.") for letter in "AEB")
            yield Weight(name.partition(".lora_A.")[0], a, e, b, shape[0], shape[1], shapes[b][0])


def part_of_scores(weight: Weight, fragment: Fragment) -> torch.Tensor:
    """What a fragment adds to the scores of its weight: fp64 [r].

    Sums of whole rows and columns, and no scatter: the same bits in every run, on a GPU too.
    """
    entries = fragment.tensors[SENSITIVITY].double() * fragment.tensors[UNCERTAINTY].double()
    width = {weight.a: weight.width, weight.e: 1, weight.b: weight.rank}[fragment.name]
    first, before = divmod(fragment.offset, width)
    rows = torch.nn.functional.pad(entries, (before, -(before + fragment.numel) % width)).view(-1, width)
    if fragment.name == weight.b:
        return rows.sum(0).cpu() / weight.height
    sums = rows.sum(1).cpu() / width
    return torch.nn.functional.pad(sums, (first, weight.rank - first - len(sums)))
