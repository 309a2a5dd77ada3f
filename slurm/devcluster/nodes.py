"""The nodes: a slurmd in namespaces of its own each, and what Slurm says of them."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable

from layout import Failed, Folder
from processes import kill, kill_jobs_on, living_pid, recorded_names, run, start, wait_for

_USABLE = ("IDLE", "MIXED", "ALLOCATED")


def boot(folder: Folder, node: str) -> None:
    """nsenter (which becomes unshare), because `ip netns exec` mounts /sys anew: slurmd would miss /sys/fs/cgroup."""
    inside = (
        f"hostname {node} && mount --bind {shlex.quote(str(folder.hosts))} /etc/hosts && slurmd -D -N {node}; "
        "true"  # keeps the shell: as pid 1 it reaps the slurmstepds, which would be zombies under slurmd
    )
    namespaces = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    start(folder, node, ["nsenter", f"--net={folder.namespace(node)}", *namespaces, "sh", "-c", inside])


def crash(folder: Folder, node: str) -> None:
    kill(folder, [node])


def end_jobs(folder: Folder, seconds: float = 2) -> None:
    """Cancels every job, so that an `srun` outside the nodes ends too: one whose nodes vanish waits for ever."""

    def jobs() -> list[str]:
        return run(["squeue", "--noheader", "--format=%A"], folder=folder, seconds=5).split()

    with contextlib.suppress(Failed):  # a help to clients and no more: what does not end in time is killed anyway
        if living_pid(folder, "slurmctld") is None or not jobs():
            return
        with contextlib.suppress(Failed):  # it complains of those that have just ended
            run(["scancel", *jobs()], folder=folder, seconds=5)
        for node in recorded_names(folder):
            kill_jobs_on(folder, node)  # Slurm would wait for KillWait, also with --signal=KILL
        wait_for("the cancelled jobs ended", lambda: not jobs(), seconds)


def states(folder: Folder) -> dict[str, tuple[str, int]]:
    """For every node Slurm's word for its state and when its slurmd started (epoch seconds, 0 for never)."""
    found = {}
    for line in run(["scontrol", "--oneliner", "show", "node"], folder=folder, seconds=5).splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        started = fields.get("SlurmdStartTime", "")
        found[fields["NodeName"]] = (fields["State"], int(started) if started.isdigit() else 0)
    return found


def usable(state: str) -> bool:
    """A star after the state means that the node does not answer; +DRAIN, +NOT_RESPONDING and such follow a plus."""
    base, _, flags = state.partition("+")
    return base in _USABLE and not set(flags.split("+")) & {"DRAIN", "NOT_RESPONDING", "INVALID_REG", "FAIL"}


def wait_until_usable(folder: Folder, names: Iterable[str], since: float, seconds: float = 60) -> None:
    """`since`: when these nodes were booted. What Slurm says of an earlier slurmd on them does not count."""
    wanted = list(names)

    def all_usable() -> bool:
        for name in wanted:
            if living_pid(folder, name) is None:
                raise Failed(f"{name} ended while it started (see {folder.output(name)})")
        try:
            now = states(folder)
        except Failed:
            return False
        return all(usable(now[name][0]) and now[name][1] >= int(since) for name in wanted)

    wait_for(f"{', '.join(wanted)} became usable", all_usable, seconds, (folder, "slurmctld"))
