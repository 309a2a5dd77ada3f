"""What may change between two attempts of a run: freely, with `--allow`, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from distft.errors import UserError
from distft.recipe.checkpoint import Checkpoint
from distft.recipe.schema import Data, Engine, Track, Train

Rule = Literal["harmless", "to be allowed", "refused"]

ROUNDING = ("dtype", "grad_dtype", "loss_chunk")  # of the engine: what changes last bits
HARMLESS = frozenset(
    {
        *(f"engine.{key}" for key in Engine.model_fields if key not in ROUNDING),
        *(f"checkpoint.{key}" for key in Checkpoint.model_fields),
        *(f"track.{key}" for key in Track.model_fields),
        *("name", "data.cache", "data.eval", "data.eval_split"),
        *("data.bad_records", "data.bad_budget"),  # what a run has begun with is the same under all of their values
        *("train.eval_every", "train.best", "train.patience", "train.non_finite", "train.non_finite_budget"),
    }
)
"""Keys of a recipe that leave the losses alone."""

CONTENT, TOKENIZER, VERSIONS = "data.content", "data.tokenizer", "versions"
BASE_CONTENT = "model.content"
ALLOWABLE = (
    frozenset(
        {
            *(f"train.{key}" for key in Train.model_fields),
            *(f"data.{key}" for key in Data.model_fields),
            *(f"engine.{key}" for key in ROUNDING),
            "adapter.dropout",
            *("model.attention", "model.activation_checkpointing", "model.trust_remote_code"),
            *(CONTENT, TOKENIZER, VERSIONS),
        }
    )
    - HARMLESS
    - {"train.global_batch"}  # the data cursor counts in it
)
"""Keys, and what no recipe tells, that change the losses and leave the trained state usable."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was; a value is None where there was or is none."""

    key: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} before, {self.new!r} now"

    @property
    def name(self) -> str:
        """What it is called in --allow."""
        if self.key.startswith(f"{VERSIONS}."):
            return VERSIONS
        if self.key == "task.beams" or (self.key.startswith("task.tasks.") and ".eval" in self.key):
            return "data.eval"  # as harmless: it is for evaluations
        # of what is named by column: renamed fields, parallel files
        whole = (key for key in ("data.fields", "data.train", "data.eval") if self.key.startswith(f"{key}."))
        return next(whole, self.key)

    @property
    def rule(self) -> Rule:
        if self.name in HARMLESS or (self.name == VERSIONS and _minor(self.old) == _minor(self.new)):
            return "harmless"
        return "to be allowed" if self.name in ALLOWABLE else "refused"


def _minor(version: object) -> list[str]:
    return str(version).split(".")[:2]


def check_allowed(names: Iterable[str]) -> frozenset[str]:
    """The values of --allow.

    Raises:
        UserError: one of them names nothing that may be allowed.
    """
    names = frozenset(names)
    if unknown := sorted(names - ALLOWABLE):
        raise UserError(f"--allow {unknown[0]}: unknown; the possible values are {', '.join(sorted(ALLOWABLE))}")
    return names


def agree(found: Sequence[Difference], allowed: frozenset[str], what: str) -> None:
    """Accept what is harmless or allowed.

    Args:
        what: how the message begins; what is different.

    Raises:
        UserError: something is neither; the message shows all differences, sorted.
    """
    wanting = [item for item in found if item.rule == "to be allowed" and item.name not in allowed]
    refused = [item for item in found if item.rule == "refused"]
    if not wanting and not refused:
        return
    names = sorted({item.name for item in wanting})
    flags = " ".join(f"--allow {name}" for name in names)
    remedy = "use another --run-dir, or the same values" if refused else f"add {flags}, or use the same values"
    lines = [f"{what}; {remedy}:"]
    for title, group in (
        ("refused", refused),
        ("needs --allow", wanting),
        ("harmless or allowed", [item for item in found if item not in wanting and item not in refused]),
    ):
        lines += [f"  {title}: {item}" for item in group]
    raise UserError("\n".join(lines))
