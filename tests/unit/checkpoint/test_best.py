"""Which checkpoint a run is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from distft.checkpoint import store
from distft.checkpoint.best import choose_checkpoint
from distft.errors import UserError
from distft.run.folder import RunDir
from tests.chaos import corrupt
from tests.unit.recipes import recipe


def test_a_trained_run_is_not_exported_from_an_earlier_checkpoint_in_silence(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    corrupt.make(run.checkpoints)
    newest = store.folder_of(run.checkpoints, corrupt.NEW)
    assert choose_checkpoint(run, recipe(), last=corrupt.NEW).folder == newest
    (newest / store.MANIFEST).write_text("{")
    earlier = choose_checkpoint(run, recipe()).folder  # for who looks at a run that goes on
    assert store.step_of(earlier) < corrupt.NEW
    with pytest.raises(
        UserError, match=rf"{newest.name} is not used: .* or remove {newest}: the same command"
    ) as caught:
        choose_checkpoint(run, recipe(), last=corrupt.NEW)
    assert "\n" not in str(caught.value)
