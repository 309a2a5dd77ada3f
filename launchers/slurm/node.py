"""The program that srun starts once per node: the light parent of that node's ranks.

The first node of the job leads: it takes the run's lease, writes run.json, and opens the socket the ranks meet on. It
publishes where that is in the lease; the others wait for it there. Each node leaves its verdict in the run folder,
where the other nodes and the requeue policy find it. Where all nodes are alive and the ranks have failed, the first
node begins another attempt, and the others join it.
"""

from __future__ import annotations

from distft.process import environment, stop_signals

if __name__ == "__main__":
    stop_signals.listen()  # before anything slower is imported: a stop signal counts from the first millisecond

import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from distft.errors import DONE, FAILED, PREEMPTED, USAGE, RunFailed, UserError
from distft.launcher import CLUSTER
from distft.process import streams
from distft.process.devices import gpus
from distft.recipe.load import check_sizes, load_resolved
from distft.recipe.schema import Recipe
from distft.run import lease
from distft.run.batch import settled
from distft.run.folder import Attempt, RunDir, this_host
from distft.run.lease import Held
from launchers.attempt import Phases, Restarts, Verdict, in_this_allocation
from launchers.interface import interface_to
from launchers.parent import POLL_SECONDS, Claim, Household, Node, export, household, run_ranks
from launchers.slurm import jobs, policy, scheduler
from launchers.slurm.cause import settle, stop_cause
from launchers.slurm.verdicts import Verdicts, folder

OTHER_HOLDER_SECONDS = lease.STALE_SECONDS + 15.0
LEADER_SECONDS = 600.0  # a leader waits for a holder and for file systems; followers wait for the leader
MAX_RESTARTS = 10  # of the ranks in one start of the job, where the batch script does not say
LONGEST_POLL_SECONDS = 1.0  # of waiting for the leader
FIRST_PORT, PORTS = 20000, 20000


@dataclass(frozen=True)
class NodePlace:
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

    def node(self, address: str, port: int, timeout: float, listener: socket.socket | None = None) -> Node:
        """This node in an attempt whose ranks meet there."""
        nodes = len(self.hosts)
        interface = "lo" if nodes == 1 else interface_to(self.hosts[1] if self.leads else address)
        return Node(self.ranks, self.index, nodes, address, port, interface, listener, self.ends, timeout)

    def named(self, verdict: Verdict) -> Verdict:
        """With SLURM's name of this node, where it blames the host; the machine's own may be a longer one."""
        return verdict if verdict.host is None else replace(verdict, host=self.hosts[self.index])


def place(variables: Mapping[str, str]) -> NodePlace:
    """From what SLURM and the batch script set; an image of a container needs none of SLURM's commands.

    Raises:
        UserError: this was not started by srun within a job.
    """
    try:
        job, index = variables["SLURM_JOB_ID"], int(variables["SLURM_NODEID"])
        hosts = variables[environment.HOSTS].split(",")
        ranks = int(variables.get(environment.RANKS) or gpus() or 1)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"only the batch script of a distft job starts this program, with srun; {error} is missing or wrong"
        ) from None
    ends = variables.get(environment.ENDS, "")
    restart = int(variables.get("SLURM_RESTART_COUNT") or 0)
    return NodePlace(job, restart, index, hosts, ranks, float(ends) if ends.isdigit() else None)


def main() -> int:
    os.umask(0o077)
    streams.tolerate_closed_streams()
    try:
        run, here = RunDir(Path(os.environ[environment.RUN_DIR])), place(os.environ)
    except KeyError:
        raise UserError("DISTFT_RUN_DIR is not set; the batch script sets it") from None
    if not run.exists():
        raise UserError(f"{run.path} has disappeared or was moved; resume it from where it is now")
    ended = Verdicts(folder(run, here.job, here.restart), here.index, len(here.hosts))
    verdict = Verdict(FAILED, f"the light parent on {this_host()} failed")
    try:
        verdict = lead(run, here, ended) if here.leads else follow(run, here, ended)
    except UserError as error:
        verdict = Verdict(USAGE, str(error), weight=1)
        raise
    except (RunFailed, OSError) as error:
        verdict = Verdict(FAILED, str(error), weight=3)
        raise
    finally:
        ended.leave(verdict)
        if here.leads:
            decide_without_the_script(run, here, verdict)
        elif verdict.code != DONE:
            ended.let_the_leader_finish()
    return verdict.code


def decide_without_the_script(run: RunDir, here: NodePlace, verdict: Verdict) -> None:
    """SLURM asked for a stop; where that was because the batch script was killed, nobody else starts the job again."""
    if stop_signals.requested() and verdict.code in (PREEMPTED, FAILED):
        try:
            policy.in_place_of_the_script(run, here.job, here.restart, verdict)
        except (UserError, OSError) as error:  # said here: what ended the ranks is reported after it
            print(f"distft: error: the requeue decision failed: {error}", file=sys.stderr, flush=True)


def lead(run: RunDir, here: NodePlace, ended: Verdicts) -> Verdict:
    """The first node: holds the run and records the attempts."""
    with (
        lease.hold_run(run, here.job, here.restart, OTHER_HOLDER_SECONDS, scheduler.is_over) as held,
        household(run, here.ranks) as home,
    ):
        record = run.read()
        if record.state == "done":
            print(f"{run.path} is finished; nothing to do", flush=True)
            return Verdict(DONE, "finished")
        recipe, world = load_resolved(run.config), len(here.hosts) * here.ranks
        check_sizes(settled(run, recipe), world)
        settle(run, record)
        launcher = os.environ.get(environment.LAUNCHER)
        record.launcher = launcher or CLUSTER
        run.write(record)
        if launcher is None:  # a script written by hand says nothing
            jobs.mark(here.job, record, run)
        most = int(os.environ.get(environment.MAX_RESTARTS) or MAX_RESTARTS)

        def all_nodes_are_there(attempt: Attempt) -> bool:
            held.renew()  # what has been waited for before and is now may be longer than a lease lasts
            only_exported = 0 < run.read().trained <= attempt.commit_before  # the others have started nothing
            return only_exported or ended.of(attempt.number).all_there()

        restarts = Restarts(most, here.ends, all_nodes_are_there)

        def write_final(attempt: Attempt) -> Verdict:
            claim = Claim(attempt.number, held.lease.token, held.lock)
            own = here.named(export(run, recipe, claim, held.renew, home))
            return stop_cause(own, stop_signals.received(), here.ends)

        phases = Phases(partial(leading, run, recipe, here, ended, held, home), write_final)
        return in_this_allocation(run, recipe, held, here.hosts, world, restarts, phases)


def leading(
    run: RunDir, recipe: Recipe, here: NodePlace, ended: Verdicts, held: Held, home: Household, attempt: Attempt
) -> Verdict:
    listener = listen_near(FIRST_PORT + (int(here.job) * 31 + (here.restart + attempt.number) * 7) % PORTS)
    port = listener.getsockname()[1]
    held.publish(attempt.number, here.hosts[0], port, here.ranks)
    node = here.node(here.hosts[0], port, recipe.engine.timeout, listener)
    verdicts = ended.of(attempt.number)

    def look_around() -> Verdict | None:
        held.renew()
        return verdicts.elsewhere() or ended.elsewhere()

    claim = Claim(attempt.number, held.lease.token, held.lock)
    own = here.named(run_ranks(run, node, claim, look_around, home))
    verdicts.leave(own)
    found = verdicts.blamed(verdicts.weighed(own), here.hosts)
    return stop_cause(found, stop_signals.received(), here.ends)


def listen_near(port: int) -> socket.socket:
    """A socket on `port`, or on the next that is free."""
    for candidate in range(port, port + 100):
        try:
            return socket.create_server(("", candidate), backlog=128)
        except OSError:
            continue
    return socket.create_server(("", 0), backlog=128)


def follow(run: RunDir, here: NodePlace, ended: Verdicts) -> Verdict:
    """Another node: its ranks join those of the first, in each attempt that the first begins."""
    timeout, last = load_resolved(run.config).engine.timeout, 0
    with household(run, here.ranks) as home:
        while isinstance(found := meeting_point(run, here, ended, last), lease.Lease):
            last = found.attempt
            if found.ranks != here.ranks:
                raise UserError(unequal(here, found.ranks))
            ended.of(last).leave(join(run, here, ended, found, timeout, home))
        return found


def unequal(here: NodePlace, ranks: int) -> str:
    return (
        f"{here.hosts[here.index]} has {here.ranks} ranks (GPUs) and {here.hosts[0]}, the first node, {ranks}; all "
        "nodes of a job need the same number: set `ranks` in the site profile, or `constraint` to nodes of one kind"
    )


def join(run: RunDir, here: NodePlace, ended: Verdicts, found: lease.Lease, timeout: float, home: Household) -> Verdict:
    run.attempt_logs(found.attempt).mkdir(parents=True, exist_ok=True)
    node = here.node(found.address, found.port, timeout)
    fence, verdicts = lease.Fence(run, found.token), ended.of(found.attempt)

    def look_around() -> Verdict | None:
        fence.check()
        return verdicts.elsewhere() or ended.of_leader()

    return here.named(run_ranks(run, node, Claim(found.attempt, found.token), look_around, home))


def meeting_point(run: RunDir, here: NodePlace, ended: Verdicts, last: int) -> lease.Lease | Verdict:
    """Wait for the first node to say where the ranks of the attempt after `last` meet, or how it ended.

    It may be at work alone for long, on the export: as long as it renews its lease it is waited for.
    """
    renewed, heard, pause = 0.0, time.monotonic(), POLL_SECONDS
    while time.monotonic() - heard < LEADER_SECONDS:
        if (now := lease.renewed_at(run)) != renewed:
            renewed, heard = now, time.monotonic()
        found = lease.read_lease(run)
        ours = found is not None and (found.job, found.restart) == (here.job, here.restart) and not found.released
        if found is not None and ours and found.port and found.attempt > last:
            return found
        if (verdict := ended.of_leader()) is not None:
            return verdict
        if last == 0 and (signals := stop_signals.received()):
            return Verdict(PREEMPTED, f"preempted ({signals[0].name}) before the ranks were started", weight=-1)
        time.sleep(pause)
        pause = min(1.1 * pause, LONGEST_POLL_SECONDS)
    return Verdict(
        FAILED, f"{this_host()} heard nothing from the first node, {here.hosts[0]}, for {LEADER_SECONDS:.0f} s"
    )


if __name__ == "__main__":
    try:
        code = main()
    except (UserError, RunFailed, OSError) as error:
        print(f"distft: error: {error}", file=sys.stderr, flush=True)
        code = USAGE if isinstance(error, UserError) else FAILED
    sys.exit(code)
