"""A prediction as JSON, and the one that each attempt of a run writes into its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distft.errors import UserError
from distft.plan.devices import Device
from distft.plan.duration import Times
from distft.plan.estimate import Estimator
from distft.plan.prediction import Moment, Prediction
from distft.plan.shapes import is_known
from distft.recipe.schema import Recipe
from distft.run.files import write_atomically

FILE = "plan.json"  # beside the logs of an attempt


def quick(recipe: Recipe, world: int, per_node: int, device: Device | None, memory: int | None) -> Prediction:
    """The prediction of a run that is there, in some tens of milliseconds.

    Args:
        memory: bytes of host memory of a node.

    Raises:
        UserError: there is none, or transformers would have to be asked for it.
    """
    if not is_known(recipe):
        raise UserError("the shapes of this model type are not known here")
    return Estimator(per_node, device, memory).predict(recipe, world // per_node)


def write(folder: Path, found: Prediction) -> None:
    write_atomically(folder / FILE, json.dumps(as_json(found), indent=1) + "\n")


def read(folder: Path) -> Prediction | None:
    """None: nothing was written there, or by a version that wrote it in another way."""
    try:
        stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Prediction(
            world=stored["world"],
            per_node=stored["per_node"],
            device=None if stored["device"] is None else Device(**stored["device"]),
            moments=_moments(stored["moments"]),
            host_moments=_moments(stored["host_moments"]),
            node_moments=_moments(stored["node_moments"]),
            room=stored["room"],
            node_memory=stored["node_memory"],
            times=None if stored["times"] is None else Times(**stored["times"]),
            useful=stored["useful"],
            step_tokens=stored["step_tokens"],
            checkpoint=stored["checkpoint"],
            doubts=tuple(stored["doubts"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _moments(stored: Mapping[str, Mapping[str, int]]) -> tuple[Moment, ...]:
    return tuple(Moment(name, terms) for name, terms in stored.items())


def as_json(found: Prediction) -> dict[str, Any]:
    """All figures, in bytes and seconds."""
    return {
        "world": found.world,
        "per_node": found.per_node,
        "gpu": found.device.name if found.device else None,
        "device": asdict(found.device) if found.device else None,
        "fits": None if found.room is None else found.fits,
        "room": found.room,
        "peak": found.peak.total,
        "peak_at": found.peak.name,
        "moments": {moment.name: dict(moment.terms) for moment in found.moments},
        "host": found.host,
        "host_node": found.node,
        "node_memory": found.node_memory,
        "node_moments": {moment.name: dict(moment.terms) for moment in found.node_moments},
        "host_moments": {moment.name: dict(moment.terms) for moment in found.host_moments},
        "checkpoint": found.checkpoint,
        "step_seconds": found.step_seconds,
        "times": asdict(found.times) if found.times else None,
        "useful": found.useful,
        "step_tokens": found.step_tokens,
        "doubts": list(found.doubts),
    }
