import errno
import mmap
import os
import signal
import time
from pathlib import Path

import pytest

from distft.errors import RunFailed, UserError
from distft.process import forks, pulse
from distft.process.forks import Forks


def ended(running):
    found = {}
    while len(running):
        found.update(running.ended())
        time.sleep(0.005)
    return found


def wait_for_stop(check):
    while True:
        check()
        time.sleep(0.005)


def test_a_child_counts_no_moves_and_waits_for_no_lock_of_its_parent(monkeypatch):
    parent = pulse._Pulse()
    parent._memory = mmap.mmap(-1, pulse.BYTES)
    monkeypatch.setattr(pulse, "_pulse", parent)
    with Forks() as running, parent._lock:  # as the thread that beats may hold it when it is forked
        running.start(0, lambda check: pulse.moving())
        deadline = time.monotonic() + 5.0
        while len(running) and time.monotonic() < deadline:
            assert [error for _, error in running.ended()] in ([], [None])
        assert not len(running)
    assert pulse.read_sign(parent._memory).moves == 0


def test_what_a_child_raises_is_told_by_its_key():
    def fail(error):
        raise error

    errors = {
        1: UserError("the sentence " * 20_000),
        2: OSError(errno.ENOSPC, "No space left", "file"),
        3: ValueError("a mistake"),
        4: SystemExit(0),
    }
    with Forks() as running:
        running.start(0, lambda check: None)
        for key, error in errors.items():
            running.start(key, lambda check, error=error: fail(error))
        running.start(5, lambda check: os.kill(os.getpid(), signal.SIGKILL))
        found = ended(running)
    assert found[0] is None
    assert isinstance(found[1], UserError)
    assert str(found[1]) == str(errors[1])
    assert isinstance(found[2], OSError)
    assert (found[2].errno, found[2].filename) == (errno.ENOSPC, "file")
    assert isinstance(found[3], RuntimeError)
    assert "in fail\n" in str(found[3])
    assert isinstance(found[4], RuntimeError)
    assert isinstance(found[5], RunFailed)


def test_children_stop_when_they_are_told_and_not_by_signals(tmp_path):
    def work(check):
        try:
            wait_for_stop(check)
        finally:
            (tmp_path / str(os.getpid())).touch()

    with Forks() as running:
        running.start(0, work)
        running.start(1, work)
        time.sleep(0.1)
        for child in running._outcomes:
            os.kill(child, signal.SIGTERM)
        time.sleep(0.1)
        assert list(running.ended()) == []
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_child_that_does_not_stop_is_killed(monkeypatch):
    monkeypatch.setattr(forks, "GRACE_SECONDS", 0.1)
    begun = time.monotonic()
    with Forks() as running:
        running.start(0, lambda check: time.sleep(60))
    assert time.monotonic() - begun < 10
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_children_die_with_their_parent(tmp_path):
    def work(check):
        (tmp_path / str(os.getpid())).touch()
        time.sleep(60)

    parent = os.fork()
    if parent == 0:
        with Forks() as running:
            running.start(0, work)
            time.sleep(60)
    until = time.monotonic() + 10
    while not (found := list(tmp_path.iterdir())) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    child = Path(f"/proc/{found[0].name}/stat")
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.01)
    assert time.monotonic() < until


@pytest.mark.parametrize("before", [None, "true"])
def test_the_variable_of_tokenizers_is_as_it_was(monkeypatch, before):
    name, read, write = "TOKENIZERS_PARALLELISM", *os.pipe()
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with Forks() as running:
        running.start(0, lambda check: os.write(write, os.environ[name].encode()) and None)
        assert ended(running) == {0: None}
    assert os.read(read, 9) == b"false"
    assert os.environ.get(name) == before
    os.close(read)
    os.close(write)
