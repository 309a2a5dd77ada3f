"""A folder takes its place whole, and from one writer alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from distft.run.files import complete_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "final [1]"  # a name with what globs mean by it
    with complete_folder(final) as staged:
        (staged / "a").write_text("first")
        assert not final.exists()
    with pytest.raises(FileNotFoundError), complete_folder(final) as staged:
        (staged / "missing" / "b").write_text("second")
    assert (final / "a").read_text() == "first"
    with complete_folder(final) as staged:
        (staged / "c").write_text("third")
    assert names(final) == ["c"]
    assert names(tmp_path) == ["final [1]"]


def test_a_writer_that_was_given_up_cannot_publish(tmp_path: Path) -> None:
    """It was cut off while it wrote, another one took over, and it lives on."""
    final, old = tmp_path / "final", complete_folder(tmp_path / "final")
    staged = old.__enter__()
    (staged / "a").write_text("old")
    with complete_folder(final) as newer:
        (newer / "a").write_text("new")
    with pytest.raises(FileNotFoundError):
        (staged / "b").write_text("old")
    with pytest.raises(FileNotFoundError):
        old.__exit__(None, None, None)
    assert (final / "a").read_text() == "new"
