"""The one error a user is meant to read, and the exit codes of every command."""

from __future__ import annotations

DONE = 0
FAILED = 1
USAGE = 2
PREEMPTED = 75  # EX_TEMPFAIL: stopped on request; run the same command again


class UserError(Exception):
    """Wrong input: what is wrong, where it is, what to do. Printed as it is; exit code 2."""


class RunFailed(Exception):
    """The run cannot go on (a non-finite loss, no checkpoint that verifies). Printed as it is; exit code 1."""


class Preempted(Exception):
    """A stop was requested before there was a step to save. Exit code 75."""
