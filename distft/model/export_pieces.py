"""Files of weights written piece by piece, by one process or several, and continued after a kill.

A piece is a part of a file with whole tensors. Rank r writes the pieces r, r + world, ... of all files. A piece that is
on the disk has a note with its checksum in a folder of its own, and is not written again if its bytes are still those.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from distft.checkpoint.layout import Entry, Layout
from distft.errors import UserError
from distft.model.export_plan import ExportPlan, Values
from distft.process import failpoint, pulse
from distft.process.forks import Forks
from distft.run.files import write_atomically

PIECE_BYTES = 256 << 20  # a larger tensor is a piece of its own
READ_BYTES = 8 << 20
POLL_SECONDS = 0.05
NOTES = ".pieces"  # folder of the notes


@dataclass(frozen=True)
class Piece:
    """Bytes [begin, end) of a file: tensors, and before the first one the header."""

    number: int
    file: str
    header: bytes
    entries: Sequence[Entry]

    @property
    def begin(self) -> int:
        return 0 if self.header else self.entries[0].begin

    @property
    def end(self) -> int:
        return self.entries[-1].end if self.entries else len(self.header)


def pieces_of(layouts: Sequence[Layout]) -> list[Piece]:
    """All of them, in the order of the files."""
    found: list[Piece] = []
    for layout in layouts:
        header, held = layout.header, list[Entry]()
        for entry in layout.entries:
            if held and entry.end - held[0].begin > PIECE_BYTES:
                found.append(Piece(len(found), layout.file, header, held))
                header, held = b"", []
            held.append(entry)
        found.append(Piece(len(found), layout.file, header, held))
    return found


def write_weights(folder: Path, plan: ExportPlan, ranks: int) -> None:
    """Write all files of weights, or what of them is missing. The bytes do not depend on the number of ranks.

    Raises:
        UserError: the disk has not enough room.
    """
    pieces = pieces_of(plan.layouts)
    make_files(folder, plan.layouts)

    def share(rank: int, world: int, check: Callable[[], None] = lambda: None) -> None:
        for piece in pieces[rank::world]:
            check()
            write_piece(folder, piece, plan.values)

    world = min(ranks, len(pieces))
    if world <= 1:
        share(0, 1)
    else:
        with Forks() as forks:
            for rank in range(world):
                forks.start(rank, lambda check, rank=rank: share(rank, world, check))  # type: ignore[misc]
            watch(forks, folder / NOTES)
    if plan.index is not None:
        write_atomically(folder / "model.safetensors.index.json", plan.index)


def drop_notes(folder: Path) -> None:
    """When the files are whole and nobody writes them any more."""
    shutil.rmtree(folder / NOTES, ignore_errors=True)


def make_files(folder: Path, layouts: Sequence[Layout]) -> None:
    """Empty files of the right size, unless they are there."""
    (folder / NOTES).mkdir(exist_ok=True)
    there = sum((folder / one.file).stat().st_blocks * 512 for one in layouts if (folder / one.file).exists())
    needed, free = sum(one.bytes for one in layouts) - there, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"no space left for the export: it takes {needed / 1e6:,.0f} MB more and {free / 1e6:,.0f} MB are free in "
            f"{folder.parent}; free some space and run the same command again"
        )
    for layout in layouts:
        with open(folder / layout.file, "ab") as file:
            file.truncate(layout.bytes)


def watch(forks: Forks, notes: Path) -> None:
    """Wait for the ranks; what one raises is raised here."""
    seen = 0
    while len(forks):
        for _, error in forks.ended():
            if error is not None:
                raise error
        if (now := sum(1 for _ in notes.iterdir())) != seen:
            seen = now
            pulse.moving()
        time.sleep(POLL_SECONDS)


def write_piece(folder: Path, piece: Piece, values: Values) -> None:
    """Write a piece to the disk, and the note that it is there."""
    note, digest = folder / NOTES / f"{piece.number:05d}", xxhash.xxh3_128()
    with open(folder / piece.file, "r+b", buffering=0) as file:
        if note.exists() and note.read_text() == checksum(file.fileno(), piece):
            return
        file.seek(piece.begin)
        for block in blocks(piece, values):
            pulse.moving()
            digest.update(block)
            rest = block
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]
        if file.tell() != piece.end:
            raise RuntimeError(f"{piece.file}: {file.tell() - piece.begin} bytes were made for a piece of {piece.end}")
        failpoint.reach("a piece is not synced")
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), piece.begin, piece.end - piece.begin, os.POSIX_FADV_DONTNEED)
    write_atomically(note, digest.hexdigest())
    failpoint.reach(f"piece {piece.number} is written")


def blocks(piece: Piece, values: Values) -> Iterator[memoryview]:
    """Its bytes."""
    yield memoryview(piece.header)
    for entry in piece.entries:
        for stretch in values.stretches(entry.name):
            yield stretch.contiguous().view(torch.uint8).numpy().data


def checksum(descriptor: int, piece: Piece) -> str:
    """Of what the file holds there, in hex."""
    digest = xxhash.xxh3_128()
    for offset in range(piece.begin, piece.end, READ_BYTES):
        pulse.moving()
        digest.update(os.pread(descriptor, min(READ_BYTES, piece.end - offset), offset))
    return digest.hexdigest()
