"""Standard output and error: a reader that goes away must not disturb the run."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO, cast


class TolerantStream:
    """A text stream that may break (a closed terminal, a pipe that nobody reads, a full disk); silent from then on.

    Args:
        stream: None: nobody was there from the beginning.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it stays

    def write(self, text: str) -> int:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # a terminal of another encoding; it is still there
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):
            self._leave()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._leave()

    def _leave(self) -> None:
        """Nothing that is still in a buffer can fail any more, at the end of the process either."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerate_closed_streams() -> None:
    """Of this process, in which a run is at work and not what it prints is the product."""
    sys.stdout, sys.stderr = cast(TextIO, TolerantStream(sys.stdout)), cast(TextIO, TolerantStream(sys.stderr))
