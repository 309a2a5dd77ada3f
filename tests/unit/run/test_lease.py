"""One attempt at a time: the lock of a machine, the lease between machines, the token of whoever writes."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from distft.errors import RunFailed, UserError
from distft.run import lease
from distft.run.folder import RunDir
from distft.run.lease import STALE_SECONDS, Fence, Held, Lease

ELSEWHERE = Lease(host="node7", pid=4321, job="12", restart=1, attempt=3)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.create("x", "")
    return made


def left_behind(run: RunDir, content: Lease, seconds_ago: float) -> Path:
    lease._write(run, content)
    path = run.path / "lease.json"
    then = path.stat().st_mtime - seconds_ago
    os.utime(path, (then, then))
    return path


def test_a_run_in_use_names_who_holds_it(run: RunDir) -> None:
    with lease.hold_run(run) as held:
        assert lease.alive(run)
        held.publish(attempt=3, address="here", port=5, ranks=2)
        with pytest.raises(UserError, match=rf"in use by attempt 3 \(process {os.getpid()} on "), lease.hold_run(run):
            pass
    assert not lease.alive(run)
    with lease.hold_run(run):
        pass  # free again


def test_without_locks_a_run_in_use_is_one(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre may be mounted without flock."""
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOSYS, "Function not implemented")))
    with lease.hold_run(run):
        held = lease.read_lease(run)
        assert held is not None
        lease._write(run, dataclasses.replace(held, pid=os.getppid()))  # as another process, that lives
        assert lease.alive(run)
        with pytest.raises(UserError, match="in use by"), lease.hold_run(run):
            pass
        lease._write(run, dataclasses.replace(held, pid=2**22 + 1))  # and one that is gone
        assert not lease.alive(run)
        with lease.hold_run(run):
            pass


def test_the_lock_lives_as_long_as_a_rank_has_it(run: RunDir) -> None:
    with lease.hold_run(run) as held:
        code = "import sys; print('up', flush=True); sys.stdin.read()"
        rank = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[held.lock]
        )
    with rank:
        assert rank.stdout is not None
        assert rank.stdout.readline() == b"up\n"
        with pytest.raises(UserError, match="in use"), lease.hold_run(run):
            pass
        assert lease.alive(run)
        rank.communicate()
    with lease.hold_run(run):
        pass


def test_a_holder_elsewhere_counts_while_it_renews(run: RunDir) -> None:
    left_behind(run, ELSEWHERE, STALE_SECONDS - 20)
    assert lease.alive(run)
    with pytest.raises(UserError, match=r"attempt 3 \(job 12, restart 1, process 4321 on node7\)"), lease.hold_run(run):
        pass
    with pytest.raises(UserError), lease.hold_run(run, job="13"):  # another job is another holder
        pass
    left_behind(run, ELSEWHERE, STALE_SECONDS + 1)
    assert not lease.alive(run)
    with lease.hold_run(run, job="13"):
        assert lease.read_lease(run) != ELSEWHERE


def test_a_released_lease_is_nobodys(run: RunDir) -> None:
    left_behind(run, dataclasses.replace(ELSEWHERE, released=True), 0)
    assert not lease.alive(run)
    with lease.hold_run(run):
        pass


def test_the_next_start_of_the_same_job_takes_over_at_once(run: RunDir) -> None:
    with lease.hold_run(run, job="12", restart=1) as old:
        with lease.hold_run(run, job="12", restart=2) as new:
            with pytest.raises(RunFailed, match=r"job 12, restart 2.* has taken over"):
                old.check()
            with pytest.raises(RunFailed, match="nothing more is written"):
                Fence(run, old.lease.token).check()
            with pytest.raises(RunFailed):
                old.publish(1, "x", 1, 1)
            new.check()
        old.release()  # not his to release
        found = lease.read_lease(run)
        assert found is not None
        assert (found.restart, found.released) == (2, True)


def test_an_earlier_start_of_the_same_job_does_not_come_back(run: RunDir) -> None:
    with (
        lease.hold_run(run, job="12", restart=2),
        pytest.raises(UserError, match="in use"),
        lease.hold_run(run, job="12", restart=1),
    ):
        pass


def test_renewing_notices_a_loss(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", -1.0)
    with lease.hold_run(run) as held:
        path = left_behind(run, held.lease, 1000)
        held.renew()
        assert lease._seconds_since_renewal(run) < 5
        lease._write(run, ELSEWHERE)
        before = path.stat().st_mtime_ns
        with pytest.raises(RunFailed, match="node7"):
            held.renew()
        assert path.stat().st_mtime_ns == before


def test_no_token_means_no_fence_and_a_damaged_lease_stops_a_writer(run: RunDir) -> None:
    before = run.read()
    Fence(run, None).check()
    (run.path / "lease.json").write_text("{")
    assert lease.read_lease(run) is None
    with pytest.raises(RunFailed, match="another process has taken over"):
        Held(run, ELSEWHERE, lock=-1).check()
    assert run.read() == before
