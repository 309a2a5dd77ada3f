"""The tag of a run's jobs in SLURM: `distft=ID:FOLDER` in a job's comment.

A number alone names other jobs too: those of the run that this one is a copy of, and whatever another cluster has under
it.
"""

from __future__ import annotations

import re
from pathlib import Path

from distft.run.folder import Run, RunDir
from distft.run.home import holds_elsewhere

_TAG = re.compile(r"(?:^|\s)distft=(?P<id>[0-9a-f]+):(?P<folder>.*)$")


def tag(identity: str, folder: Path) -> str:
    return f"distft={identity}:{folder}"


def has_tag(comment: str) -> bool:
    return _TAG.search(comment) is not None


def is_ours(comment: str, run: RunDir, record: Run) -> bool:
    """Whether a job was sent for this run, here or where it lay before it was moved."""
    found = _TAG.search(comment)
    if found is None or not record.id or found["id"] != record.id:
        return False
    return found["folder"] == str(run.path) or not holds_elsewhere(run, record, Path(found["folder"]))
