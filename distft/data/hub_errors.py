"""What goes wrong with the Hugging Face hub: which failures may pass, and what each means for a user, in a sentence.

Texts of the hub's client are quoted only where no token can be in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distft.errors import UserError, first_line, no_space
from distft.run.commits import MAIN, Repository


def root_of(error: BaseException) -> BaseException:
    """What the hub's client has wrapped, if it says only that a file is not there."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def status_of(error: BaseException) -> int | None:
    """The status of the hub's answer, if it gave one."""
    from huggingface_hub.errors import HfHubHTTPError

    return int(error.response.status_code) if isinstance(error, HfHubHTTPError) else None


def broke_off(error: BaseException) -> bool:
    """Whether there was a connection that went away, or an answer that did not come or was not whole."""
    import httpx2

    kinds = (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError, httpx2.ReadTimeout)
    return isinstance(error, kinds) or str(error).startswith("Consistency check failed")


def is_silent(error: BaseException) -> bool:
    """Whether it takes a connection and does not answer."""
    import httpx2

    return isinstance(root_of(error), httpx2.ReadTimeout)


def is_out_of_reach(error: BaseException) -> bool:
    """Whether there is no hub to be talked to, or none that works."""
    import httpx2
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    root = root_of(error)
    status = status_of(root)
    if status is not None:
        return status >= 500
    kinds = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
    return isinstance(root, (*kinds, OfflineModeIsEnabled, LocalEntryNotFoundError))


def why(error: BaseException) -> str:
    """What keeps the hub from being of use, as a sentence without its end."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    root = root_of(error)
    if (status := status_of(root)) is not None:
        return f"the hub answers {status}"
    if is_silent(root):
        return f"the hub does not answer ({type(root).__name__})"
    if broke_off(root):
        return f"the connection broke off ({first_line(root)})"
    if constants.is_offline_mode() or isinstance(root, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return "HF_HUB_OFFLINE keeps the hub from being asked"
    return f"the hub cannot be reached ({type(root).__name__}: {first_line(root)})"


@contextmanager
def told(repository: Repository, commit: str | None = None) -> Iterator[None]:
    """What a failure means for a user, as UserError."""
    import httpx2

    try:
        yield
    except (httpx2.HTTPError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{about(repository)} {_sentence(error, repository, commit)}") from None


def about(repository: Repository) -> str:
    """How a sentence about it begins."""
    return f"{'model.path:' if repository.kind == 'model' else 'data'} '{repository.name}'"


def _sentence(error: Exception, repository: Repository, commit: str | None) -> str:
    import httpx2
    from huggingface_hub.errors import HFValidationError

    root = root_of(error)
    if isinstance(root, HFValidationError):
        return "is neither a local file or folder nor a hub id (owner/name); correct the name"
    if (status := status_of(root)) is not None:
        return _answered(status, root, repository)
    if isinstance(root, OSError) and no_space(root):
        return f"does not fit on the disk of the hub's cache ({_cache()}); free some space, or set HF_HOME"
    if isinstance(root, httpx2.LocalProtocolError | UnicodeEncodeError):  # whose texts may quote the token
        return "cannot be asked for: HF_TOKEN has characters that no token has; set it again"
    if isinstance(root, ValueError | KeyError):
        return f"cannot be had: the answer is none of a hub ({type(root).__name__}); check HF_ENDPOINT and the network"
    if is_silent(root):
        return (
            f"could not be downloaded: {why(root)}; check HF_ENDPOINT and the network, and run the same command again"
        )
    if broke_off(root):
        return f"could not be downloaded: {why(root)}; run the same command again"
    if is_out_of_reach(root):
        what = f"commit {commit}" if commit else f"revision {repository.revision or MAIN}"
        return (
            f"is neither a local file or folder nor, with all files of {what}, in the hub's cache ({_cache()}), and "
            f"{why(root)}; {remedy(repository, commit)}"
        )
    if isinstance(root, OSError) and root.filename:
        return f"cannot be kept in the hub's cache: {root.filename}: {root.strerror}; fix that, or set HF_HOME"
    return f"cannot be had from the hub ({type(root).__name__}: {first_line(root)})"


def _answered(status: int, error: Any, repository: Repository) -> str:
    """A refusal of the hub. It says 401 of all repositories that it does not show without a token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = "model" if repository.kind == "model" else "data set"
    key = "model.revision" if repository.kind == "model" else "data.revision"
    if isinstance(error, GatedRepoError):
        return (
            f"is gated on the hub ({status}); accept its terms on its page, and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision '{repository.revision or MAIN}' on the hub; set {key} to a branch, tag or commit of it"
    if status in (401, 403, 404) and not isinstance(error, EntryNotFoundError):
        if status == 401 and get_token() is None:
            return (
                f"is neither local nor a {what} that the hub shows without a token (401): it is private, or there is "
                "none; set HF_TOKEN to a token that may read it, or correct the name"
            )
        if status == 401 and not isinstance(error, RepositoryNotFoundError):
            return "cannot be had: the hub does not know the token (401); set HF_TOKEN to a valid one, or unset it"
        return (
            f"is neither local nor a {what} that the hub shows to this token ({status}): correct the name, or set "
            "HF_TOKEN to one that may read it"
        )
    if status == 429:
        return (
            "cannot be had now: the hub takes no more requests for some minutes (429); run the same command again "
            "later, or set HF_TOKEN, which raises the limits"
        )
    if status >= 500:
        return f"cannot be had now: {why(error)}; run the same command again later"
    return f"cannot be had: the hub answers {status} ({first_line(error)})"


def remedy(repository: Repository, commit: str | None) -> str:
    kind = "" if repository.kind == "model" else " --repo-type dataset"
    revision = commit or repository.revision
    which = f" --revision {revision}" if revision else ""
    return f"download it where there is internet, with the same HF_HOME: hf download {repository.name}{kind}{which}"


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
