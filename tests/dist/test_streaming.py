"""Runs that stream: however they were stopped, prepared and laid out, they are the same run."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import distft.sample
from distft.data.lanes import PART
from distft.run.folder import RunDir
from tests.dist import scenario
from tests.dist.launch import run_ranks
from tests.dist.recipe import RECIPE
from tests.dist.streaming import HALF, STEPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streaming")
    data = Path(distft.sample.__file__).with_name("conversations.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE.format(data=data, cache=folder / "cache"))
    ranks(folder, 2, "pieces")
    return folder


def ranks(folder: Path, nproc: int, what: str) -> None:
    run_ranks("tests.dist.streaming", nproc, what, str(folder), str(folder / "recipe.yaml"))


def same_losses(folder: Path, other: str) -> None:
    whole, pieces = scenario.losses(folder / "whole"), scenario.losses(folder / other)
    assert sorted(whole) == sorted(pieces) == list(range(1, STEPS + 1))
    for step in whole:
        assert set(pieces[step]) == set(whole[step]), f"step {step}"


def test_a_stop_and_a_lost_step_change_no_bit(folder: Path) -> None:
    same_losses(folder, "broken")
    samples = scenario.samples(folder / "whole")
    assert [len(micros) for micros in samples.values()] == [8] * STEPS
    fed = [sample for micros in samples.values() for rows in micros for row in rows for sample in row]
    assert len(set(fed)) > 300


@pytest.mark.long
def test_a_prepared_cache_changes_no_bit(folder: Path) -> None:
    ranks(folder, 2, "prepared")
    same_losses(folder, "prepared")


def test_one_rank_goes_on_with_the_samples_of_two(folder: Path) -> None:
    ranks(folder, 2, "begun")
    ranks(folder, 1, "ended")
    assert scenario.samples(folder / "relayout") == scenario.samples(folder / "whole")
    whole, other = scenario.losses(folder / "whole"), scenario.losses(folder / "relayout")
    assert all(abs(whole[step][0] - other[step][0]) < 1e-4 for step in range(1, HALF + 3))


@pytest.mark.long
def test_documents_that_share_no_row(folder: Path) -> None:
    ranks(folder, 2, "padded")
    one, four = (scenario.samples(folder / f"padded-{micro}") for micro in (1, 4))
    for step in one:
        rows = [[row for micro in fed[step] for row in micro] for fed in (one, four)]
        assert rows[0] == rows[1]
        assert all(len(row) == 1 for row in rows[0])


@pytest.mark.long
def test_sources_with_weights(folder: Path) -> None:
    """Shards packed by gzip and zstd and a table of one, three quarters of the rows, a plain file of the other."""
    lines = Path(distft.sample.__file__).with_name("conversations.jsonl").read_bytes().splitlines(keepends=True)
    shards = folder / "shards"
    shards.mkdir()
    (shards / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:150])))
    with pyarrow.CompressedOutputStream(str(shards / "b.jsonl.zst"), "zstd") as file:
        file.write(b"".join(lines[150:250]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(map(json.loads, lines[250:310]))), shards / "c.parquet")
    (folder / "other.jsonl").write_bytes(b"".join(lines[310:]))
    sources = [{"path": f"{shards}/*", "weight": 3}, {"path": str(folder / "other.jsonl"), "weight": 1}]
    (folder / "sources.json").write_text(json.dumps(sources))
    for nproc in (1, 2):
        ranks(folder, nproc, "mixed")
        whole, pieces = scenario.losses(folder / f"mixed-{nproc}"), scenario.losses(folder / f"mixed-pieces-{nproc}")
        assert whole == pieces
    one, two = (scenario.samples(folder / f"mixed-{nproc}") for nproc in (1, 2))
    for step in range(1, STEPS + 1):
        assert [row for micro in one[step] for row in micro] == [row for micro in two[step] for row in micro]
    for nproc in (1, 2):
        for record in (one for one in RunDir(folder / f"mixed-{nproc}").records() if "loss" in one):
            fed = [sample % (1 << PART) < 310 for micro in one[record["step"]] for row in micro for sample in row]
            taken = [value for name, value in record.items() if re.fullmatch(r"source\..*\.documents", name)]
            assert taken == [sum(fed), len(fed) - sum(fed)]
            assert sum(value for name, value in record.items() if re.fullmatch(r"source\..*\.tokens", name)) > 0
            of_sources = [value for name, value in record.items() if re.fullmatch(r"source\..*\.loss", name)]
            assert min(of_sources) - 1e-5 <= record["loss"] <= max(of_sources) + 1e-5
    rows = [row for step in range(1, 17) for micro in one[step] for row in micro]  # 256
    assert sum(row[0] % (1 << PART) < 310 for row in rows) == 192
    assert all(len({sample % (1 << PART) < 310 for sample in row}) == 1 for row in rows)


@pytest.mark.long
def test_bad_records_are_listed_once(folder: Path) -> None:
    data = Path(distft.sample.__file__).with_name("conversations.jsonl").read_text().splitlines()
    places = [3, 64, 65, 200, 401]
    for place in places:
        data.insert(place, '{"messages": 3}')
    (folder / "spoilt.jsonl").write_text("\n".join(data) + "\n")
    (folder / "spoilt.json").write_text(json.dumps(places))
    ranks(folder, 2, "bad")


@pytest.mark.long
def test_a_rollback_feeds_the_same_rows(folder: Path) -> None:
    ranks(folder, 2, "rollback")
    same_losses(folder, "rollback")
