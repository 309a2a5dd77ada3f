"""Damage in the token cache between two attempts: the next one makes it anew, and nothing shows in the losses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distft.data.corpus import Corpus
from tests.e2e.command import STEPS, flip, losses
from tests.e2e.conftest import Made


@pytest.mark.long
@pytest.mark.parametrize("name", ["tokens.column.bin", "targets.bin"])
def test_a_byte_that_flips_between_two_attempts_is_made_anew(preempted: Made, unbroken: Made, name: str) -> None:
    place, run = preempted.place, preempted.copy(f"flipped {name}")
    caches = Path(shutil.copytree(place.folder / "cache" / "distft", place.folder / f"cache of {name}"))
    [folder] = (
        path.parent for path in caches.glob("tokens/*/meta.json") if json.loads(path.read_text())["records"] == 60
    )
    before = (folder / name).read_bytes()
    flip(folder / name)
    assert (folder / name).read_bytes() != before
    command = ("train", "recipe.yaml", "data.eval=eval.jsonl", f"data.cache={caches}", "--run-dir", run, "--nproc", "2")
    ended = place.run(*command)
    assert ended.code == 0, ended.err
    assert (
        ended.err.count(f"token cache {folder} is damaged: {name} from byte 0 on; what was encoded there is made") == 1
    )
    assert (folder / name).read_bytes() == before
    assert Corpus.open(folder).meta.records == 60
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    assert losses(run) == losses(unbroken.run)
    shutil.rmtree(run)
