"""`UserError`, the error that users read, and the exit codes of all commands."""

from __future__ import annotations

import errno
import os

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


REFUSALS = {
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ESTALE,
    errno.EIO,
}


def no_space(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def in_words(error: OSError) -> str | None:
    """What a file system refuses, in a sentence; None where that may be our own mistake."""
    if no_space(error):
        where = f" ({error.filename})" if error.filename else ""
        return f"no space left on the device{where}; free some space and run the same command again"
    if error.errno in REFUSALS and error.filename:
        said = error.strerror.lower() if error.strerror else "refused"
        return f"{os.fsdecode(error.filename)}: {said}; fix that, or give another folder with --run-dir"
    return None


def first_line(error: BaseException) -> str:
    """What an error says, in one line: some libraries write paragraphs."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
