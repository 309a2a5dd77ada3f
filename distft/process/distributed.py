"""The ranks of an attempt: this process's place among them, and the few things they do together.

Rank and world size come from the environment (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT),
whoever started the process.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as td
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from distft.errors import RunFailed
from distft.process import environment, numa, pulse, stop_signals
from distft.process.devices import take_device
from distft.process.lifetime import die_with_parent
from distft.process.lone_work import lone_work

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.1, 1.0  # of waiting for rank 0, at first and in the long run
LEAST_DESCRIPTORS, GROUPS = 256, 2  # of files and libraries; gloo groups: ours and DeepSpeed's
HEAD_START_SECONDS = 30.0  # by which rank 0's node calls its work a hang sooner than the others do


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    local_rank: int
    world: int
    device: torch.device
    store: Store

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0


def init(timeout_seconds: int) -> Ranks:
    """Join the process group: NCCL on GPUs, gloo on CPUs.

    Raises:
        RunFailed: a rank's environment is incomplete, or the ranks did not find each other in time.
        UserError: there are fewer GPUs than ranks.
    """
    die_with_parent()
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.setdefault("LOCAL_RANK", str(rank)))
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise RunFailed(f"this rank's environment is incomplete: {error}; start ranks with `distft train`") from None
    have_descriptors(world)
    device = take_device(local_rank)
    on_gpu = device.type == "cuda"
    if on_gpu:
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed takes it for the number of the device
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if (bound := numa.bind(torch.cuda.get_device_properties(device), here)) is not None:
            torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))
            print(f"rank {rank} computes {bound}", flush=True)
    timeout = timedelta(seconds=timeout_seconds)
    listen = os.environ.pop(environment.LISTEN_FD, None)
    store = TCPStore(
        address,
        port,
        world,
        is_master=rank == 0,
        timeout=timeout,
        master_listen_fd=int(listen) if listen else None,
    )
    td.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world, timeout=timeout
    )
    return Ranks(rank, local_rank, world, device, PrefixStore("distft", store))


def have_descriptors(world: int) -> None:
    """Raise the limit of open files, if it is low: gloo connects each rank with each other one, once per group.

    Raises:
        RunFailed: the system allows too few for this world size.
    """
    needed = LEAST_DESCRIPTORS + GROUPS * world
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= 2 * needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise RunFailed(
            f"{world} ranks need {needed} open files per process and this node allows {hard}; raise the limit "
            "(`ulimit -Hn`: limits.conf, or LimitNOFILE of slurmd)"
        )
    most = 2 * needed if hard == resource.RLIM_INFINITY else min(2 * needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def leave_group() -> None:
    """Leave the process group together, so that nobody sees a closed connection."""
    if td.is_initialized():
        td.barrier()
        td.destroy_process_group()


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Sums over all ranks, position by position, in float64. Collective."""
    vector = torch.tensor(values, dtype=torch.float64)
    td.all_reduce(vector)  # a CPU tensor, so over gloo: the GPU's stream is not waited for
    total: list[float] = vector.tolist()
    return total


def sum_by_name(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over all ranks, which have the same names in the same order. Collective."""
    return dict(zip(values, sum_over_ranks(list(values.values())), strict=True))


def least_over_ranks(values: Sequence[float]) -> list[float]:
    """The smallest over all ranks, position by position. Collective."""
    vector = torch.tensor(values, dtype=torch.float64)
    td.all_reduce(vector, td.ReduceOp.MIN)
    least: list[float] = vector.tolist()
    return least


def gather_bytes(value: bytes) -> list[bytes]:
    """The same number of bytes from every rank, by rank. Collective."""
    return [bytes(part) for part in _gather(value)]


def gather_text(value: str) -> list[str]:
    """A text from every rank, by rank. Collective."""
    encoded = value.encode()
    lengths = [int.from_bytes(one, "little") for one in _gather(len(encoded).to_bytes(8, "little"))]
    padded = _gather(encoded.ljust(max(1, *lengths)))
    return [str(text[:length], "utf-8") for text, length in zip(padded, lengths, strict=True)]


def _gather(value: bytes) -> list[memoryview]:
    mine = torch.frombuffer(bytearray(value), dtype=torch.uint8)
    parts = [torch.empty_like(mine) for _ in range(td.get_world_size())]
    td.all_gather(parts, mine)
    return [part.numpy().data for part in parts]


def barrier() -> None:
    td.barrier()


def on_rank_0(
    ranks: Ranks,
    key: str,
    work: Callable[[], Any],
    may_stop: bool = True,
    meanwhile: Callable[[], None] = lambda: None,
) -> Any:
    """Rank 0 works, the others wait for its result; no collective, so nothing times out however long it takes.

    The others show that they live as long as the work gets on, and those on other nodes somewhat longer: if it hangs,
    rank 0's own node is to name it.

    Args:
        key: a name used once in an attempt.
        work: returns something JSON can hold.
        may_stop: whether a rank that waits leaves when a stop is requested; not where there are steps to save first.
        meanwhile: what a rank that waits does again and again; it moves by itself if that takes long.

    Raises:
        Preempted: a stop was requested of this process while it waited.
    """
    moved = f"{key}, moves"
    if ranks.first:
        with lone_work(lambda moves: ranks.store.set(moved, str(moves))):
            result = work()
        ranks.store.set(key, json.dumps(result))
        pulse.at(f"the end of rank 0's work on {key}")
        return result
    pulse.at(f"the end of rank 0's work on {key}")
    head_start = 0.0 if ranks.rank == ranks.local_rank else HEAD_START_SECONDS
    wait_for_rank_0(ranks, key, moved, head_start, may_stop, meanwhile)
    return json.loads(ranks.store.get(key))


def wait_for_rank_0(
    ranks: Ranks, key: str, moved: str, head_start: float, may_stop: bool, meanwhile: Callable[[], None]
) -> None:
    """Until there is a value under `key`; moves as the number under `moved` does, and `head_start` seconds longer."""
    last, changed, pause = b"", time.monotonic(), POLL_SECONDS
    while not ranks.store.check([key]):
        if may_stop:
            stop_signals.check()
        meanwhile()
        if ranks.store.check([moved]) and (now := ranks.store.get(moved)) != last:
            last, changed = now, time.monotonic()
            pulse.moving()
        elif time.monotonic() - changed < head_start:
            pulse.moving()
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_POLL_SECONDS)  # hundreds of ranks ask one process
