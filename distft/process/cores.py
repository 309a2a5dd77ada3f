"""How many cores a process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from distft.process.control_groups import GROUPS, OWN, limits


def cores(groups: Path = GROUPS, own: Path = OWN) -> int:
    """Those that it may run on, or fewer by a quota of its control groups: with more processes than a quota feeds, all
    of them stand still for a part of each period."""
    found = [float(len(os.sched_getaffinity(0)))]
    for words in limits("cpu", "cpu.max", "cpu.cfs_quota_us cpu.cfs_period_us", groups, own):
        if len(words) == 2 and all(map(str.isdigit, words)) and int(words[1]):  # "max", or -1: none
            found.append(int(words[0]) / int(words[1]))
    return max(1, math.ceil(min(found)))
