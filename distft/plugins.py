"""Plugins from other packages, found by entry-point name and imported only when that name is used."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from distft.errors import UserError

LAUNCHERS = "distft.launchers"
TRACKERS = "distft.trackers"
TASK_SECTIONS = "distft.task_sections"  # a subclass of `TaskSection`, in a module that needs no torch
TASKS = "distft.tasks"  # the function that makes its `TaskSpec`


def names(group: str) -> list[str]:
    """All names in a group of entry points."""
    return sorted({point.name for point in entry_points(group=group)})


def find(group: str, name: str, what: str) -> Any:
    """Load the entry point `name`.

    Args:
        what: what it is called in messages: "launcher".

    Raises:
        UserError: no package has one of that name, two have, or it cannot be imported.
    """
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        if point.name == name:
            points.setdefault(point.dist.name if point.dist is not None else "", point)
    if not points:
        known = names(group)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no {what} is called '{name}'; {hint}installed: {', '.join(known) or 'none'}")
    if len(points) > 1:
        raise UserError(
            f"the packages {' and '.join(sorted(points))} both provide a {what} '{name}'; uninstall one of them"
        )
    [(package, point)] = points.items()
    try:
        return point.load()
    except Exception as error:  # somebody else's package may raise anything when it is imported
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"the {what} '{name}' of the package {package} cannot be loaded from {point.value} ({said}); repair or "
            "uninstall that package"
        ) from error
