"""Where a run lies: one that was moved is still the same run; a copy becomes another one.

run.json remembers the run's id and its folder. If that folder still holds a run of the same id, this one is a copy, and
what the original's jobs do is none of its business.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from distft.run import lease
from distft.run.folder import Run, RunDir, new_id, new_wandb_id
from distft.run.turn import in_turn

JOBS = Path("slurm") / "jobs.json"  # what was sent for a run


def settle(run: RunDir) -> None:
    """Take down where a run lies; for commands that write. A copy becomes a run of its own, which is said.

    Raises:
        UserError: run.json is damaged.
    """
    if not run.exists() or _is_settled(run, run.read()):
        return
    with in_turn(run):
        record = run.read()
        if _is_settled(run, record):
            return
        if record.home is not None and holds_elsewhere(run, record, Path(record.home)):
            _become_another(run, record)
        elif not lease.alive(run):  # else run.json has another writer, and the next command is early enough
            run.write(dataclasses.replace(record, id=record.id or new_id(), home=str(run.path)))


def holds_elsewhere(run: RunDir, record: Run, folder: Path) -> bool:
    """Whether a folder that is not the run's own holds a run of its id."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))["id"]
        return bool(found == record.id and not os.path.samefile(folder, run.path))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _is_settled(run: RunDir, record: Run) -> bool:
    if not record.id or record.home is None:
        return False
    try:
        return record.home == str(run.path) or os.path.samefile(record.home, run.path)  # another name of it
    except OSError:  # it was moved
        return False


def _become_another(run: RunDir, record: Run) -> None:
    for of_the_original in (run.path / "lease.json", run.path / JOBS):
        of_the_original.unlink(missing_ok=True)
    run.write(
        dataclasses.replace(
            record,
            id=new_id(),
            home=str(run.path),
            inherited=len(record.attempts),
            wandb_id=new_wandb_id(),
            excluded=[],
        )
    )
    print(f"{run.path} is a copy of {record.home}: it is a run of its own now, without jobs and with another W&B id")
