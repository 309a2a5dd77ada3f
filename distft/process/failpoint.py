"""Failpoints for tests: DISTFT_FAILPOINT=RANK:PLACE kills a rank at a named place in the code.

A place may be given without what follows its first comma, and RANK may be `*`. Every place of `pulse.at` is one, and so
is each boundary between two writes of a checkpoint (`checkpoint.store`). ATTEMPT/RANK:PLACE kills in one attempt only;
several are parted by semicolons.
"""

from __future__ import annotations

import os
import signal

from distft.process import environment


def reach(place: str) -> None:
    """Does not return, at the place that was asked for."""
    wanted = os.environ.get(environment.FAILPOINT)
    if wanted is None:
        return
    for one in wanted.split(";"):
        who, _, name = one.partition(":")
        attempt, _, rank = who.rpartition("/")
        mine = rank in ("*", os.environ.get("RANK")) and attempt in ("", os.environ.get(environment.ATTEMPT))
        if mine and name in (place, place.partition(",")[0]):
            os.kill(os.getpid(), signal.SIGKILL)
