"""What srun starts, once a node: the light parent of that node's ranks.

The first node of the job leads: it takes the run's lease, writes run.json, and opens the socket the ranks meet on. It
publishes where that is in the lease; the others wait for it there. Each node leaves its verdict in the run folder,
where the other nodes and the requeue policy find it.
"""

from __future__ import annotations

from distft import preempt

if __name__ == "__main__":
    preempt.listen()  # before anything slower is imported: a stop signal counts from the first millisecond

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from distft import lease
from distft.config import Recipe
from distft.errors import DONE, FAILED, PREEMPTED, USAGE, RunFailed, UserError
from distft.lease import Held
from distft.recipe import check_sizes, load_resolved
from distft.rundir import Attempt, RunDir, this_host, write_atomically
from launchers.attempt import Verdict, recorded
from launchers.local import gpus
from launchers.parent import POLL_SECONDS, Claim, Node, run_ranks
from launchers.slurm import scheduler
from launchers.slurm.cause import settle, stop_cause

OTHER_HOLDER_SECONDS = lease.STALE_SECONDS + 15.0
LEADER_SECONDS = 600.0  # a leader waits for a holder and for file systems; followers wait for the leader
GATHER_SECONDS = 5.0  # for the verdicts of nodes whose ranks failed at the same time
LEADER_LEAVES_SECONDS = 15.0
FIRST_PORT, PORTS = 20000, 20000


@dataclass(frozen=True)
class Place:
    """This node in its job."""

    job: str
    restart: int
    index: int
    hosts: list[str]
    ranks: int
    ends: float | None  # seconds since the epoch at which the time limit ends the job; None: not known

    @property
    def leads(self) -> bool:
        return self.index == 0


def place(environment: Mapping[str, str]) -> Place:
    """From what SLURM and the batch script set; an image of a container needs none of SLURM's commands.

    Raises:
        UserError: this was not started by srun within a job.
    """
    try:
        job, index = environment["SLURM_JOB_ID"], int(environment["SLURM_NODEID"])
        hosts = environment["DISTFT_HOSTS"].split(",")
        ranks = int(environment.get("DISTFT_RANKS") or gpus() or 1)
    except (KeyError, ValueError) as error:
        raise UserError(f"this is started by srun in a job of distft, and {error} is not set as it would be") from None
    ends = environment.get("DISTFT_ENDS", "")
    restart = int(environment.get("SLURM_RESTART_COUNT") or 0)
    return Place(job, restart, index, hosts, ranks, float(ends) if ends.isdigit() else None)


def main() -> int:
    os.umask(0o077)
    try:
        run, here = RunDir(Path(os.environ["DISTFT_RUN_DIR"])), place(os.environ)
    except KeyError:
        raise UserError("DISTFT_RUN_DIR is not set; the batch script sets it") from None
    verdicts = Verdicts(run, here)
    verdict = Verdict(FAILED, f"the light parent on {this_host()} failed")
    try:
        verdict = lead(run, here, verdicts) if here.leads else follow(run, here, verdicts)
    except UserError as error:
        verdict = Verdict(USAGE, str(error), weight=1)
        raise
    except (RunFailed, OSError) as error:
        verdict = Verdict(FAILED, str(error), weight=3)
        raise
    finally:
        verdicts.leave(verdict)
        if not here.leads and verdict.code != DONE:
            verdicts.let_the_leader_finish()
    return verdict.code


class Verdicts:
    """How the attempt ended on each node, in the run folder."""

    def __init__(self, run: RunDir, here: Place) -> None:
        self.folder = folder(run, here.job, here.restart)
        self._here = here
        self.folder.mkdir(parents=True, exist_ok=True)

    def leave(self, verdict: Verdict) -> None:
        with suppress(OSError):  # a full disk; srun's exit code remains
            write_atomically(self.folder / f"node-{self._here.index}.json", json.dumps(asdict(verdict)))

    def others(self) -> list[Verdict]:
        indices = [index for index in range(len(self._here.hosts)) if index != self._here.index]
        found = [read_verdict(self.folder / f"node-{index}.json") for index in indices]
        return [verdict for verdict in found if verdict is not None]

    def let_the_leader_finish(self) -> None:
        """The first task that leaves with another code than 0 has srun send SIGTERM to the others."""
        deadline = time.monotonic() + LEADER_LEAVES_SECONDS
        while not (self.folder / "node-0.json").exists() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def elsewhere(self) -> Verdict | None:
        return min(self.others(), key=lambda verdict: verdict.weight, default=None)

    def weighed(self, own: Verdict) -> Verdict:
        """Of all nodes' verdicts the one that names the cause; waits for those that fail at the same time."""
        deadline = time.monotonic() + GATHER_SECONDS
        while own.code != DONE and len(self.others()) < len(self._here.hosts) - 1 and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return min([own, *self.others()], key=lambda verdict: verdict.weight)


def folder(run: RunDir, job: str, restart: int) -> Path:
    """Where the nodes of one start of a job leave their verdicts."""
    return run.path / "slurm" / f"job-{job}-{restart}"


def read_verdict(path: Path) -> Verdict | None:
    try:
        return Verdict(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def lead(run: RunDir, here: Place, verdicts: Verdicts) -> Verdict:
    """The first node: holds the run and records the attempt."""
    with lease.hold(run, here.job, here.restart, OTHER_HOLDER_SECONDS, scheduler.is_over) as held:
        record = run.read()
        if record.state == "done":
            print(f"{run.path} is finished; nothing to do", flush=True)
            return Verdict(DONE, "finished")
        recipe, world = load_resolved(run.config), len(here.hosts) * here.ranks
        check_sizes(recipe, world)
        settle(run, record)
        record.launcher = "slurm"
        run.write(record)
        return recorded(
            run, recipe, held, here.hosts, world, lambda attempt: leading(run, recipe, here, verdicts, held, attempt)
        )


def leading(run: RunDir, recipe: Recipe, here: Place, verdicts: Verdicts, held: Held, attempt: Attempt) -> Verdict:
    listener = listen_near(FIRST_PORT + (int(here.job) * 31 + here.restart * 7) % PORTS)
    port = listener.getsockname()[1]
    held.publish(attempt.number, here.hosts[0], port)
    node = Node(here.ranks, 0, len(here.hosts), here.hosts[0], port, listener, here.ends, recipe.engine.timeout)

    def look_around() -> Verdict | None:
        held.renew()
        return verdicts.elsewhere()

    claim = Claim(attempt.number, held.lease.token, held.lock)
    verdict = verdicts.weighed(run_ranks(run, node, claim, look_around))
    return stop_cause(verdict, preempt.received(), here.ends)


def listen_near(port: int) -> socket.socket:
    """A socket on `port`, or on the next that is free."""
    for candidate in range(port, port + 100):
        try:
            return socket.create_server(("", candidate), backlog=128)
        except OSError:
            continue
    return socket.create_server(("", 0), backlog=128)


def follow(run: RunDir, here: Place, verdicts: Verdicts) -> Verdict:
    """Another node: its ranks join those of the first."""
    found = meeting_point(run, here, verdicts)
    if isinstance(found, Verdict):
        return found
    run.attempt_logs(found.attempt).mkdir(parents=True, exist_ok=True)
    timeout = load_resolved(run.config).engine.timeout
    node = Node(here.ranks, here.index, len(here.hosts), found.address, found.port, None, here.ends, timeout)
    fence = lease.Fence(run, found.token)

    def look_around() -> Verdict | None:
        fence.check()
        return verdicts.elsewhere()

    return run_ranks(run, node, Claim(found.attempt, found.token), look_around)


def meeting_point(run: RunDir, here: Place, verdicts: Verdicts) -> lease.Lease | Verdict:
    """Wait for the first node to say where the ranks meet, or how it ended."""
    deadline = time.monotonic() + LEADER_SECONDS
    while time.monotonic() < deadline:
        found = lease.read(run)
        if found and (found.job, found.restart) == (here.job, here.restart) and found.port and not found.released:
            return found
        if (ended := verdicts.elsewhere()) is not None:
            return ended
        if signals := preempt.received():
            return Verdict(PREEMPTED, f"preempted ({signals[0].name}) before the ranks were started", weight=-1)
        time.sleep(POLL_SECONDS)
    return Verdict(FAILED, f"{this_host()} did not hear of the first node, {here.hosts[0]}, in {LEADER_SECONDS:.0f} s")


if __name__ == "__main__":
    try:
        code = main()
    except (UserError, RunFailed, OSError) as error:
        print(f"distft: error: {error}", file=sys.stderr, flush=True)
        code = USAGE if isinstance(error, UserError) else FAILED
    sys.exit(code)
