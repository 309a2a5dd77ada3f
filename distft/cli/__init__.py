"""The command line. It listens for stop signals before it imports anything slow."""

from __future__ import annotations

import os
import sys

from distft.process import environment, stop_signals

if "train" in sys.argv[1:2] and environment.FORKSERVER_FD not in os.environ:
    stop_signals.listen()

from distft.cli.table import main

__all__ = ["main"]
