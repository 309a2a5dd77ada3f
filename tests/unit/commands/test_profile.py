"""What a profile says of ranks, in tables, sentences and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distft.commands import profile as view
from distft.errors import UserError
from distft.run.folder import RunDir
from distft.run.profile import PARTS, Wanted, file_of, read, wanted

GIB = 1 << 30


def profile(*ranks: dict[str, float], compared: bool = True) -> dict[str, Any]:
    """Of two steps. Each rank: seconds by part."""
    found = {
        "attempt": 1,
        "first_step": 3,
        "steps": 2,
        "device": "cpu",
        "compared": compared,
        "ranks": [
            {
                "rank": number,
                "host": f"node{number}",
                "seconds": sum(parts.values()),
                "parts": dict.fromkeys(PARTS, 0.0) | parts,
                "host_waits": 0.0,
                "memory": {"forward": (3 + number) * GIB, "other": GIB},
            }
            for number, parts in enumerate(ranks)
        ],
    }
    return found | view.findings(found)


def rows(found: dict[str, Any]) -> dict[str, list[str]]:
    """Cells of both tables by the first one."""
    lines = [line.split("  ") for line in view.text(found).splitlines() if "  " in line]
    return {line[0].strip(): [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}


def test_the_rank_that_others_wait_for() -> None:
    found = profile(
        {"data": 0.2, "forward": 4.0, "waiting": 3.0, "communication": 0.8},
        {"data": 3.0, "forward": 4.2, "waiting": 0.0, "communication": 0.8},
    )
    assert rows(found) == {
        "ms per step, steps 3 to 4": ["rank 0", "rank 1", "share"],
        "data": ["100.0", "1,500", "20.0%"],
        "forward": ["3.0 GiB", "4.0 GiB"],
        "communication": ["400.0", "400.0", "10.0%"],
        "waiting for ranks": ["1,500", "0.0", "18.8%"],
        "sum": ["4,000", "4,000", "100.0%"],
        "peak resident": ["rank 0", "rank 1"],
        "other": ["1.0 GiB", "1.0 GiB"],
    }
    assert list(view.sentences(found)) == [
        "the slowest is rank 1 (node1): another one waits 1,500.0 ms longer than it per step (38%). Compared with "
        "the others it loses most in data: 1,400.0 ms",
        "memory is fullest in forward, on rank 1: 4.0 GiB",
    ]


def test_a_rank_that_others_wait_for_without_a_part_that_takes_longer() -> None:
    found = profile({"forward": 4.0, "waiting": 1.0}, {"forward": 4.0, "other": 1.0})
    assert next(view.sentences(found)).endswith(
        "No part of its own work takes longer than on the others: look at the network"
    )


def test_six_ranks_fit_a_terminal_of_80_columns() -> None:
    found = profile(*({"backward": 4.0, "waiting": 0.1 * rank} for rank in range(6)))
    lines = view.text(found, 80).splitlines()
    heads = [word for rank in range(6) for word in ("rank", str(rank))]
    assert [*lines[0].split(), *lines[1].split()] == ["ms", "per", "step,", "steps", "3", "to", "4", *heads, "share"]
    assert lines[2].split() == ["backward", *["2,000"] * 6, "94.1%"]


def test_ranks_that_are_alike_or_cannot_be_compared() -> None:
    alike = [{"forward": 4.0, "waiting": 0.01}, {"forward": 4.0, "waiting": 0.02}]
    assert next(view.sentences(profile(*alike))) == "no rank is much slower than the others"
    assert next(view.sentences(profile(*alike, compared=False))).startswith("the ranks did other collectives")
    assert next(view.sentences(profile({"forward": 4.0}))).startswith("memory is fullest")


def test_many_ranks_are_a_few_columns(tmp_path: Path) -> None:
    found = profile(*({"backward": 4.0 - 0.1 * rank, "waiting": 0.1 * rank} for rank in range(40)))
    shown = rows(found)
    assert shown["ms per step, steps 3 to 4"] == [
        "rank 0, the slowest",
        "rank 39, waits most",
        "mean of 40 ranks",
        "share",
    ]
    assert shown["backward"] == ["2,000", "50.0", "1,025", "51.2%"]
    run = RunDir(tmp_path / "run")
    run.create("many", "")
    assert view.draw(run, found).read_bytes().startswith(b"\x89PNG")


def test_a_profile_is_found_by_its_attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "run")
    run.create("x", "")
    with pytest.raises(UserError, match="has no profile; ask for one with --profile N"):
        read(run, None)
    for attempt, seconds in ((2, 0.3), (10, 0.5)):
        file_of(run, attempt).parent.mkdir(parents=True)
        file_of(run, attempt).write_text(json.dumps(profile({"data": seconds})))
    view.show(run, None)
    assert "250.0" in capsys.readouterr().out
    view.show(run, 2)
    assert "150.0" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"attempt 3 of .* has no profile"):
        read(run, 3)
    file_of(run, 10).write_text("{")
    with pytest.raises(UserError, match=r"profile\.json cannot be read"):
        read(run, None)


def test_what_is_asked_for_passes_through_a_variable() -> None:
    assert [Wanted.of_text(one.text()) for one in (Wanted(5), Wanted(3, True))] == [Wanted(5), Wanted(3, True)]
    assert Wanted.of_text("") is None
    for text in ("five", "0", "-1", "51", "5 more"):
        with pytest.raises(UserError, match=r"^DISTFT_PROFILE='.*': must be a number of steps, 1 to 50$"):
            Wanted.of_text(text)
    assert wanted(None, False) is None
    with pytest.raises(UserError, match="--profile 3 --trace"):
        wanted(None, True)
