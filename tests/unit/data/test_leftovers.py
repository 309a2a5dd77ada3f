"""What is removed from the token cache, and when."""

from __future__ import annotations

import os
import time
from pathlib import Path

from distft.data import leftovers

DAY = 86400


def test_what_is_beside_a_folder_goes_after_it_and_indexes_when_nobody_uses_them(tmp_path: Path) -> None:
    days = {  # since each was used last
        **dict.fromkeys(("gone.rows-1", "gone.pieces-1", "gone.twins-1", "gone.damaged"), 2.0),
        "moved.rows-1": 0.5,
        "there.rows-1": 99.0,
        "there.twins-1": 99.0,
        "several-0.rows-1": 31.0,
        "several-1.rows-1": 2.0,
        "several-2.rows-1": 99.0,
        "index-0.npz": 31.0,
        "index-1.zst": 2.0,
        "index-2.zst": 99.0,
        "source-0.json": 99.0,
    }
    (tmp_path / "there").mkdir()
    for name, age in days.items():
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (0, time.time() - age * DAY))
    for used in ("index-2.zst", "several-2.rows-1", "nothing"):
        leftovers.used(tmp_path / used)
    leftovers.remove(tmp_path)
    gone = {"gone.rows-1", "gone.pieces-1", "gone.twins-1", "gone.damaged", "several-0.rows-1", "index-0.npz"}
    assert {name for name in days if not (tmp_path / name).exists()} == gone
