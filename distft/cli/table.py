"""The table of commands, in the order of `distft --help`."""

from __future__ import annotations

import os
import sys
import warnings
from typing import NoReturn

from distft.cli import jobs, looks, models, plans, recipes  # noqa: F401 - each adds its commands
from distft.cli.app import app
from distft.exit_codes import run_command
from distft.process import lifetime


def main() -> NoReturn:
    """Run a command; turn an error into one sentence and an exit code."""
    os.umask(0o077)
    warnings.simplefilter("ignore", FutureWarning)  # what libraries tell each other is of no use to a user
    code = run_command(app)
    if "RANK" in os.environ:
        lifetime.exit_at_once(code)
    sys.exit(code)
