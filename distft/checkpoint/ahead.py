"""Verification of the newest checkpoint by a thread, while the model that will be restored from it is put together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from distft.checkpoint import store
from distft.process.distributed import Ranks


class Verification:
    """This rank's part in looking at checkpoints."""

    def __init__(self, folders: Sequence[Path], ranks: Ranks) -> None:
        """Begins with the first one at once.

        Args:
            folders: the checkpoints that there are, newest first.
        """
        self.folders = folders
        self._ranks = ranks
        self._found: str | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="verification", daemon=True)
        if folders:
            self._thread.start()

    @property
    def place(self) -> float:
        """The middle of this rank among all, from 0 to 1."""
        return (self._ranks.rank + 0.5) / self._ranks.world

    def flaw(self, folder: Path) -> str | None:
        """What this rank found wrong with a checkpoint; see `store.flaw`."""
        if folder != self.folders[0]:
            return store.flaw(folder, self._ranks.rank, self._ranks.world)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._found

    def _run(self) -> None:
        try:
            self._found = store.flaw(self.folders[0], self._ranks.rank, self._ranks.world)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that asks
            self._failure = error
