"""How errors end a command: one sentence and an exit code instead of a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from distft.errors import DONE, FAILED, PREEMPTED, USAGE, Preempted, RunFailed, UserError, in_words, no_space


def run_command(command: Callable[[], object]) -> int:
    """Run a command. Returns its exit code."""
    try:
        command()
        return DONE
    except UserError as error:
        return report_error(error, USAGE)
    except RunFailed as error:
        return report_error(error, FAILED)
    except Preempted as stop:
        print(f"distft: {stop}", file=sys.stderr)
        return PREEMPTED
    except SystemExit as leave:  # typer's own way out, wrong options included
        return leave.code if isinstance(leave.code, int) else DONE
    except OSError as error:
        if (sentence := in_words(error)) is None:
            raise
        # On a rank most of these are the node's doing, and another one may do better; a full disk is full for all.
        return report_error(sentence, FAILED if "RANK" in os.environ and not no_space(error) else USAGE)


def report_error(error: Exception | str, code: int) -> int:
    sys.stdout.flush()
    print(
        f"\ndistft: error: {error}" if "RANK" in os.environ else f"distft: error: {error}", file=sys.stderr, flush=True
    )
    return code
