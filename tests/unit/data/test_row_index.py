import os
from pathlib import Path

import numpy as np
import pytest

from distft.data import row_index
from distft.data.packing import Rows, bucket, pack

SIZES = np.random.default_rng(0).integers(1, 64, 500).astype(np.int32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(row_index, "FEWEST", 500)
    return tmp_path / "tokens"


def same(one: Rows, other: Rows) -> bool:
    return all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in ((one.offsets, other.offsets), (one.documents, other.documents))
    )


def is_mapped(rows: Rows) -> bool:
    return not any(array.flags.owndata or array.flags.writeable for array in (rows.offsets, rows.documents))


def test_rows_are_computed_once_and_mapped(folder: Path) -> None:
    first = row_index.rows_of(folder, SIZES, pack, 64, 3)
    assert same(first, pack(SIZES, 64, 3))
    [kept] = folder.parent.iterdir()
    assert kept.name.startswith("tokens.rows-")

    def refuse(sizes: row_index.Sizes, row_tokens: int, seed: int) -> Rows:
        raise AssertionError("they were there")

    refuse.__name__ = "pack"
    again = row_index.rows_of(folder, SIZES, refuse, 64, 3)
    assert same(again, first)
    assert is_mapped(first)
    assert is_mapped(again)


def test_each_way_and_each_data_set_has_a_file_of_its_own(folder: Path) -> None:
    asked = [
        (SIZES, pack, 64, 3),
        (SIZES, bucket, 64, 3),
        (SIZES, pack, 65, 3),
        (SIZES, pack, 64, 4),
        (SIZES[::-1], pack, 64, 3),
    ]
    for _ in range(2):
        for sizes, way, row_tokens, seed in asked:
            assert same(row_index.rows_of(folder, sizes, way, row_tokens, seed), way(sizes, row_tokens, seed))
    assert len(list(folder.parent.iterdir())) == len(asked)


@pytest.mark.parametrize("size", [0, 7, 16, 24, 800, -8, -1])
def test_a_file_that_was_cut_off_is_made_anew(folder: Path, size: int) -> None:
    whole = row_index.rows_of(folder, SIZES, pack, 64, 3)
    expected = Rows(whole.offsets.copy(), whole.documents.copy())
    [path] = folder.parent.iterdir()
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:size])
    assert row_index.read(path) is None
    assert same(row_index.rows_of(folder, SIZES, pack, 64, 3), expected)
    assert path.read_bytes() == content


def test_a_flipped_bit_is_found_wherever_it_is(folder: Path) -> None:
    path = folder.with_name("rows")
    row_index.write(path, pack(SIZES, 64, 3))
    content = path.read_bytes()
    for place in [*range(24), *range(24, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert row_index.read(path) is None, place


def test_a_folder_that_cannot_be_written_is_no_hindrance(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, rows: Rows) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(row_index, "write", refuse)
    assert same(row_index.rows_of(folder, SIZES, pack, 64, 3), pack(SIZES, 64, 3))
    assert list(folder.parent.iterdir()) == []


def test_few_documents_are_not_kept(folder: Path) -> None:
    row_index.rows_of(folder, SIZES[:-1], pack, 64, 3)
    assert list(folder.parent.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_after_a_day(folder: Path) -> None:
    path = row_index.path_of(folder, SIZES, pack, 64, 3)
    old, new = path.with_name(f".{path.name}.1"), path.with_name(f".{path.name}.2")
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    row_index.rows_of(folder, SIZES, pack, 64, 3)
    assert sorted(folder.parent.iterdir()) == sorted([path, new])
