"""How we start Python: without the current folder, where a queue.py would take the place of the library's."""

from __future__ import annotations


def running(module: str, *arguments: str) -> list[str]:
    """What Python is to be told so that it runs a module, and looks for modules where they are installed only."""
    return ["-P", "-m", module, *arguments]
