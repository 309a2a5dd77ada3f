"""Control groups: where the limits are written that a container or a job has set (Linux, versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def limits(controller: str, unified: str, own: str, groups: Path = GROUPS, of: Path = OWN) -> Iterator[list[str]]:
    """What stands in a file of each control group that this process is in, and of those above, in words.

    Args:
        controller: of version 1, such as "memory".
        unified: name of the file in version 2.
        own: names of the files in version 1, with a blank between them; what they hold comes together.
        groups, of: where the groups are, and which of them are this process's.
    """
    try:
        lines = [line.split(":", 2) for line in of.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and controller not in controllers.split(","):
            continue
        top, names = (groups / controller, own.split()) if controllers else (groups, [unified])
        inner = Path(path.strip("/"))
        for folder in (inner, *inner.parents):
            with suppress(OSError):
                yield " ".join((top / folder / name).read_text(encoding="utf-8") for name in names).split()
