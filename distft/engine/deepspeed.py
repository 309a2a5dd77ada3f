"""The DeepSpeed adapter, the only file that imports it: set-up, a step, and each parameter's ZeRO state."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import torch

from distft.engine import alone
from distft.engine.configuration import configuration, is_mixed, reduces_once, stage
from distft.engine.fragments import Fragment, Gradient, LiveWeights
from distft.engine.optimizer import groups_of, optimizer_of
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe

# Within a step that reduces its gradients once: DeepSpeed's context, whose end is that reduction. Kept here, because it
# would end, and wait for the other ranks, wherever Python lets go of an engine that an error has stopped.
_unreduced: list[AbstractContextManager[None]] = []


def _without_muon() -> None:
    """Have modules that are not used here stand empty.

    DeepSpeed's engines import their optimizer Muon in each first step, only to see that ours is another one. It hands
    its functions to torch.compile, and so imports Inductor: 550 modules, a third of all time that imports take.
    """
    for module, name in (("muon_optimizer", "MuonWithAuxAdam"), ("original_muon", "muon_update")):
        empty = ModuleType(f"deepspeed.runtime.zero.muon.{module}")
        setattr(empty, name, type(name, (), {}))
        sys.modules.setdefault(empty.__name__, empty)


def imported() -> Any:
    """The package, as it is used here."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    _without_muon()
    import deepspeed
    import deepspeed.ops

    # DeepSpeed 0.19 calls names that torch 2.13 wants replaced, thousands of times a run.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    # The shared-memory all-reduce is compiled at first use (20 to 70 s, a compiler, and a lock file that outlives a
    # kill and blocks every later run). gloo needs none of it. DeepSpeed keeps this table for such edits.
    deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    return deepspeed


def connected() -> Any:
    """The package, which knows the ranks then."""
    deepspeed = imported()
    deepspeed.init_distributed(auto_mpi_discovery=False)
    return deepspeed


class Engine:
    """A model under ZeRO with its optimizer.

    Attributes:
        model: call it like the module; it gathers sharded weights as it goes.
        module: the module itself.
        optimizer: what it is and keeps.
    """

    def __init__(
        self, module: torch.nn.Module, recipe: Recipe, ranks: Ranks, rate_of: Callable[[str], float] = lambda name: 1.0
    ) -> None:
        """
        Args:
            rate_of: what a parameter's learning rate is multiplied by.
        """
        deepspeed = connected()
        self.module = module
        self._ranks = ranks
        self._stage = stage(recipe, ranks.world)
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in self._parameters.items()}
        trainable = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        total = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())
        self.optimizer = optimizer_of(recipe)
        groups = groups_of(self._parameters, self.shapes, rate_of, recipe.train)
        self._optimizer = self.optimizer.build(groups, recipe.train)
        self.model, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._optimizer,
            config=configuration(recipe, ranks, trainable, total),
            dist_init_required=False,
        )
        self._kept: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
        self._create_moments()
        self._clip = recipe.train.clip
        self._alone = self._stage == 0 and ranks.world == 1
        if self._alone:
            self.model.enable_backward_allreduce = False
        self._reduces_once = reduces_once(recipe, ranks)
        if self._reduces_once and is_mixed(recipe):
            for parameter in self._parameters.values():
                parameter.grad_dtype = torch.float32  # torch adds up micro-batches in it

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Accumulate gradients of `loss`; `last` marks the last micro-batch of the step, which all ranks reduce."""
        self.model.set_gradient_accumulation_boundary(last)
        if self._reduces_once and not last and not _unreduced:
            _unreduced.append(self.model.coalesce_grad_reduction())
            _unreduced[0].__enter__()
        self.model.backward(loss, scale_wrt_gas=False)
        if last and _unreduced:
            _unreduced.pop().__exit__(None, None, None)
            self.model.set_gradient_accumulation_boundary(True)

    def step(self, learning_rate: float) -> torch.Tensor:
        """Clip, update weights, forget gradients. Returns the gradient norm before clipping, a scalar on any device, in
        fp32 or fp64; where it is not finite, no weight and no moment was changed."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        if self._alone:
            return alone.step(self._parameters.values(), self._optimizer, self._clip)
        gradients = alone.whole_gradients(self._parameters.values()) if self._stage == 0 else []
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else None
        if norm is not None and not torch.isfinite(norm):
            self._optimizer.zero_grad()
            return norm
        self.model.step()
        if not self.model.was_step_applied():
            return torch.tensor(math.inf)
        return torch.as_tensor(self.model.get_global_grad_norm()) if norm is None else norm

    def _flat_masters(self) -> Iterator[torch.Tensor]:
        if self._stage == 0:
            yield from self._parameters.values()
        elif self._stage == 3:
            yield from self.model.optimizer.fp32_partitioned_groups_flat
        else:
            yield from self.model.optimizer.single_partition_of_fp32_groups

    def _create_moments(self) -> None:
        """Create the optimizer's state now and not in the first step: a restart needs it, and an OOM shows at once."""
        for master in self._flat_masters():
            self._optimizer.state[master] = self.optimizer.initial_state(master)

    @property
    def steps_taken(self) -> int:
        """The optimizer's own count, which AdamW's bias correction uses."""
        return int(next(iter(self._optimizer.state.values()))["step"].item())

    @steps_taken.setter
    def steps_taken(self, steps: int) -> None:
        for state in self._optimizer.state.values():
            state["step"].fill_(float(steps))

    def fragments(self) -> Iterator[Fragment]:
        """All state that this rank holds. Under stage 0 every rank holds everything."""
        for name, parameter in self._parameters.items():
            located = self._locate(parameter)
            if located is not None:
                offset, numel, master, start = located
                moments = self._optimizer.state[master]
                tensors = {"master": master, **{key: moments[key] for key in self.optimizer.moments}}
                views = {key: value.detach().view(-1).narrow(0, start, numel) for key, value in tensors.items()}
                yield Fragment(name, offset, numel, views | self._kept.get((name, offset), {}))

    def owned_fragments(self) -> Iterator[Fragment]:
        """Like `fragments`, but every element is on one rank only."""
        for index, fragment in enumerate(self.fragments()):
            if self._stage != 0 or index % self._ranks.world == self._ranks.rank:
                yield fragment

    def _locate(self, parameter: Any) -> tuple[int, int, torch.Tensor, int] | None:
        """(offset in the parameter, numel, flat master tensor, start in it) of this rank's piece, if it has one."""
        if self._stage == 0:
            return 0, parameter.numel(), parameter, 0
        zero = self.model.optimizer
        if self._stage == 3:
            group, start, shard = zero.grad_position[zero.get_param_id(parameter)]
            offset = self._ranks.rank * shard
            numel = min(shard, parameter.ds_numel - offset)  # the last shards are padded
            return (offset, numel, zero.fp32_partitioned_groups_flat[group], start) if numel > 0 else None
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        master = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        return here.start, here.numel, master, there.start

    def keep(self, kinds: Sequence[str], names: Collection[str]) -> None:
        """Hold one more fp32 tensor of each kind for each entry of some parameters, zero at first: saved and restored
        like moments, whatever the ranks and the ZeRO stage."""
        for fragment in self.fragments():
            if fragment.name in names:
                zero = torch.zeros_like(fragment.tensors["master"])
                self._kept[(fragment.name, fragment.offset)] = {kind: zero.clone() for kind in kinds}

    @property
    def state_bytes(self) -> int:
        """Of all fragments of all ranks, each counted once."""
        kept = {name: len(tensors) for (name, _), tensors in self._kept.items()}
        count = {name: 1 + len(self.optimizer.moments) + kept.get(name, 0) for name in self.shapes}
        return sum(4 * count[name] * torch.Size(shape).numel() for name, shape in self.shapes.items())

    def gradients(self, names: Collection[str]) -> Iterator[Gradient]:
        """Summed over micro-batches and averaged over ranks, not clipped; between the last backward and the step.

        The pieces are those of `fragments`. With the optimizer's state offloaded DeepSpeed has other places for them,
        which are not looked into here.
        """
        for name in names:
            located = self._locate(self._parameters[name])
            if located is not None:
                offset, numel, _, _ = located
                yield Gradient(name, offset, self._gradient(self._parameters[name], offset, numel))

    def _gradient(self, parameter: Any, offset: int, numel: int) -> torch.Tensor:
        if self._stage == 0:
            return parameter.grad.view(-1)  # type: ignore[no-any-return]
        if self._stage == 3:
            piece, _ = self.model.optimizer._get_fp32_grad_state_partition(parameter, release_swap_buffers=False)
            return piece.view(-1).narrow(0, 0, numel)  # type: ignore[no-any-return]
        piece = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)
        return piece.narrow(0, offset, numel) if piece.numel() > numel else piece  # type: ignore[no-any-return]

    def add_to_gradient(self, name: str, value: torch.Tensor) -> None:
        """Add the whole gradient of another term, [shape of the parameter], before the step; the same on all ranks."""
        for piece in self.gradients((name,)):
            piece.tensor.add_(value.reshape(-1).narrow(0, piece.offset, piece.tensor.numel()))

    @contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
        """Live weights by name, whole, to be read only. Collective under stage 3."""
        parameters = {name: self._parameters[name] for name in names}
        if self._stage != 3:
            yield {name: parameter.detach() for name, parameter in parameters.items()}
            return
        with imported().zero.GatheredParameters(list(parameters.values())):
            yield {name: parameter.detach() for name, parameter in parameters.items()}

    def mask(self, name: str, keep: torch.Tensor) -> None:
        """Set entries of a parameter to zero, in masters and live weights.

        Args:
            keep: bool [numel], the same on all ranks; False where it becomes zero.
        """
        parameter: Any = self._parameters[name]
        drop = ~keep.to(parameter.device)
        located = self._locate(parameter)
        if located is not None:
            offset, numel, master, start = located
            piece = master.detach().view(-1).narrow(0, start, numel)
            piece.masked_fill_(drop.narrow(0, offset, numel).to(piece.device), 0.0)
        for live in self._live(name, parameter):
            live.tensor.masked_fill_(drop.narrow(0, live.offset, live.tensor.numel()).to(live.tensor.device), 0.0)

    def live_weights(self) -> Iterator[LiveWeights]:
        """The weights this rank computes with; to be set from the masters after these were set."""
        for name, parameter in self._parameters.items():
            yield from self._live(name, parameter)

    def _live(self, name: str, parameter: Any) -> Iterator[LiveWeights]:
        if self._stage != 3:
            yield LiveWeights(name, 0, parameter.detach().view(-1))
            return
        shard = parameter.ds_tensor.numel()
        offset = self._ranks.rank * shard
        numel = min(shard, parameter.ds_numel - offset)
        if numel > 0:
            yield LiveWeights(name, offset, parameter.ds_tensor.detach().view(-1).narrow(0, 0, numel))
        if parameter.data.numel() == parameter.ds_numel:  # small ones are not given back, once they were used
            yield LiveWeights(name, 0, parameter.detach().view(-1))

    def sharded_weights(self) -> tuple[int, int]:
        """Under stage 3, between two uses: how many weights no rank holds whole, and how many there are."""
        weights = list(self.module.parameters())
        return sum(p.numel() == 0 for p in weights), len(weights)

    def destroy(self) -> None:
        """Let go of DeepSpeed's buffers and hooks."""
        self.model.destroy()


def fill(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    """Give a parameter its value, before there is an engine. Collective where it was loaded into shards."""
    gathered = imported().zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id"))
    with torch.no_grad(), gathered:
        parameter.copy_(value)
