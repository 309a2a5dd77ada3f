"""Before any test imports torch."""

from __future__ import annotations

import os
import signal

# The tensors of tests are tiny: a second thread costs more than it computes, and here it steals from other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for a hub

# Under nohup it is ignored, which the commands that tests start would inherit; a handler they do not.
signal.signal(signal.SIGHUP, lambda number, frame: None)
