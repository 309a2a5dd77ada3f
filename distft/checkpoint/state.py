"""The logical checkpoint: training state by parameter name, independent of ranks and ZeRO stage.

Each rank writes (by `writer.py`) the fragments it owns as `name|offset|kind` (kind: "master" or a moment of the
optimizer), flat, fp32. `state.json` holds everything else. Reading puts together whatever the new layout needs, so
a checkpoint continues under any ZeRO stage and number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from distft.checkpoint import store
from distft.engine.deepspeed import Engine
from distft.errors import RunFailed, UserError

FORMAT = 1
STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """Where a run is. `next_row` is the data cursor: the index, over all epochs and ranks, of the first row not fed."""

    step: int
    next_row: int
    useful_tokens: int
    last_eval: int  # step of the last finished evaluation; 0: none
    non_finite: int = 0  # how often a step was not finite
    rolled_back_at: int = 0  # the step for which the run went back last; 0: it never did
    best: float | None = None  # the best value of the score that the recipe looks at
    best_of: str | None = None  # which one that is
    best_step: int = 0  # and the step at which it was seen; 0: never yet
    stale: int = 0  # evaluations since then
    stream: dict[str, Any] | None = None  # where the lanes of streamed data are, see `training.streaming`


@dataclass(frozen=True)
class Identity:
    """What a run is with, beside its recipe; compared before a checkpoint is loaded."""

    base: str  # of the base model's files
    rows: str  # sha256 over the training rows: tokens and their packing
    tokenizer: str  # sha256 over the tokenizer and its chat template
    versions: dict[str, str]  # of the libraries that decide the bits of a loss
    settled: dict[str, str] = field(default_factory=dict)  # by key of the recipe: what `auto` has come to


def owned(engine: Engine) -> Iterator[tuple[str, torch.Tensor]]:
    """What this rank writes of masters and moments: its fragments, views that the next update changes."""
    for fragment in engine.owned_fragments():
        for kind, tensor in fragment.tensors.items():
            yield f"{fragment.name}|{fragment.offset}|{kind}", tensor


def buffer_names(engine: Engine) -> list[str]:
    """Of the buffers that are saved."""
    return list(_buffers(engine.module))


def buffers(engine: Engine, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Copies of these buffers, on the CPU, which one rank writes."""
    for name in names:
        yield f"{name}|0|buffer", engine.module.get_buffer(name).detach().to("cpu", copy=True)


def file_of(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Those of the state dict. It may hold other things that are no parameters: the scales of 4-bit weights."""
    names = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict().items() if name in names}


def describe_state(engine: Engine, progress: Progress, identity: Identity, adapter: dict[str, Any]) -> dict[str, Any]:
    """The content of state.json.

    Args:
        adapter: what the adapter holds beside tensors.
    """
    by_id: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        first = by_id.setdefault(id(parameter), name)
        if first != name and parameter.requires_grad:
            aliases[name] = first
    return {
        "format": FORMAT,
        "progress": asdict(progress),
        "identity": asdict(identity),
        "optimizer": {
            "id": engine.optimizer.id,
            "step": engine.steps_taken,
            "tensors": list(engine.optimizer.moments),
        },
        "adapter": adapter,
        "master_dtype": "float32",
        "parameters": {name: list(shape) for name, shape in engine.shapes.items()},
        "aliases": aliases,
    }


class Stored:
    """A verified checkpoint opened for reading; tensors are read slice by slice.

    Files are opened as they are needed: of a checkpoint that hundreds of ranks wrote, a rank that has the place of one
    of them reads that one's file alone.
    """

    def __init__(self, folder: Path, place: float = 0.0, mapped: bool = True) -> None:
        """
        Args:
            place: the middle of this rank among all, from 0 to 1: files of ranks that had about the same one are looked
                into first.
            mapped: files are mapped into memory; what was read of them counts as this process's until the system wants
                it back. Otherwise each slice is a copy.

        Raises UserError where the files are as they were written, and still not what distft writes.
        """
        self.folder, self._backend = folder, "mmap" if mapped else "pread"
        self._pieces: dict[tuple[str, str], list[tuple[int, str, Any]]] = {}
        with self._valid():
            self.state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
            if (format := self.state.get("format")) != FORMAT:
                raise UserError(f"{folder} has checkpoint format {format}; this version reads {FORMAT}")
            self.progress = Progress(**self.state["progress"])
            self.identity = Identity(**self.state["identity"])
            self.adapter = dict(self.state["adapter"])
            self.shapes = {name: tuple(shape) for name, shape in self.state["parameters"].items()}
            # others that lie there were not verified
            shards = sorted(name for name in store.files_of(folder) if name != STATE)
            away = {shard: abs((number + 0.5) / len(shards) - place) for number, shard in enumerate(shards)}
            self._unopened = sorted(shards, key=lambda shard: away[shard], reverse=True)  # the nearest last

    @contextmanager
    def _valid(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError) as error:
            raise UserError(f"{self.folder} is not a valid checkpoint ({error}); use another checkpoint") from None

    def _open(self, shard: str) -> None:
        self._unopened.remove(shard)
        with self._valid():
            file = safe_open(self.folder / shard, framework="pt", backend=self._backend)
            for key in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118 - a safetensors handle is no dict
                name, offset, kind = key.rsplit("|", 2)
                self._pieces.setdefault((name, kind), []).append((int(offset), key, file))

    def read(self, name: str, kind: str, offset: int, numel: int) -> torch.Tensor:
        """Elements [offset, offset + numel) of a flattened parameter's master or moment: fp32 [numel].

        Raises:
            UserError: the checkpoint does not hold all of them.
        """
        result = torch.empty(numel, dtype=torch.float32)
        self.read_into(result, name, kind, offset)
        return result

    def read_into(self, target: torch.Tensor, name: str, kind: str, offset: int) -> None:
        """Fill `target`, [numel], with what `read` returns; at once, for memory that is new is slow."""
        numel, found, seen = target.numel(), 0, 0
        while True:
            pieces = self._pieces.get((name, kind), [])
            for start, key, file in pieces[seen:]:
                piece = file.get_slice(key)
                low, high = max(offset, start), min(offset + numel, start + piece.get_shape()[0])
                if low < high:
                    target[low - offset : high - offset].copy_(piece[low - start : high - start])
                    found += high - low
            seen = len(pieces)
            if found >= numel or not self._unopened:
                break
            self._open(self._unopened[-1])
        if found != numel:
            raise UserError(
                f"{self.folder} has only {found} of {numel} elements of {name} ({kind}); use another checkpoint"
            )

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All trained parameters by name, whole: fp32."""
        for name, shape in self.shapes.items():
            yield name, self.read(name, "master", 0, torch.Size(shape).numel()).view(shape)

    def buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Buffers by name, as they were."""
        for name in self.buffer_names():
            yield name, self.buffer(name)

    def buffer_names(self) -> list[str]:
        if file_of(0) in self._unopened:  # rank 0 wrote them
            self._open(file_of(0))
        return [name for name, kind in self._pieces if kind == "buffer"]

    def buffer(self, name: str) -> torch.Tensor:
        """One of `buffer_names`, as it was."""
        _, key, file = self._pieces[name, "buffer"][0]
        value: torch.Tensor = file.get_tensor(key)
        return value

    def load_into(self, engine: Engine) -> None:
        """Set masters, moments, the optimizer's count, live weights and buffers of this rank.

        Raises:
            UserError: the checkpoint is of another model, adapter or optimizer.
        """
        self._check_fits(engine)
        for fragment in engine.fragments():
            for kind, tensor in fragment.tensors.items():
                self.read_into(tensor, fragment.name, kind, fragment.offset)
        for live in engine.live_weights():
            self.read_into(live.tensor, live.name, "master", live.offset)
        engine.steps_taken = int(self.state["optimizer"]["step"])
        own = _buffers(engine.module)
        for name, value in self.buffers():
            own[name].copy_(value)

    def _check_fits(self, engine: Engine) -> None:
        if (written_by := self.state["optimizer"]["id"]) != engine.optimizer.id:
            raise UserError(
                f"{self.folder} was written with optimizer {written_by}, this run uses {engine.optimizer.id}"
            )
        if self.shapes != engine.shapes:
            names = sorted(set(self.shapes.items()) ^ set(engine.shapes.items()))
            raise UserError(f"{self.folder} belongs to another model or adapter: {names[0][0]} and others differ")


def restored_by(folders: Iterable[Path]) -> frozenset[str]:
    """Names of weights which every one of these checkpoints holds: none of them need be read from elsewhere, whichever
    checkpoint turns out to be the newest that verifies. None where one cannot be read, or where there is none."""
    found: list[frozenset[str]] = []
    for folder in folders:
        try:
            described = json.loads((folder / STATE).read_bytes())
            found.append(frozenset([*described["parameters"], *described["aliases"]]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return frozenset()
    return frozenset.intersection(*found) if found else frozenset()


def newest(
    checkpoints: Path, folders: Iterable[Path] | None = None, check: Callable[[Path], str | None] = store.flaw
) -> tuple[Path | None, list[str]]:
    """The checkpoint to continue from (None: there was never one), and sentences about those passed over.

    Args:
        folders: the checkpoints there are, newest first; default: those on disk.
        check: says what is wrong with one of them.

    Raises:
        RunFailed: there are checkpoints and none can be used; starting again in silence would throw a run away.
    """
    folder, passed_over = store.newest_verified(store.committed(checkpoints) if folders is None else folders, check)
    if folder is None and passed_over:
        raise RunFailed(
            f"no checkpoint in {checkpoints} can be used ({'; '.join(passed_over)}); "
            "restore one from a copy, or remove them all to start again from step 0"
        )
    return folder, passed_over
