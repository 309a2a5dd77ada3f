"""The only file that knows W&B: its run under the id fixed in run.json, and which rows it holds."""

from __future__ import annotations

from typing import Any

from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from distft.run.records import MetricsRecord, kind


class Numbering:
    """Numbers for the rows of a W&B run: one for each thing that was recorded, in the order in which it came first.

    A step that two attempts have trained is one row, so all attempts, whatever reached W&B of them, fill one history.
    """

    def __init__(self, run: RunDir) -> None:
        self._numbers: dict[tuple[str, int], int] = {}
        for record in run.records():
            self.of(record)

    def of(self, record: MetricsRecord) -> int:
        return self._numbers.setdefault((kind(record), int(record["step"])), len(self._numbers))


class WandbTracker:
    """A W&B run, or the next piece of one. Making it may wait for the network."""

    def __init__(self, recipe: Recipe, run: RunDir) -> None:
        self._numbering = Numbering(run)
        self._run = begin(recipe, run, run.read().wandb_id, online=recipe.track.wandb == "online")

    def log(self, record: MetricsRecord) -> None:
        self._run.log(record, step=self._numbering.of(record))

    def finish(self) -> None:
        self._run.finish()


def begin(recipe: Recipe, run: RunDir, wandb_id: str, online: bool) -> Any:
    """A W&B run, or another piece of it."""
    import wandb

    begun = wandb.init(
        id=wandb_id,
        name=recipe.name,
        project=recipe.track.project,
        entity=recipe.track.entity,
        mode="online" if online else "offline",
        resume="allow" if online else None,  # offline ignores it: each attempt is a folder of its own
        dir=str(run.path),
        config=recipe.model_dump(mode="json"),
        settings=wandb.Settings(x_disable_meta=True, save_code=False, console="off", silent=True),
    )
    begun.define_metric("*", step_metric="step")
    return begun


def rows_held(recipe: Recipe, wandb_id: str) -> list[int]:
    """Numbers of the rows that a W&B run has; none if there is no such run."""
    import wandb

    api = wandb.Api()
    path = f"{recipe.track.entity or api.default_entity}/{recipe.track.project}/{wandb_id}"
    try:
        history = api.run(path).scan_history(keys=["_step"])
    except (ValueError, wandb.errors.CommError) as error:
        if "not find" in str(error):
            return []
        raise
    return sorted(int(row["_step"]) for row in history)
