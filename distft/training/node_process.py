"""What a launcher starts on a node: a rank, or the process from which the node's ranks are forked."""

from __future__ import annotations

import os
from pathlib import Path

from distft.errors import UserError


def run(run_dir: Path | None) -> int:
    """Be that process, and return its exit code. Imports follow the check: they take seconds."""
    if run_dir is None:
        raise UserError("RANK is set, so this is one rank of a run, and it needs --run-dir")
    if "DISTFT_FORKSERVER_FD" in os.environ:
        from distft.training import forkserver

        return forkserver.serve(run_dir)
    from distft.training.loop import run_attempt

    return run_attempt(run_dir)
