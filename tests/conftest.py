"""Before any test imports torch."""

from __future__ import annotations

import os

# The tensors of tests are tiny: a second thread costs more than it computes, and here it steals from other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for a hub
