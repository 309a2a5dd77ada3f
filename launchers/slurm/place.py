"""The place of a job as its site profile describes it, for the plan: ranks, their GPU and measured rates, memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from distft.plan.devices import Device, device, meant, unknown
from distft.plan.duration import GB, LINKS
from distft.plan.place import Place
from launchers.slurm.site import Site

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def place_of(site: Site) -> Place:
    gpu, why = gpu_of(site)
    memory = memory_of(site)
    if gpu is None and memory is None:
        why = ['the site profile does not say how much memory a job gets of a node; write memory = "240G" into it']
    return Place(
        nodes=site.nodes,
        per_node=site.ranks_a_node,
        device=None if gpu is None else measured(gpu, site),
        memory=memory,
        hub=hub_of(site),
        unknown=why,
    )


def gpu_of(site: Site) -> tuple[Device | None, list[str]]:
    """The GPU of each rank, None: there is none; and what to say if nobody knows which."""
    gpus = site.gpus
    if gpus is None:
        return None, []
    found = [gpus.model] if gpus.model else kinds(site)
    known = [device(name) for name in found]
    if known and len({one.memory for one in known}) == 1:
        return known[0], []
    if gpus.type is None:
        why = 'the site profile does not name the GPU of its nodes; write it as gpus.model, such as "A100-80GB"'
    elif found:
        why = f"gpus.type {gpus.type} of the site profile may be one of {', '.join(found)}; write which as gpus.model"
    else:
        why = (
            f"gpus.type {gpus.type} of the site profile is no GPU of the plan's table; write gpus.model if it is there "
            "by another name"
        )
    return unknown(gpus.type or "GPU"), [why]


def kinds(site: Site) -> list[str]:
    """GPUs of the plan's table that the scheduler's name may mean."""
    return meant(site.gpus.type) if site.gpus is not None and site.gpus.type else []


def measured(gpu: Device, site: Site) -> Device:
    """With the rates of the profile in place of the table's."""
    rates = site.rates
    return replace(
        gpu,
        reached=rates.reached or gpu.reached,
        link=rates.within_node * GB / LINKS if rates.within_node else gpu.link,  # of which the plan takes LINKS
        between=rates.between_nodes * GB if rates.between_nodes else gpu.between,
    )


def memory_of(site: Site) -> int | None:
    """Bytes of `memory`, which SLURM reads as MiB; None: all that a node has, or the partition's default."""
    text = (site.memory or "").removesuffix("B")
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "M")
    return int(number or 0) * UNITS[unit] or None


def hub_of(site: Site) -> Path | None:
    """The cache of the hub on the nodes; None: the one of this shell."""
    home = os.path.expandvars(os.path.expanduser(site.scratch.huggingface or ""))
    return Path(home) / "hub" if home else None
