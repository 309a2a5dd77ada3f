"""The export at the end of a run: a process of its own, which starts others, when no rank is left that could wait."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

from distft.errors import DONE, PREEMPTED
from distft.model import export
from distft.model.context import RunContext
from distft.process import environment, lifetime, pulse, stop_signals
from distft.process.console import Console
from distft.process.lone_work import lone_work
from distft.run.commits import recipe_of
from distft.run.folder import RunDir
from distft.run.lease import Fence


def write_final(run_dir: Path) -> int:
    """Write what a trained run was for into `final/`. Returns an exit code.

    Raises:
        UserError, RunFailed, Preempted: see `distft.errors`.
    """
    for number in stop_signals.SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    stop_signals.check()
    run = RunDir(run_dir)
    pulse.begin()
    pulse.at("the export")
    fence, last = Fence(run, os.environ.get(environment.TOKEN)), run.read().trained
    context = RunContext(run, recipe_of(run))
    console, ranks = Console(first=True), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with lone_work():
        export.write(context, run.final, last=last, may_publish=fence.check, ranks=ranks, say=console.say)
    console.say(f"finished after step {last}: {run.final}")
    return DONE


def _leave(signum: int, _frame: FrameType | None) -> None:
    """At once: nothing half written is ever in the place of `final/`, and the next start of the run begins again."""
    lifetime.exit_at_once(PREEMPTED)
