"""Which processes are ranks that something else has started, and which only have the variables of such a rank."""

from __future__ import annotations

import pytest

from distft.errors import UserError
from distft.inference.workers import STARTED_HERE, STARTERS, rank_and_world


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", STARTED_HERE, *STARTERS):
        monkeypatch.delenv(name, raising=False)


def test_a_process_that_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_and_world() is None
    monkeypatch.setenv("WORLD_SIZE", "4")  # says nothing without RANK
    assert rank_and_world() is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")  # nobody to wait for
    assert rank_and_world() == (0, 1)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_variables_that_are_left_over_are_refused_at_once(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError) as raised:
        rank_and_world()
    assert str(raised.value) == (
        f"RANK is {rank} and WORLD_SIZE 2, but nothing like srun, torchrun or mpirun has started this process, so it "
        "would wait in vain for other ranks; if these variables are left over: `unset RANK LOCAL_RANK WORLD_SIZE`, and "
        "have distft start the ranks (--nproc)"
    )
    # a shell that srun has started is one task, whatever is left over in it
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    with pytest.raises(UserError, match=r"^RANK is \d and WORLD_SIZE 2, but"):
        rank_and_world()


@pytest.mark.parametrize("starter", [STARTED_HERE, *STARTERS])
def test_ranks_that_something_has_started(monkeypatch: pytest.MonkeyPatch, starter: str) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(starter, "1")
    assert rank_and_world() == (1, 2)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert rank_and_world() == (1, 2)


def test_variables_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match=r"RANK and WORLD_SIZE must both be numbers; if it is left over: `unset RANK"):
        rank_and_world()
