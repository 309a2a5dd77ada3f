"""Asynchronous saving: threads copy the training's state while the next step computes, and write the files.

Forward and backward passes only read that state; before the update changes it, training waits until it is copied
(CheckFreq, FAST 2021). A thread on each rank copies, hashes and writes; rank 0's commits. They talk through
a connection of their own to the rendezvous store, so that no collective of the training waits for them, nor
they for it. One save is under way at a time, so the extra host memory is one copy of what a rank owns.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from distft.checkpoint import disk, state, store
from distft.checkpoint.disk import Digest
from distft.checkpoint.host_memory import Copies, HostMemory, Named, after_what_is_queued
from distft.checkpoint.state import Identity, Progress
from distft.engine.deepspeed import Engine
from distft.errors import RunFailed
from distft.process.distributed import Ranks
from distft.process.memory import memory_of_rank
from distft.recipe.checkpoint import Checkpoint
from distft.run.lease import Fence

LONGEST_SAVE = timedelta(days=7)
CACHED = 1 / 8  # of a rank's share of the memory, which its part of the newest checkpoint may take in the page cache


@dataclass(frozen=True)
class Saved:
    """A checkpoint that exists.

    Attributes:
        seconds: from request to commit.
        stall: for which training stood still.
        notes: sentences about it that a user must know.
    """

    step: int
    seconds: float
    stall: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PendingSave:
    """What one rank writes; `description` is rank 0's."""

    number: int  # of the save in this attempt: after a rollback a step is saved again
    step: int
    best: int  # step of the checkpoint to keep whatever happens
    tensors: list[Named]
    buffers: list[Named]  # copies already: forward passes may change them
    description: dict[str, Any] | None
    needed: int  # bytes, of all ranks


class Writer:
    """Saves one checkpoint after the other. All ranks must ask for the same steps in the same order."""

    def __init__(
        self,
        checkpoints: Path,
        identity: Identity,
        ranks: Ranks,
        settings: Checkpoint,
        fence: Fence,
        hurries: Callable[[float], bool] = lambda seconds: False,
    ) -> None:
        """
        Args:
            hurries: whether this process may not live for so many seconds more.
        """
        self._checkpoints, self._identity, self._ranks = checkpoints, identity, ranks
        self._settings, self._fence, self._hurries = settings, fence, hurries
        store_of_ranks: Any = ranks.store  # its type stub lacks `clone`
        self._store = store_of_ranks.clone()
        self._memory = HostMemory()
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._stood = 0.0  # seconds for which training waited for the save under way
        self._failure: BaseException | None = None
        self._saves = 0
        self._done: Saved | None = None  # the thread's; looked at when it has ended
        self._news: list[Saved] = []
        self._buffers: list[str] | None = None  # their names, once known
        self._newest: Path | None = None  # this rank's file of the checkpoint that was committed last

    def begin(self, engine: Engine, progress: Progress, adapter: dict[str, Any]) -> None:
        """Have this rank's part copied and written; waits for the save before. Raises what that one ran into."""
        began = time.monotonic()
        self.wait()
        buffers = self._copies_of_buffers(engine)
        stream = after_what_is_queued(tensor for _, tensor in state.owned(engine))
        self._saves += 1
        number = self._saves

        def listed() -> PendingSave:
            """What is to be copied and written; to list it takes longer than to begin, so it is the thread's work."""
            step, best, description = progress.step, progress.best_step, None
            if self._ranks.first:
                described = state.describe_state(engine, progress, self._identity, adapter)
                description = {**described, "written_by": self._fence.token}
            tensors = list(state.owned(engine))
            return PendingSave(number, step, best, tensors, buffers, description, engine.state_bytes)

        self._copied.clear()
        self._thread = threading.Thread(target=self._run, args=(listed, began, stream), name="checkpoint", daemon=True)
        self._stood = time.monotonic() - began
        self._thread.start()

    def _copies_of_buffers(self, engine: Engine) -> list[Named]:
        if not self._ranks.first:
            return []
        if self._buffers is None:
            self._buffers = state.buffer_names(engine)
        return list(state.buffers(engine, self._buffers))

    @property
    def copies(self) -> bool:
        """Whether what is to be saved is still being copied, and must not change."""
        return self._thread is not None and not self._copied.is_set()

    def wait_for_copy(self) -> None:
        """Until it may change. What the copy ran into is raised by the next call of another method."""
        began = time.monotonic()
        self._copied.wait()
        self._stood += time.monotonic() - began

    def wait(self) -> None:
        """Until the checkpoint that was begun exists.

        Raises:
            RunFailed: another attempt has taken the run over; its checkpoints are untouched.
            UserError: there is no space for it.
            OSError: it could not be written; the previous checkpoint is untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._news += [self._done] if self._done is not None else []
            self._done = None
        if self._failure is not None:
            raise self._failure

    def news(self) -> list[Saved]:
        """Checkpoints that came to exist since this was asked last. Raises as `wait` does, and does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()
        found, self._news = self._news, []
        return found

    def _run(self, listed: Callable[[], PendingSave], began: float, stream: torch.cuda.Stream | None) -> None:
        try:
            try:
                part = listed()
                copied = self._memory.copy(part.tensors, stream)
            finally:
                self._copied.set()
            notes = self._write(part, copied)
            self._done = Saved(part.step, time.monotonic() - began, self._stood, notes)
        except BaseException as error:  # noqa: BLE001 - it is raised in the training thread
            self._failure = error

    def _write(self, part: PendingSave, copied: Copies) -> tuple[str, ...]:
        """Rank 0 returns what there is to say."""
        notes: list[str] = []
        checkpoints, step, rank = self._checkpoints, part.step, self._ranks.rank
        owner = self._fence.token or ""
        staged = store.stage_folder(checkpoints, step, owner)
        if self._ranks.first:
            store.prepare_stage(checkpoints, step, part.needed, owner, self._fence.check)
            self._tell(part, "staged")
        else:
            self._hear(part, "staged")
        digest, verified = self._write_tensors(staged / state.file_of(rank), part, copied)
        self._tell(part, f"rank {rank}", json.dumps([asdict(digest), verified]))
        if part.description is not None:
            everyone = [json.loads(self._hear(part, f"rank {other}")) for other in range(self._ranks.world)]
            digests = [Digest(**one) for one, _ in everyone]
            text = json.dumps(part.description, indent=1)
            digests.append(store.write_text(staged / state.STATE, text))
            # An attempt that was given up may come back to life at any line: it must not touch what is newer.
            before = store.committed(checkpoints)
            newest = store.commit(checkpoints, step, digests, owner, self._fence.check)
            self._fence.check()
            if all(verified for _, verified in everyone):
                store.prune(before, self._settings.keep, newest, part.best, self._settings.keep_hours)
            else:
                notes.append(f"{newest.name} was not read back, for want of time: the next start does, so others stay")
            notes += filter(None, [store.lacking_room(checkpoints, part.needed)])
            self._tell(part, "committed")
        else:
            self._hear(part, "committed")
        if self._newest is not None:
            disk.forget(self._newest)
        self._newest = store.folder_of(checkpoints, step) / state.file_of(rank)
        return tuple(notes)

    def _write_tensors(self, path: Path, part: PendingSave, copied: Copies) -> tuple[Digest, bool]:
        """What the file must be, and whether it was read back."""
        if not finite(copied.whole):
            name = next(name for name, tensor in copied.tensors if not finite(tensor))
            raise RunFailed(f"{name} is not finite after step {part.step}, so nothing was saved; use a lower train.lr")
        began = time.monotonic()
        try:
            digest = store.write_tensors(path, copied.tensors + part.buffers, copied.whole)
        except OSError:
            path.unlink(missing_ok=True)  # on a full disk: the room which the record of the failure needs
            raise
        if self._hurries(time.monotonic() - began):  # to read takes about as long as to write
            return digest, False
        store.read_back(path, digest, keep=digest.bytes <= CACHED * memory_of_rank())
        return digest, True

    def _tell(self, part: PendingSave, what: str, value: str = "") -> None:
        self._store.set(f"save {part.number}: {what}", value)

    def _hear(self, part: PendingSave, what: str) -> str:
        """Wait for what another rank tells; where that rank fails, the attempt ends, and this thread with it."""
        key = f"save {part.number}: {what}"
        self._store.wait([key], LONGEST_SAVE)  # no polling: hundreds of ranks wait at one process
        return bytes(self._store.get(key)).decode()


def finite(tensor: torch.Tensor) -> bool:
    """Whether all elements are; a NaN makes both of these NaN. Fifteen times as fast as to ask each."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))
