"""The profile of an attempt (`--profile N`): what is asked for, the parts of a step's time, and where it lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distft.errors import UserError
from distft.process import environment
from distft.run.folder import RunDir

MOST_STEPS = 50  # each leaves tens of thousands of events in memory

# Parts of a step's time, in the order of tables; each instant belongs to one.
DATA, FORWARD, ATTENTION, LOSS = "data", "forward", "attention", "loss"
BACKWARD, ATTENTION_BACKWARD, LOSS_BACKWARD = "backward", "attention_backward", "loss_backward"
COMMUNICATION, WAITING, OPTIMIZER = "communication", "waiting", "optimizer"
CHECKPOINT, EVALUATION, LAUNCHING, OTHER = "checkpoint", "evaluation", "launching", "other"
PARTS = (
    *(DATA, FORWARD, ATTENTION, LOSS, BACKWARD, ATTENTION_BACKWARD, LOSS_BACKWARD),
    *(COMMUNICATION, WAITING, OPTIMIZER, CHECKPOINT, EVALUATION, LAUNCHING, OTHER),
)


@dataclass(frozen=True)
class Wanted:
    """What was asked for: steps to profile, and whether torch's trace of them is kept."""

    steps: int
    trace: bool = False

    def text(self) -> str:
        """For an environment variable."""
        return f"{self.steps} trace" if self.trace else str(self.steps)

    @classmethod
    def of_text(cls, text: str) -> Wanted | None:
        """From an environment variable, which a batch script of one's own may set.

        Raises:
            UserError: it is no number of steps.
        """
        if not text:
            return None
        steps, _, trace = text.partition(" ")
        if not (steps.isdecimal() and 1 <= int(steps) <= MOST_STEPS and trace in ("", "trace")):
            raise UserError(f"{environment.PROFILE}={text!r}: must be a number of steps, 1 to {MOST_STEPS}")
        return cls(int(steps), bool(trace))


def wanted(steps: int | None, trace: bool) -> Wanted | None:
    """From the command line.

    Raises:
        UserError: a trace of no steps.
    """
    if steps is None and trace:
        raise UserError("--trace keeps the trace of a profile; say of how many steps: --profile 3 --trace")
    return Wanted(steps, trace) if steps is not None else None


def file_of(run: RunDir, attempt: int) -> Path:
    return run.attempt_logs(attempt) / "profile.json"


def read(run: RunDir, attempt: int | None) -> dict[str, Any]:
    """The profile of an attempt, or the newest one.

    Raises:
        UserError: there is none.
    """
    run.read()
    numbers = [int(path.parent.name.rpartition("-")[2]) for path in run.logs.glob("attempt-*/profile.json")]
    number = attempt if attempt is not None else max(numbers, default=0)
    if number not in numbers:
        which = run.path if attempt is None else f"attempt {attempt} of {run.path}"
        raise UserError(f"{which} has no profile; ask for one with --profile N of distft train, submit or resume")
    path = file_of(run, number)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); take another profile") from None
    return found
