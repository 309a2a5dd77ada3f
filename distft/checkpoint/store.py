"""Checkpoint folders on disk: stage, hash, commit by one rename, verify, prune.

A folder `step-00000050` is complete or it does not exist: files are written into `.staged-step-00000050`,
`manifest.json` (size and checksum of every file) is written last, and the rename commits. Nothing is loaded
before its checksum was compared.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from distft.checkpoint.disk import Digest, NewFile, checksum, checksum_of_disk
from distft.errors import RunFailed, UserError
from distft.process import failpoint
from distft.run.files import sync_folder

MANIFEST = "manifest.json"
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.bool: "BOOL"}


def write_tensors(path: Path, tensors: Iterable[tuple[str, torch.Tensor]], whole: torch.Tensor | None = None) -> Digest:
    """A safetensors file (https://huggingface.co/docs/safetensors) written one tensor at a time.

    `safetensors.save_file` wants all tensors in host memory at once; here the extra memory is one tensor.

    Args:
        whole: memory in which the first of them lie side by side, in their order; it is written in one go.
    """
    items = list(tensors)
    header: dict[str, dict[str, object]] = {}
    offset, at_once = 0, 0 if whole is None else whole.nbytes
    rest = []
    for name, tensor in items:
        rest += [tensor] if offset >= at_once else []
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data
    with NewFile(path) as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in [*([] if whole is None else [whole]), *rest]:
            array: npt.NDArray[np.uint8] = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            file.write(array.data)
        failpoint.reach(f"{path.name} is not synced")
        digest = file.finish()
    failpoint.reach(f"{path.name} is written")
    return digest


def read_back(path: Path, digest: Digest, keep: bool = False) -> None:
    """Have the disk, and not the page cache, show that a file is what was written.

    Args:
        keep: what was read stays in the page cache.

    Raises:
        RunFailed: it is not.
    """
    if checksum_of_disk(path, keep) != digest.xxh3:
        raise RunFailed(f"{path} was read back with other bytes than were written; check the disk")


def write_text(path: Path, text: str) -> Digest:
    with NewFile(path) as file:
        file.write(text.encode())
        digest = file.finish()
    failpoint.reach(f"{path.name} is written")
    return digest


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def stage_folder(checkpoints: Path, step: int, owner: str = "") -> Path:
    """The folder into which the files of a checkpoint are written before it counts; each `owner` has its own."""
    return checkpoints / f".staged-{folder_of(checkpoints, step).name}{owner and '-'}{owner}"


def prepare_stage(
    checkpoints: Path, step: int, needed: int, owner: str = "", check: Callable[[], None] = lambda: None
) -> None:
    """Make an empty staging folder and remove those that a killed attempt left.

    Args:
        check: raises where another attempt has taken over; what is removed was there before.

    Raises:
        UserError: the file system has not the `needed` bytes; what is there is untouched.
    """
    leftovers = list(checkpoints.glob(".staged-*"))
    check()
    for leftover in leftovers:
        remove(leftover)
    free = shutil.disk_usage(checkpoints).free
    if free < needed:
        raise UserError(
            f"no space left for the checkpoint of step {step}: it takes {needed / 1e6:,.0f} MB and "
            f"{free / 1e6:,.0f} MB are free in {checkpoints}; free some space and run the same command again"
        )
    stage_folder(checkpoints, step, owner).mkdir(parents=True)


def discard(checkpoint: Path) -> None:
    """Half a deletion must not look like a checkpoint."""
    doomed = checkpoint.with_name(f".staged-{checkpoint.name}-{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):  # whoever has taken over was faster
        os.replace(checkpoint, doomed)
    failpoint.reach("an old checkpoint is half removed")
    remove(doomed)


def remove(folder: Path) -> None:
    """What is no checkpoint, as far as that goes: on NFS a file that somebody has open stays until later."""
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def commit(
    checkpoints: Path, step: int, digests: Iterable[Digest], owner: str = "", check: Callable[[], None] = lambda: None
) -> Path:
    """Write the manifest and let the checkpoint exist, durably.

    Args:
        check: raises where another attempt has taken over; asked as late as can be, because every call before may
            have hung on a node that was cut off.
    """
    staged, final = stage_folder(checkpoints, step, owner), folder_of(checkpoints, step)
    write_text(staged / MANIFEST, manifest_of(step, digests))
    sync_folder(staged)
    check()
    if final.exists():  # it did not verify when this attempt began, or the attempt would have continued after it
        discard(final)
    failpoint.reach("the checkpoint is not renamed")
    os.replace(staged, final)
    failpoint.reach("the rename is not synced")
    sync_folder(checkpoints)
    failpoint.reach("the checkpoint is committed")
    return final


def manifest_of(step: int, digests: Iterable[Digest]) -> str:
    return json.dumps({"step": step, "files": [asdict(digest) for digest in digests]}, indent=1)


def files_of(folder: Path) -> list[str]:
    """Names of a checkpoint's files. Raises what a damaged manifest leads to."""
    return [str(entry["name"]) for entry in json.loads((folder / MANIFEST).read_bytes())["files"]]


def prune(folders: Sequence[Path], keep: int, newest: Path, best: int = 0, hours: float = 0.0) -> None:
    """Remove of `folders` all but `newest`, just committed, the `keep` - 1 before it, those that were committed in the
    last `hours`, and that of step `best`.

    Those with a higher step go too: they did not verify when this attempt began, or it would have continued there.

    Args:
        folders: that existed before the commit, newest first; a later one is of an attempt that has taken over.
    """
    before = [folder for folder in folders if step_of(folder) < step_of(newest)]
    young = [folder for folder in before if hours and _age(folder) < 3600 * hours]
    kept = {newest, *before[: keep - 1], *young, folder_of(newest.parent, best)}
    for folder in [folder for folder in folders if folder not in kept]:
        discard(folder)


def _age(folder: Path) -> float:
    """Seconds since a checkpoint was committed; of a damaged one any number."""
    try:
        return time.time() - (folder / MANIFEST).stat().st_mtime
    except OSError:
        return math.inf


def lacking_room(checkpoints: Path, needed: int) -> str | None:
    """What to say where the file system has not the bytes for one more checkpoint; None: it has."""
    free = shutil.disk_usage(checkpoints).free
    if free >= needed:
        return None
    return (
        f"the next checkpoint will not fit: it takes {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free in "
        f"{checkpoints}; free some space before it is due"
    )


def committed(checkpoints: Path) -> list[Path]:
    """Folders of committed checkpoints, newest first."""
    if not checkpoints.is_dir():
        return []
    return sorted((p for p in checkpoints.iterdir() if re.fullmatch(r"step-\d{8,}", p.name)), key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def flaw(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if every byte is as it was written.

    Args:
        part: of `parts` that share the reading; each looks at the sizes of all files and into its part of them.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        step, digests = manifest["step"], [Digest(**entry) for entry in manifest["files"]]
        whole = text == manifest_of(step, digests)  # a flipped bit in a blank counts too
        named = all(re.fullmatch(r"[\w.-]+", digest.name) for digest in digests)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        whole = named = False
    if not whole or not named:
        return f"{MANIFEST} is missing or damaged"
    if not digests:
        return f"{MANIFEST} is empty"
    if step != step_of(folder):
        return f"it is the checkpoint of step {step}"
    for number, digest in enumerate(digests):
        path = folder / digest.name
        try:
            if path.stat().st_size != digest.bytes:
                return f"{digest.name} has {path.stat().st_size} bytes instead of {digest.bytes}"
            if number % parts == part and checksum(path) != digest.xxh3:
                return f"{digest.name} has changed since it was written"
        except OSError as error:
            return f"{digest.name} cannot be read ({error.strerror})"
    return None


def newest_verified(
    folders: Iterable[Path], check: Callable[[Path], str | None] = flaw
) -> tuple[Path | None, list[str]]:
    """The first of these checkpoints without a flaw, and one sentence for each that was passed over."""
    passed_over: list[str] = []
    for folder in folders:
        problem = check(folder)
        if problem is None:
            return folder, passed_over
        passed_over.append(f"checkpoint {folder.name} is not used: {problem}")
    return None, passed_over
