"""`distft logs`: which log is printed, and when following it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from distft.commands import logs
from distft.errors import UserError
from distft.run.folder import Run, RunDir, State
from launchers.local import settle_recipe
from tests.unit.recipes import recipe


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Trained by two ranks in its first attempt; the second had only the export to do."""
    made = RunDir(tmp_path / "run")
    settle_recipe(made, recipe())
    for number, name in ((1, "rank-0.log"), (1, "rank-1.log"), (1, "export.log"), (2, "export.log")):
        made.attempt_logs(number).mkdir(exist_ok=True)
        (made.attempt_logs(number) / name).write_text(f"{name} of attempt {number}")
    return made


def test_an_attempt_that_only_exports_hides_no_log_of_a_rank(run: RunDir) -> None:
    assert logs.log_of(run, None, 1) == run.attempt_logs(1) / "rank-1.log"
    with pytest.raises(UserError, match=r"attempt-002/rank-1\.log; ranks with a log: none$"):
        logs.log_of(run, 2, 1)
    with pytest.raises(UserError, match=r"ranks with a log: 0, 1$"):
        logs.log_of(run, None, 2)


@pytest.mark.parametrize("state", ["done", "trained", "failed"])
def test_following_ends_when_no_attempt_may_follow(run: RunDir, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write(Run("x", state=state))
    monkeypatch.setattr(logs.time, "sleep", lambda seconds: pytest.fail("still following"))
    path = run.attempt_logs(1) / "rank-0.log"
    assert list(logs.following(run, path, None, 0)) == ["rank-0.log of attempt 1"]
