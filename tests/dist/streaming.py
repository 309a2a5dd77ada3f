"""Ranks of runs whose data are encoded while they train.

python -m tests.dist.streaming WHAT FOLDER CONFIG
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from distft.data import stream_documents
from distft.process.console import Console
from distft.process.distributed import Ranks, barrier
from distft.recipe.load import load
from distft.training.preparation import prepare
from tests.dist import scenario

STEPS, HALF = 30, 13
SETTINGS = ("data.streaming=true", "track.samples=true", "train.micro_batch=2", f"train.steps={STEPS}")


def run(folder: Path, name: str, config: Path, ranks: Ranks, *overrides: str) -> scenario.Open:
    return scenario.open_run(folder / name, config, ranks, *SETTINGS, *overrides)


def pieces(folder: Path, config: Path, ranks: Ranks) -> None:
    """Stopped in the middle, with steps that are lost and trained again: the same to the bit."""
    whole = run(folder, "whole", config, ranks)
    assert isinstance(whole.session.stream.data.parts[0].documents, stream_documents.Encoded)
    whole.advance(STEPS)
    expected = whole.state()
    epoch = whole.session.epoch
    whole.close()
    broken = run(folder, "broken", config, ranks)
    broken.advance(HALF)
    broken.save(slowly=True)
    broken.advance(2)
    broken.close()
    again = run(folder, "broken", config, ranks)
    assert again.step == HALF
    again.advance(STEPS - HALF)
    scenario.same(expected, again.state())
    assert again.session.epoch == epoch > 0.3
    again.close()


def prepared(folder: Path, config: Path, ranks: Ranks) -> None:
    """The token cache has all documents: the same run."""
    cache = f"data.cache={folder / 'filled'}"
    if ranks.first:
        list(prepare(load(config, [*SETTINGS, cache]), None, Console(False)))
    barrier()
    found = run(folder, "prepared", config, ranks, cache)
    assert isinstance(found.session.stream.data.parts[0].documents, stream_documents.Prepared)
    found.advance(HALF)
    found.save()
    found.close()
    goes_on = run(folder, "prepared", config, ranks)  # with the other cache, where records have to be encoded
    assert isinstance(goes_on.session.stream.data.parts[0].documents, stream_documents.Encoded)
    goes_on.advance(STEPS - HALF)
    goes_on.close()


def begun(folder: Path, config: Path, ranks: Ranks) -> None:
    first = run(folder, "relayout", config, ranks)
    first.advance(HALF)
    first.save()
    first.close()


def ended(folder: Path, config: Path, ranks: Ranks) -> None:
    last = run(folder, "relayout", config, ranks)
    assert last.step == HALF
    last.advance(STEPS - HALF)
    last.close()


def padded(folder: Path, config: Path, ranks: Ranks) -> None:
    """A document a row; the same samples in any micro-batches."""
    for micro in (1, 4):
        found = run(folder, f"padded-{micro}", config, ranks, "data.packing=false", f"train.micro_batch={micro}")
        found.advance(6)
        found.close()


def mixed(folder: Path, config: Path, ranks: Ranks) -> None:
    """Sources with weights, of several files: in one piece and in two, and on any number of ranks."""
    settings = (f"data.train={(folder / 'sources.json').read_text()}", f"train.micro_batch={ranks.world}")
    whole = run(folder, f"mixed-{ranks.world}", config, ranks, *settings)
    whole.advance(STEPS)
    whole.close()
    for part in (HALF, STEPS - HALF):
        pieces = run(folder, f"mixed-pieces-{ranks.world}", config, ranks, *settings)
        pieces.advance(part)
        pieces.save()
        pieces.close()


def bad(folder: Path, config: Path, ranks: Ranks) -> None:
    """Left out as if they were not there, and listed once, whenever they were met."""
    spoilt = (f"data.train={folder / 'spoilt.jsonl'}", "data.bad_records=skip", "data.bad_budget=0.5", "train.steps=90")
    found = run(folder, "bad", config, ranks, *spoilt)
    for part in (20, 30, 30):
        found.advance(part)
        found.save()
        found.advance(1)
        found.close()
        found = run(folder, "bad", config, ranks, *spoilt)
    found.close()
    if ranks.first:
        listed = [json.loads(line) for line in (folder / "bad" / "bad-records.jsonl").read_text().splitlines()]
        assert [one["record"] for one in listed] == json.loads((folder / "spoilt.json").read_text())
        assert all(one["data"] == "train" for one in listed)


def rollback(folder: Path, config: Path, ranks: Ranks) -> None:
    """What goes back to a checkpoint is fed the same rows again."""
    found = run(folder, "rollback", config, ranks, "train.non_finite=rollback")
    found.advance(HALF)
    found.save()
    found.advance(2)
    spoil(found)
    found.advance(1)
    assert found.step == HALF, "it is to have gone back"
    found.advance(STEPS - HALF)
    found.close()


def spoil(opened: scenario.Open) -> None:
    """Have the next loss be NaN, once."""
    task, loss = opened.session.task, opened.session.task.loss

    def once(model: object, batch: object) -> object:
        task.loss = loss
        return {name: value * float("nan") for name, value in loss(model, batch).items()}

    task.loss = once


def main() -> None:
    what, folder, config = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    {each.__name__: each for each in (pieces, prepared, begun, ended, padded, mixed, bad, rollback)}[what](folder, config, scenario.join())


if __name__ == "__main__":
    main()
    scenario.leave()
