"""A save, cut off anywhere: its file operations are recorded, and what every prefix of them leaves is loaded.

Of a file that was not synced yet nothing but its name is left, and an entry of a folder that was not synced may be
missing, as after a loss of power.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from distft.checkpoint import store

FILES = {"rank-00000.safetensors": "abc" * 20, "rank-00001.safetensors": "xyz" * 20, "state.json": '{"step": 1}'}


@dataclass(frozen=True)
class Operation:
    """`mkdir`, `create`, `sync` (of a file or a folder), `rename`, `remove` or `rmdir`."""

    kind: str
    path: Path
    target: Path | None = None
    content: bytes = b""  # of a file that was synced


@dataclass
class Recorder:
    root: Path
    operations: list[Operation] = field(default_factory=list)
    on: bool = False

    def hear(self, event: str, args: tuple[object, ...]) -> None:
        """Python tells every file operation before it happens (PEP 578)."""
        if not self.on or not args or not str(args[0]).startswith(str(self.root)):
            return
        path = Path(str(args[0]))
        if event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT:
            self.operations.append(Operation("create", path))
        elif event == "os.rename":
            self.operations.append(Operation("rename", path, Path(str(args[1]))))
        elif event in ("os.mkdir", "os.rmdir", "os.remove"):
            self.operations.append(Operation(event[3:], path))

    def wrapped(self, fsync: Callable[[int], None]) -> Callable[[int], None]:
        def recorded(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            content = path.read_bytes() if path.is_file() else b""
            self.operations.append(Operation("sync", path, content=content))

        return recorded


_recorder: Recorder | None = None


def _hook(event: str, args: tuple[object, ...]) -> None:
    if _recorder is not None:
        _recorder.hear(event, args)


@contextmanager
def recording(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Operation]]:
    global _recorder
    if _recorder is None:
        sys.addaudithook(_hook)  # it can never be taken off
    recorder = _recorder = Recorder(root)
    # rmtree by descriptors of folders tells names without their folders
    monkeypatch.setattr(shutil, "_use_fd_functions", False)
    monkeypatch.setattr(os, "fsync", recorder.wrapped(os.fsync))
    recorder.on = True
    yield recorder.operations
    recorder.on = False
    monkeypatch.undo()


def save(checkpoints: Path, step: int, keep: int) -> None:
    """As `Writer` does it, from one process."""
    store.prepare_stage(checkpoints, step, needed=0)
    staged = store.stage_folder(checkpoints, step)
    digests = [store.write_text(staged / name, f"{step}{text}") for name, text in FILES.items()]
    before = store.committed(checkpoints)
    store.prune(before, keep, newest=store.commit(checkpoints, step, digests))


def replay(operations: list[Operation], before: Path, root: Path, missing: Path | None = None) -> None:
    """Make `root` what it was `before`, and do the operations; `missing` was never heard of after all."""
    shutil.rmtree(root)
    shutil.copytree(before, root)
    for operation in operations:
        if operation.kind == "mkdir":
            operation.path.mkdir()
        elif operation.kind == "create":
            operation.path.touch()
        elif operation.kind == "sync" and operation.path.is_file():
            operation.path.write_bytes(operation.content)
        elif operation.kind == "rename" and operation.target is not None:
            os.replace(operation.path, operation.target)
        elif operation.kind == "remove":
            operation.path.unlink()
        elif operation.kind == "rmdir":
            operation.path.rmdir()
    if missing is not None:
        missing.unlink()


def unsynced(operations: list[Operation]) -> list[Path]:
    """Where files are now whose folder was not synced after they were created."""
    found: list[Path] = []
    for operation in operations:
        if operation.kind == "create":
            found.append(operation.path)
        elif operation.kind == "sync":
            found = [path for path in found if path.parent != operation.path]
        elif operation.kind == "rename" and operation.target is not None:
            found = [
                operation.target / path.relative_to(operation.path) if path.is_relative_to(operation.path) else path
                for path in found
            ]
        elif operation.kind == "remove":
            found = [path for path in found if path != operation.path]
    return found


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("leftover", [False, True])
def test_every_prefix_of_a_save_loads_the_old_or_the_new_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, leftover: bool
) -> None:
    root, before = tmp_path / "checkpoints", tmp_path / "before"
    root.mkdir()
    for step in (5, 10):
        save(root, step, keep=2)
    if leftover:
        store.prepare_stage(root, 12, needed=0)
        store.write_text(store.stage_folder(root, 12) / "rank-00000.safetensors", "half")
    shutil.copytree(root, before)
    with recording(root, monkeypatch) as operations:
        save(root, 15, keep)
    kinds = [operation.kind for operation in operations]
    assert {"mkdir", "create", "sync", "rename", "remove", "rmdir"} <= set(kinds)
    chosen = []
    for end in range(len(operations) + 1):
        done = operations[:end]
        for missing in (None, *unsynced(done)):
            replay(done, before, root, missing)
            newest, passed_over = store.newest_verified(store.committed(root))
            assert newest is not None, f"nothing is left after {done[-1]}"
            assert passed_over == [], f"{passed_over} after {done[-1]}"
            flaws = [flaw for folder in store.committed(root) if (flaw := store.flaw(folder))]
            assert flaws == [], f"half a checkpoint looks whole after {done[-1]}"
            step = store.step_of(newest)
            assert (newest / "state.json").read_text() == f"{step}{FILES['state.json']}"
        chosen.append(step)
    assert set(chosen) == {10, 15}
    assert chosen == sorted(chosen), "once committed, it stays"
    committed = next(index for index, o in enumerate(operations) if o.target == store.folder_of(root, 15))
    assert chosen.index(15) == committed + 1
