"""The end of what this start of the job wrote into the job's output, in one line."""

from __future__ import annotations

import os
import re

from distft.process import environment

MOST_BYTES, MOST_LINES, MOST_CHARACTERS = 4096, 6, 300
OURS = "/proc/self/fd/1"  # the batch script hands it on
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_CONSEQUENCE = re.compile(  # what SLURM says of the end of any step
    r"^(srun|slurmstepd): .*(Terminating StepId|task \S+ (Killed|Terminated|Exited with exit code)|Job step aborted|"
    r"CANCELLED AT|Force Terminated)"
)


def last_words() -> str | None:
    """None where it is not known or says nothing. What earlier starts and the policy have written is left out: the
    batch script says where in the file it began, and where srun ended."""
    began, _, ended = os.environ.get(environment.OUTPUT, "").partition("-")
    if not (began.isdigit() and ended.isdigit()):
        return None
    first = max(int(began), int(ended) - MOST_BYTES)
    try:
        with open(OURS, "rb") as file:
            file.seek(first)
            written = file.read(max(0, int(ended) - first))
    except OSError:  # a pipe, or nobody
        return None
    return in_one_line(written.decode("utf-8", errors="replace"))


def in_one_line(text: str) -> str | None:
    lines = [plain for line in text.splitlines() if (plain := _plain(line))]
    causes = [line for line in lines if not _CONSEQUENCE.match(line)] or lines
    said = "; ".join(causes[-MOST_LINES:])
    return (said if len(said) <= MOST_CHARACTERS else f"...{said[3 - MOST_CHARACTERS :]}") or None


def _plain(line: str) -> str:
    """Without what moves a cursor or changes a colour."""
    kept = "".join(character if character.isprintable() else " " for character in _ESCAPE.sub("", line))
    return " ".join(kept.split())
