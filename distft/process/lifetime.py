"""Process lifetime: die with the parent, set the process name, exit at once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

from distft.process import environment

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def die_with_parent() -> None:
    """Have the kernel kill this process when the one named by DISTFT_PARENT dies, so that no half attempt lives on
    (Linux)."""
    parent = os.environ.get(environment.PARENT)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(1)


def name(text: str) -> None:
    """What ps and top show; the kernel keeps 15 bytes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, text.encode())


def exit_at_once(code: int) -> NoReturn:
    """End at once. What libraries wait for at the interpreter's exit (W&B: a dead host, 90 s) holds up no requeue."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
