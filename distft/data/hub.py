"""The Hugging Face hub: the commit that a revision stands for, and downloads into its cache, with patience."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from distft.data.hub_errors import (
    about,
    broke_off,
    is_out_of_reach,
    is_silent,
    remedy,
    root_of,
    status_of,
    told,
    why,
)
from distft.errors import UserError
from distft.process import pulse, stop_signals
from distft.run.commits import MAIN, Repository

WAITS = (1.0, 2.0, 4.0)  # seconds before another try, where the hub names no other time
PATIENCE = 360.0  # seconds to wait in all; the hub counts requests in windows of five minutes
TIMEOUT = 30.0  # seconds for an answer, or for the next bytes of it
SILENCE = 60.0  # seconds of waiting in vain for answers, after which the hub is not asked again
COMMIT = re.compile(r"[0-9a-f]{40}")
BUSY = (408, 429, 500, 502, 503, 504)

Result = TypeVar("Result")


def commit_of(repository: Repository) -> str:
    """The commit that its revision stands for: as the hub says, or where it cannot be reached, as it said last time.

    Raises:
        UserError: nobody knows, or there is no such repository or revision.
    """
    from huggingface_hub import HfApi

    wanted, name = repository.revision, repository.name
    if wanted is not None and COMMIT.fullmatch(wanted):
        return wanted
    api = HfApi()

    def ask() -> str:
        return str(api.repo_info(name, repo_type=repository.kind, revision=wanted, timeout=TIMEOUT).sha)

    def note(local_files_only: bool) -> str:
        """As the cache notes it; unless `local_files_only` the hub is asked once more, for the cache."""
        return api.resolve_revision(
            name, repo_type=repository.kind, revision=wanted, local_files_only=local_files_only
        ).resolved

    with told(repository):
        try:
            found = patiently(repository, ask)
        except Exception as error:
            if not is_out_of_reach(error):
                raise
            with suppress(Exception):
                known = note(local_files_only=True)
                _say(repository, f"{why(error)}; {wanted or MAIN} is taken as it was known last")
                return known
            raise
    with suppress(Exception):  # it is for when the hub cannot be reached
        note(local_files_only=False)
    return found


def fetch(repository: Repository, commit: str, only: Sequence[str] | None = None, but: Sequence[str] = ()) -> Path:
    """The folder of a commit in the hub's cache with all these files, downloaded unless they are there.

    Args:
        only, but: patterns of paths in the repository, as `snapshot_download` has them: files wanted (None: all), and
            not wanted.

    Raises:
        UserError: they cannot be had, or nobody knows whether data are complete.
        Preempted: a stop was requested meanwhile.
    """
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(
            repository.name,
            repo_type=repository.kind,
            revision=commit,
            allow_patterns=None if only is None else list(only),
            ignore_patterns=list(but) or None,
            tqdm_class=_bar(),
        )

    with told(repository, commit):
        folder = Path(patiently(repository, download))
    if repository.kind == "dataset":
        _check_whole(folder, repository, commit)
    return folder


def _check_whole(folder: Path, repository: Repository, commit: str) -> None:
    """A part of the data would do as well as all of them, so nobody would notice. Of a model each file is needed.

    Raises:
        UserError: the cache does not know what there is, or a file has another size than on the hub.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        listed = get_cached_repo_tree(repository.name, repo_type=repository.kind, revision=commit)
    except CachedRepoTreeNotFoundError:
        raise UserError(
            f"{about(repository)}: the hub's cache does not know which files commit {commit} has, so they may not be "
            f"all there; {remedy(repository, commit)}"
        ) from None
    for file in listed:
        path = folder / file.path
        if path.exists() and path.stat().st_size != file.size:
            raise UserError(
                f"{about(repository)}: {path} has {path.stat().st_size:,} bytes, and {file.size:,} on the hub; "
                f"remove {path.resolve()}, and run the same command again"
            )


def patiently(repository: Repository, work: Callable[[], Result]) -> Result:
    """Work that talks to the hub, again after a pause where the hub is busy or the connection broke."""
    begun = time.monotonic()
    for wait in WAITS:
        _limit_waiting()
        try:
            return work()
        except Exception as error:
            pause, spent = _pause_after(error, wait), time.monotonic() - begun
            if pause is None or spent + pause > PATIENCE or (is_silent(error) and spent > SILENCE):
                raise
            _say(repository, f"{why(error)}; next try in {pause:.0f} s")
        _sleep(pause)
    return work()


def _limit_waiting() -> None:
    """Have no request of the hub's client wait without an end, as some of them do; each one shows that this process
    gets on."""
    from huggingface_hub import get_session

    session = get_session()
    if _limited not in session.event_hooks["request"]:
        session.event_hooks = {**session.event_hooks, "request": [*session.event_hooks["request"], _limited]}


def _limited(request: Any) -> None:
    pulse.moving()
    given = request.extensions.get("timeout", {})
    names = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {name: min(given.get(name) or TIMEOUT, TIMEOUT) for name in names}


def _sleep(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        stop_signals.check()
        pulse.moving()
        time.sleep(min(left, 0.2))


def _pause_after(error: Exception, wait: float) -> float | None:
    """Seconds after which another try may do better; None: it would not."""
    root = root_of(error)
    status = status_of(root)
    if status is not None:
        told = root.response.headers.get("Retry-After", "") if status in BUSY else ""  # type: ignore[attr-defined]
        return None if status not in BUSY else float(told) + 0.1 if told.isdigit() else wait
    return wait if broke_off(root) else None


def _say(repository: Repository, text: str) -> None:
    print(f"{about(repository)}: {text}", file=sys.stderr, flush=True)


def _bar() -> Any:
    """A progress bar of what takes long. It leaves when a stop is requested: a download may take more than there is."""
    from huggingface_hub.utils.tqdm import tqdm

    pause = 1.0 if sys.stderr.isatty() else 10.0  # seconds

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            settings |= {"delay": pause, "mininterval": pause / 10}
            super().__init__(*args, **settings)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> Any:
            stop_signals.check()
            return super().update(n)

    return Bar
