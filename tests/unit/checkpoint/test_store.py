"""Checkpoints on disk: exact bytes, all or nothing, and no damage goes unseen."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from distft.checkpoint import store
from distft.checkpoint.disk import Digest, checksum
from distft.errors import RunFailed, UserError

TENSORS = {
    "fp32|0|master": torch.tensor([[1.5, -0.0], [float("inf"), 1e-45]]),
    "bf16": torch.arange(7).to(torch.bfloat16) / 3,
    "fp16": torch.arange(5).to(torch.float16) / 7,
    "int64": torch.tensor([-1, 2**62, 0]),
    "bool": torch.tensor([True, False, True]),
    "empty": torch.empty(0, 3),
    "0-dim": torch.tensor(-2.25),
    "not contiguous": torch.arange(6.0).view(2, 3).t(),
    "needs gradient": torch.ones(2, requires_grad=True),
}
FILES = {"rank-00000.safetensors": "abc" * 20, "rank-00001.safetensors": "xyz" * 20, "state.json": '{"step": 1}'}


def put(checkpoints: Path, step: int, files: dict[str, str] = FILES) -> Path:
    """A committed checkpoint of small text files."""
    store.prepare_stage(checkpoints, step, needed=0)
    staged = store.stage_folder(checkpoints, step)
    return store.commit(checkpoints, step, [store.write_text(staged / name, text) for name, text in files.items()])


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 5 and 10."""
    put(tmp_path, 5)
    put(tmp_path, 10)
    return tmp_path


def assert_previous_is_chosen(checkpoints: Path, because: str) -> None:
    folder, passed_over = store.newest_verified(store.committed(checkpoints))
    assert folder == store.folder_of(checkpoints, 5)
    [sentence] = passed_over
    assert sentence.startswith("checkpoint step-00000010 is not used: ")
    assert because in sentence


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_tensors_are_what_safetensors_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    digest = store.write_tensors(path, TENSORS.items())
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name], tensor)
    assert torch.signbit(read["fp32|0|master"][0, 1])
    assert digest == Digest(path.name, path.stat().st_size, checksum(path))


def test_slices_of_tensors_are_readable(tmp_path: Path) -> None:
    store.write_tensors(tmp_path / "x", TENSORS.items())
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert torch.equal(file.get_slice("int64")[1:3], TENSORS["int64"][1:3])


def test_a_rank_that_owns_nothing_writes_a_readable_file(tmp_path: Path) -> None:
    store.write_tensors(tmp_path / "x", [])
    assert load_file(tmp_path / "x") == {}


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    store.write_text(tmp_path / "x", "old")
    with pytest.raises(FileExistsError):
        store.write_text(tmp_path / "x", "new")


# --- commit, prune, choose --------------------------------------------------------------------------------------------


def test_commit_makes_the_checkpoint_appear_at_once(tmp_path: Path) -> None:
    store.prepare_stage(tmp_path, 3, needed=0)
    digest = store.write_text(store.stage_folder(tmp_path, 3) / "a", "text")
    assert store.newest_verified(store.committed(tmp_path)) == (None, [])
    folder = store.commit(tmp_path, 3, [digest])
    assert store.newest_verified(store.committed(tmp_path)) == (folder, [])
    assert folder.name == "step-00000003"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_newest_is_by_number_and_not_by_name_or_age(tmp_path: Path) -> None:
    for step in (123_456_789, 7, 99_999_999):
        put(tmp_path, step)
    assert [store.step_of(folder) for folder in store.committed(tmp_path)] == [123_456_789, 99_999_999, 7]


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 10, 3):
        put(tmp_path, step)
    newest = store.folder_of(tmp_path, 10)
    store.prune(store.committed(tmp_path), 2, newest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]
    store.prune(store.committed(tmp_path), 5, newest)
    assert len(store.committed(tmp_path)) == 2


def test_prune_keeps_what_is_young(tmp_path: Path) -> None:
    for step, hours in ((1, 30.0), (2, 5.0), (3, 1.0), (4, 0.0)):
        put(tmp_path, step)
        when = time.time() - 3600 * hours
        os.utime(store.folder_of(tmp_path, step) / store.MANIFEST, (when, when))
    (store.folder_of(tmp_path, 3) / store.MANIFEST).unlink()  # damaged: no age helps it
    store.prune(store.committed(tmp_path), 1, store.folder_of(tmp_path, 4), hours=24.0)
    assert [store.step_of(folder) for folder in store.committed(tmp_path)] == [4, 2]


@pytest.mark.parametrize("keep", [1, 2])
def test_prune_never_removes_what_was_just_committed(tmp_path: Path, keep: int) -> None:
    """Step 100 was damaged, so the run continued after 50 and saved 75: not the damaged one is the newest."""
    for step in (50, 75, 100):
        put(tmp_path, step)
    store.prune(store.committed(tmp_path), keep, store.folder_of(tmp_path, 75))
    assert [store.step_of(folder) for folder in store.committed(tmp_path)] == [75, 50][:keep]


def test_prune_goes_on_where_a_killed_one_stopped(tmp_path: Path) -> None:
    for step in (1, 2):
        put(tmp_path, step)
    doomed = tmp_path / ".staged-step-00000001-0123abcd"
    doomed.mkdir()
    (doomed / "half").touch()
    store.prune(store.committed(tmp_path), 1, store.folder_of(tmp_path, 2))
    assert store.committed(tmp_path) == [store.folder_of(tmp_path, 2)]
    store.prepare_stage(tmp_path, 3, needed=0)
    assert not doomed.exists()


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize(("hangs_in", "since"), [("the checkpoints", (60, 80)), ("the staging", (40,))])
def test_an_attempt_that_wakes_up_touches_nothing_of_the_one_that_took_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, hangs_in: str, since: tuple[int, ...]
) -> None:
    """It hung on a node that was cut off, in a sync before or after its rename; meanwhile others were saved."""
    taken_over, sync = [False], store.sync_folder

    def hang(folder: Path) -> None:
        sync(folder)
        if not taken_over[0] and (folder == tmp_path) is (hangs_in == "the checkpoints"):
            taken_over[0] = True
            for step in since:
                save(step, "new")

    def save(step: int, owner: str) -> None:
        def check() -> None:
            if owner == "old" and taken_over[0]:
                raise RunFailed("taken over")

        store.prepare_stage(tmp_path, step, 0, owner, check)
        digest = store.write_text(
            store.stage_folder(tmp_path, step, owner) / "rank-00000.safetensors", f"{step} of {owner}"
        )
        before = store.committed(tmp_path)
        newest = store.commit(tmp_path, step, [digest], owner, check)
        store.prune(before, keep, newest)

    save(20, "old")
    monkeypatch.setattr(store, "sync_folder", hang)
    with suppress(RunFailed):
        save(40, "old")
    newest, passed_over = store.newest_verified(store.committed(tmp_path))
    assert newest == store.folder_of(tmp_path, since[-1])
    assert passed_over == []
    assert (newest / "rank-00000.safetensors").read_text() == f"{since[-1]} of new"


def test_what_cannot_be_removed_is_no_checkpoint_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS a file that somebody has open stays in its folder."""
    for step in (1, 2):
        put(tmp_path, step)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", Mock(side_effect=OSError(errno.ENOTEMPTY, "Directory not empty")))
        store.prune(store.committed(tmp_path), 1, store.folder_of(tmp_path, 2))
        store.prepare_stage(tmp_path, 3, 0, "x")
        assert store.committed(tmp_path) == [store.folder_of(tmp_path, 2)]
    store.prepare_stage(tmp_path, 4, 0, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".staged-step-00000004-x", "step-00000002"]


def test_there_may_be_nothing_yet(tmp_path: Path) -> None:
    assert store.newest_verified(store.committed(tmp_path / "missing")) == (None, [])


def test_other_things_in_the_folder_are_no_checkpoints(two: Path) -> None:
    for name in ("step-12", "step-00000020.copy", "notes", "step-000000xx"):
        (two / name).mkdir()
    assert [store.step_of(folder) for folder in store.committed(two)] == [10, 5]


def test_what_a_killed_attempt_staged_is_ignored_and_then_removed(two: Path) -> None:
    leftover = store.stage_folder(two, 15)
    leftover.mkdir()
    store.write_text(leftover / "rank-00000.safetensors", "half")
    assert store.newest_verified(store.committed(two)) == (store.folder_of(two, 10), [])
    store.prepare_stage(two, 20, needed=0)
    assert not leftover.exists()
    assert list(store.stage_folder(two, 20).iterdir()) == []


def test_prepare_empties_the_same_steps_staging(two: Path) -> None:
    store.prepare_stage(two, 15, needed=0)
    store.write_text(store.stage_folder(two, 15) / "old", "x")
    store.prepare_stage(two, 15, needed=0)
    assert list(store.stage_folder(two, 15).iterdir()) == []


def test_commit_replaces_a_flawed_checkpoint_of_the_same_step(two: Path) -> None:
    (store.folder_of(two, 10) / "state.json").write_text("broken")
    folder = put(two, 10, {"rank-00000.safetensors": "new"})
    assert store.newest_verified(store.committed(two)) == (folder, [])
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "rank-00000.safetensors"]


def test_a_failed_write_leaves_the_previous_checkpoint(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store.prepare_stage(two, 15, needed=0)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_text(store.stage_folder(two, 15) / "a", "x")
    assert store.newest_verified(store.committed(two)) == (store.folder_of(two, 10), [])


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, store.MANIFEST])
def test_every_flipped_byte_is_found(two: Path, name: str) -> None:
    path = store.folder_of(two, 10) / name
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
        assert store.newest_verified(store.committed(two))[0] == store.folder_of(two, 5), at
    path.write_bytes(whole)
    assert store.newest_verified(store.committed(two)) == (store.folder_of(two, 10), [])


@pytest.mark.parametrize("name", FILES)
def test_truncation_and_growth_are_found(two: Path, name: str) -> None:
    path = store.folder_of(two, 10) / name
    whole = path.read_bytes()
    for size in (0, 1, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_previous_is_chosen(two, f"{name} has {size} bytes instead of {len(whole)}")
    path.write_bytes(whole + b"\0")
    assert_previous_is_chosen(two, f"{name} has {len(whole) + 1} bytes")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(two: Path, name: str) -> None:
    (store.folder_of(two, 10) / name).unlink()
    assert_previous_is_chosen(two, f"{name} cannot be read (No such file or directory)")


def test_a_folder_in_place_of_a_file_is_found(two: Path) -> None:
    path = store.folder_of(two, 10) / "state.json"
    path.unlink()
    path.mkdir()
    assert_previous_is_chosen(two, "state.json")


def test_swapped_shards_are_found(two: Path) -> None:
    folder = store.folder_of(two, 10)
    one, other, aside = folder / "rank-00000.safetensors", folder / "rank-00001.safetensors", folder / "aside"
    for source, target in ((one, aside), (other, one), (aside, other)):
        os.replace(source, target)
    assert_previous_is_chosen(two, "rank-00000.safetensors has changed since it was written")


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "3", '"text"', "{}", '{"files": 3}', '{"files": null}', '{"files": [3]}', '{"files": []}',
     '{"files": {}}', '{"files": [{}]}', '{"files": [{"name": "x"}]}', "[" * 100_000,
     '{"files": [{"name": 3, "bytes": 1, "xxh3": ""}]}',
     '{"files": [{"name": "\\u0000", "bytes": 1, "xxh3": ""}]}'],
)  # fmt: skip
def test_a_manifest_that_is_none_is_found(two: Path, content: str) -> None:
    (store.folder_of(two, 10) / store.MANIFEST).write_text(content)
    assert_previous_is_chosen(two, "")


def test_a_missing_or_undecodable_manifest_is_found(two: Path) -> None:
    path = store.folder_of(two, 10) / store.MANIFEST
    path.write_bytes(b"\xff\xfe\xfd")
    assert_previous_is_chosen(two, "manifest.json is missing or damaged")
    path.unlink()
    assert_previous_is_chosen(two, "manifest.json is missing or damaged")


def test_a_plain_file_with_the_name_of_a_checkpoint_is_found(two: Path) -> None:
    store.folder_of(two, 15).touch()
    folder, passed_over = store.newest_verified(store.committed(two))
    assert folder == store.folder_of(two, 10)
    assert len(passed_over) == 1


def test_a_file_added_is_harmless(two: Path) -> None:
    (store.folder_of(two, 10) / "notes.txt").write_text("mine")
    assert store.newest_verified(store.committed(two)) == (store.folder_of(two, 10), [])


def test_when_none_is_left_every_one_is_named(two: Path) -> None:
    for step in (5, 10):
        (store.folder_of(two, step) / store.MANIFEST).unlink()
    folder, passed_over = store.newest_verified(store.committed(two))
    assert folder is None
    assert [sentence.split(" ")[1] for sentence in passed_over] == ["step-00000010", "step-00000005"]


def test_no_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no space left for the checkpoint of step 7: it takes 1,000,000,000 MB"):
        store.prepare_stage(tmp_path, 7, needed=10**15)
    assert list(tmp_path.iterdir()) == []
