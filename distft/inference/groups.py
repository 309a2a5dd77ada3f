"""Ranks that hold one model together: how they find each other, and what they tell each other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from distft.errors import FAILED, RunFailed, UserError
from distft.inference.workers import STARTED_HERE, wait_for
from distft.process import environment

PATIENCE_SECONDS = 1800  # with a rank that reads its weights, or computes, while the others wait for it
_ENDED = "ranks that have ended"


@dataclass(frozen=True)
class Group:
    """One of several groups of `size` ranks.

    Attributes:
        rank: of this process within its group.
        number: of the group.
    """

    rank: int
    size: int
    number: int

    @property
    def first(self) -> bool:
        """Whether this rank writes what its group has found."""
        return self.rank == 0

    def told(self, value: Any) -> Any:
        """What the first rank gives, on all of them; JSON can hold it. Collective."""
        return self.gathered(value if self.first else None)[0]

    def gathered(self, value: Any) -> list[Any]:
        """What each rank gives, by rank. Collective."""
        from distft.process import distributed

        return [json.loads(text) for text in distributed.gather_text(json.dumps(value))]


def check(size: int, ranks: int) -> None:
    """Raises UserError if ranks cannot be put into groups of this size."""
    if ranks % size:
        raise UserError(f"--shards {size}: {ranks} ranks do not make groups of {size}; give another --nproc")


@contextmanager
def joined(rank: int, world: int, size: int) -> Iterator[Group | None]:
    """The group of this rank; None if it holds a model by itself.

    Raises:
        UserError: nobody has said where the ranks find each other.
        RunFailed: another rank of the group has ended before its time.
    """
    if size == 1:
        yield None
        return
    check(size, world)
    import torch.distributed as td
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed.distributed_c10d import PrefixStore

    from distft.process import distributed
    from distft.process.devices import local_rank, take_device

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError):
        raise UserError(
            "--shards: ranks that hold a model together need MASTER_ADDR and MASTER_PORT, an address and a free port "
            "of the first one's node; set them for all ranks, or have distft start the ranks (--nproc)"
        ) from None
    distributed.have_descriptors(size)
    device, timeout = take_device(local_rank()), timedelta(seconds=PATIENCE_SECONDS)
    listen = os.environ.pop(environment.LISTEN_FD, None)
    descriptor = int(listen) if listen and rank == 0 else None
    try:
        store = TCPStore(address, port, world, is_master=rank == 0, timeout=timeout, master_listen_fd=descriptor)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        own = PrefixStore(f"group {rank // size}", store)
        td.init_process_group(backend, store=own, rank=rank % size, world_size=size, timeout=timeout)
        yield Group(rank % size, size, rank // size)
        distributed.leave_group()
        store.add(_ENDED, 1)
        if rank == 0:  # the store ends with this process
            wait_for(lambda: store.add(_ENDED, 0) == world)
    except RuntimeError as error:
        if (said := lost(error)) is None:
            raise
        if STARTED_HERE in os.environ and "imed out" not in str(error):
            raise SystemExit(FAILED) from None  # the parent says which one has ended, or that one has said why
        raise RunFailed(said) from None


def lost(error: RuntimeError) -> str | None:
    """What a rank says whose group has lost another rank; None if this is another error."""
    import torch.distributed as td

    signs = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "timed out", "NCCL")
    if isinstance(error, td.DistError) or any(sign in str(error) for sign in signs):
        return "another rank that holds this model has ended, so this one ends too; run the same command again"
    return None
