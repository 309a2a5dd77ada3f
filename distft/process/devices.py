"""The GPUs of this machine: how many are visible, counted without CUDA, and which one is this rank's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from distft.errors import UserError
from distft.process import environment

if TYPE_CHECKING:
    import torch

MOST_ROUNDED_MB = 64
_ON_CPUS = {
    "THP_MEM_ALLOC_ENABLE": "1",  # torch's: huge pages
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # glibc's, the largest that it takes
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
_ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # torch reads all of them
_ROUNDS_SINCE = (2, 13)  # the first torch that was seen to know the setting; one that does not know it fails
_GPU = re.compile(r"\s*(\d+\s*$|GPU-|MIG-)")


def gpus() -> int:
    """GPUs this process may use, counted without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA counts up to the first entry that is none: -1, or SLURM's NoDevFiles
        return len(list(takewhile(_GPU.match, visible.split(","))))
    return len([entry for entry in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", entry.name)])


def take_device(local_rank: int) -> torch.device:
    """The device of this rank, made the current one: to be called before anything is loaded.

    Ranks that our own parent started see the same GPUs, and each takes the one of its number. What else starts ranks
    (srun --gpus-per-task, a container) may show each of them a single GPU, which then is its own whatever its number.

    Raises:
        UserError: there are fewer GPUs than ranks.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = index_among(torch.cuda.device_count(), local_rank, shared=environment.PARENT in os.environ)
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def index_among(visible: int, local_rank: int, shared: bool) -> int:
    """The number of a rank's GPU among those that it sees.

    Args:
        shared: other ranks of this machine see the same ones.

    Raises:
        UserError: see `take_device`.
    """
    if 0 <= local_rank < visible:
        return local_rank
    if visible == 1 and local_rank > 0 and not shared:
        return 0
    raise UserError(
        f"LOCAL_RANK {local_rank} has no GPU: this process sees {visible} ({_seen()}); use --nproc {visible}, or "
        "make more GPUs visible"
    )


def local_rank() -> int:
    """This process's number on its machine: LOCAL_RANK, or RANK if nobody has set that; 0 if it is alone.

    Raises:
        UserError: it is no number.
    """
    number = os.environ.get("LOCAL_RANK") or os.environ.get("RANK") or "0"
    if not number.isdecimal():
        raise UserError(f"LOCAL_RANK is '{number}'; it must be the number of this rank on its machine, from 0 on")
    return int(number)


def allocator_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """What processes should tell torch's allocators before they load it; nothing of what the user told them.

    Without a GPU: tensors in huge pages, where the kernel gives them on request, and up to a gigabyte that was freed
    stays with the process. What goes back to the kernel is new to the next step, to whom the first touch of each page
    of 4 KB is a twentieth of its time, and of flat rows, whose sizes change from step to step, as much again.
    With GPUs: segments that grow leave no holes between blocks of many sizes; pinned memory beyond a few megabytes,
    such as the room for a save's copies, is not rounded up to a power of two.
    """
    if not gpus():
        return {name: value for name, value in _ON_CPUS.items() if name not in variables}
    if any(name in variables for name in _ALLOCATORS):
        return {}
    known = tuple(int(part) for part in version("torch").split(".")[:2]) >= _ROUNDS_SINCE
    # Nor is it kept when it is freed: of blocks that are kept and not rounded, torch 2.13 hands out ones that are too
    # small (pytorch/pytorch#192722).
    limits = ("pinned_max_round_threshold_mb", "pinned_max_cached_size_mb") if known else ()
    return {_ALLOCATORS[0]: ",".join(["expandable_segments:True", *(f"{key}:{MOST_ROUNDED_MB}" for key in limits)])}


def _seen() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "CUDA_VISIBLE_DEVICES is not set" if visible is None else f"CUDA_VISIBLE_DEVICES is '{visible}'"
