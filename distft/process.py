"""What the kernel is told about a process of an attempt: when it is to die, and what it is called."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def die_with_parent() -> None:
    """Have the kernel kill this process when the one named by DISTFT_PARENT dies, so that no half attempt lives on
    (Linux)."""
    parent = os.environ.get("DISTFT_PARENT")
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(1)


def name(text: str) -> None:
    """What ps and top show; the kernel keeps 15 bytes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, text.encode())
