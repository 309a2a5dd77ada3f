"""An attempt in run.json: it trains, then it exports, and a run is done when both are."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from distft.errors import DONE, FAILED, PREEMPTED, USAGE, UserError
from distft.run import lease
from distft.run.batch import Batch, keep_batch
from distft.run.folder import RunDir
from launchers.attempt import Phases, Verdict, recorded
from launchers.local import settle_recipe
from tests.unit.recipes import recipe

TRAINED = Verdict(DONE, "finished")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    settle_recipe(made, recipe())
    (made.checkpoints / "step-00000005").mkdir()
    return made


def attempt(run: RunDir, train: Mock, export: Mock) -> Verdict:
    with lease.hold_run(run) as held:
        return recorded(run, recipe(), held, ["n1"], 1, Phases(train, export))


@pytest.mark.parametrize(
    ("export", "state"),
    [
        (Verdict(DONE, "finished"), "done"),
        (Verdict(FAILED, "the export crashed"), "trained"),
        (Verdict(USAGE, "final is not an export"), "trained"),
        (Verdict(PREEMPTED, "preempted (SIGTERM)"), "preempted"),
    ],
)
def test_what_is_trained_is_only_exported(run: RunDir, export: Verdict, state: str) -> None:
    train = Mock(return_value=TRAINED)
    assert attempt(run, train, Mock(return_value=export)) == export
    assert (run.read().state, run.read().attempts[0].cause) == (state, export.cause)
    attempt(run, train, Mock(return_value=export))
    assert train.call_count == 1


def test_an_export_whose_parent_fails_leaves_no_finished_run(run: RunDir) -> None:
    with pytest.raises(OSError, match="Stale file handle"):
        attempt(run, Mock(return_value=TRAINED), Mock(side_effect=OSError(116, "Stale file handle")))
    record = run.read()
    assert (record.state, record.attempts[0].exit_code) == ("trained", FAILED)


def test_ranks_that_are_done_make_no_finished_run_where_that_cannot_be_recorded(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunDir.write
    answers = iter([None, OSError(5, "Input/output error"), None])  # the beginning, "trained", the end

    def fails_once(self: RunDir, record: object) -> None:
        if (error := next(answers)) is not None:
            raise error
        write(self, record)  # type: ignore[arg-type]

    monkeypatch.setattr(RunDir, "write", fails_once)
    export = Mock()
    with pytest.raises(OSError, match="Input/output error"):
        attempt(run, Mock(return_value=TRAINED), export)
    assert run.read().state == "trained"
    assert run.read().attempts[0].exit_code == FAILED
    assert not export.called


def test_a_run_that_lost_its_last_checkpoint_is_not_trained(run: RunDir) -> None:
    train, export = Mock(return_value=TRAINED), Mock(return_value=Verdict(FAILED, "the export crashed"))
    attempt(run, train, export)
    assert run.read().trained == 5
    (run.checkpoints / "step-00000005").rename(run.checkpoints / "step-00000004")
    train.return_value = Verdict(FAILED, "rank 0 crashed")
    attempt(run, train, export)
    assert train.call_count == 2
    assert (run.read().trained, run.read().state) == (0, "failed")


def test_the_values_that_were_settled_may_be_written_down(tmp_path: Path) -> None:
    """With a checkpoint; others have to be allowed, and before one a changed recipe starts over."""
    train = {"steps": 5, "global_batch": 8, "micro_batch": "auto"}
    made = RunDir(tmp_path / "run")
    settle_recipe(made, recipe(train=train))
    keep_batch(made, Batch(2, "off", "it fits"))
    settle_recipe(made, recipe(train=train))
    assert made.batch.exists()
    (made.checkpoints / "step-00000001").mkdir()
    settle_recipe(made, recipe(train=train | {"micro_batch": 2}))
    assert "micro_batch: 2" in made.config.read_text()
    with pytest.raises(UserError, match=r"add --allow train\.micro_batch"):
        settle_recipe(made, recipe(train=train | {"micro_batch": 4}))
    (made.checkpoints / "step-00000001").rmdir()
    settle_recipe(made, recipe(train=train | {"micro_batch": 4}))
    assert not made.batch.exists()
