"""What a run has settled for `auto`: its micro-batch and recomputation, kept from its first attempt on (batch.json)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import cast

from distft.errors import UserError
from distft.recipe.batch import AUTO, EVERY
from distft.recipe.schema import Recipe, Train
from distft.run.files import write_atomically
from distft.run.folder import RunDir


@dataclass(frozen=True)
class Batch:
    """
    Attributes:
        why: in words.
        peak, room: bytes of one rank: what the plan expects at most, and what there are; None: it does not know.
    """

    micro_batch: int
    activation_checkpointing: str
    why: str
    peak: int | None = None
    room: int | None = None

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with these values where it says `auto`."""
        found = recipe
        if found.train.micro_batch == AUTO:
            train = found.train.model_copy(update={"micro_batch": self.micro_batch})
            found = found.model_copy(update={"train": train})
        if found.model.activation_checkpointing == AUTO:
            model = found.model.model_copy(update={"activation_checkpointing": self.activation_checkpointing})
            found = found.model_copy(update={"model": model})
        return found

    def overrides(self, recipe: Recipe) -> str:
        """As they are written in place of `auto`."""
        found = [f"train.micro_batch={self.micro_batch}"] if recipe.train.micro_batch == AUTO else []
        if recipe.model.activation_checkpointing == AUTO:
            found.append(f"model.activation_checkpointing={self.activation_checkpointing}")
        return " ".join(found)


def is_open(recipe: Recipe) -> bool:
    """Whether it leaves something to be settled."""
    return AUTO in (recipe.train.micro_batch, recipe.model.activation_checkpointing)


def read_batch(run: RunDir) -> Batch | None:
    """None: nothing was settled.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        found = Batch(**json.loads(run.batch.read_text(encoding="utf-8")))
        if not (type(found.micro_batch) is int and found.micro_batch > 0 and found.activation_checkpointing in EVERY):
            raise ValueError("not what was written there")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{run.batch} cannot be read ({error}); restore it from a copy, or set train.micro_batch and "
            "model.activation_checkpointing"
        ) from None
    return found


def keep_batch(run: RunDir, batch: Batch) -> None:
    write_atomically(run.batch, json.dumps(asdict(batch), indent=2) + "\n")


def settled(run: RunDir, recipe: Recipe) -> Recipe:
    """The recipe as this run has settled it; as it is where nothing is to be settled, or not yet."""
    kept = read_batch(run) if is_open(recipe) else None
    return recipe if kept is None else kept.applied(recipe)


def rows_at_once(run: RunDir, recipe: Recipe) -> int:
    """Rows per forward pass of a trained run that is asked something: as in training, else the default."""
    found = settled(run, recipe).train.micro_batch
    return cast(int, Train.model_fields["micro_batch"].default) if found == AUTO else found


def meant_alike(run: RunDir, stored: Recipe, wanted: Recipe) -> Recipe:
    """`stored`, with what it has settled for those keys that `wanted` names instead: the same value is no change."""
    there = settled(run, stored)
    train, model = stored.train, stored.model
    if wanted.train.micro_batch != AUTO:
        train = there.train
    if wanted.model.activation_checkpointing != AUTO:
        model = there.model
    return stored.model_copy(update={"train": train, "model": model})
