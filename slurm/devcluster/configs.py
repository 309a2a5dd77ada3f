"""The text of every configuration file that the cluster's daemons read."""

from __future__ import annotations

import os
import secrets
import socket
import stat
from pathlib import Path

from layout import (
    ACCOUNTING_PORT,
    CLUSTER,
    CONTROLLER_ADDRESS,
    CONTROLLER_PORT,
    CPUS_PER_NODE,
    GPUS_PER_NODE,
    MEMORY_PER_NODE_MB,
    NODE_PORT,
    Folder,
    Options,
    WrongUse,
    node_address,
)

_NULL_DEVICE = os.makedev(1, 3)


def machine_name() -> str:
    return socket.gethostname().partition(".")[0]


def write_all(folder: Folder, options: Options) -> None:
    folder.slurm_conf.write_text(slurm_conf(folder, options))
    (folder.root / "gres.conf").write_text(
        f"NodeName=node[1-{options.nodes}] Name=gpu File={folder.root}/dev/gpu[0-{GPUS_PER_NODE - 1}]\n"
    )
    # An old kernel interface (cgroup v1) must not be mounted by slurmd; nothing here uses cgroups.
    (folder.root / "cgroup.conf").write_text("CgroupAutomount=no\n")
    folder.hosts.write_text(hosts(options, Path("/etc/hosts").read_text()))
    if options.accounting:
        _write_secret(folder.root / "slurmdbd.conf", slurmdbd_conf(folder).encode())
    _write_secret(folder.root / "munge" / "key", secrets.token_bytes(128))
    for index in range(GPUS_PER_NODE):
        # Slurm wants a character device behind every GPU; a number of GPUs alone is refused.
        try:
            os.mknod(folder.gpu(index), 0o666 | stat.S_IFCHR, _NULL_DEVICE)
        except PermissionError:
            raise WrongUse("root may not make device files here (in a container, give it CAP_MKNOD)") from None


def _write_secret(path: Path, content: bytes) -> None:
    """slurmdbd and munged both refuse a file that others can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def slurm_conf(folder: Folder, options: Options) -> str:
    lines = [
        f"ClusterName={CLUSTER}",
        f"SlurmctldHost={machine_name()}({CONTROLLER_ADDRESS})",
        f"SlurmctldPort={CONTROLLER_PORT}",
        f"SlurmdPort={NODE_PORT}",
        "SlurmUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder.munge_socket},cred_expire=5",
        *_paths(folder),
        "# Processes are followed by parent pid: no cgroups, no affinity, so that CPUs can be more than there are.",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "MpiDefault=none",
        "SwitchType=switch/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SlurmdParameters=config_overrides",
        "# How fast things happen.",
        "SchedulerParameters=bf_interval=1,sched_min_interval=0,batch_sched_delay=0",
        f"KillWait={options.kill_wait}",
        f"SlurmdTimeout={options.slurmd_timeout}",
        "InactiveLimit=0",
        "MinJobAge=300",
        "OverTimeLimit=0",
        "# What happens to a job that loses its nodes.",
        "ReturnToService=2",
        "JobRequeue=1",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        *(["SlurmctldParameters=preempt_send_user_signal"] if options.user_signal else []),
        *_accounting(folder, options),
        "GresTypes=gpu",
        f"NodeName=node[1-{options.nodes}] NodeAddr=10.77.0.[1-{options.nodes}] CPUs={CPUS_PER_NODE} "
        f"RealMemory={MEMORY_PER_NODE_MB} Gres=gpu:{GPUS_PER_NODE} State=UNKNOWN",
        *_partitions(options),
    ]
    return "\n".join(lines) + "\n"


def _paths(folder: Folder) -> list[str]:
    root = folder.root
    return [
        f"StateSaveLocation={root}/controller",
        f"SlurmdSpoolDir={root}/spool/%n",
        f"SlurmctldPidFile={root}/run/slurmctld.pid",
        f"SlurmdPidFile={root}/run/slurmd-%n.pid",
        f"SlurmctldLogFile={folder.slurm_log('slurmctld')}",
        f"SlurmdLogFile={folder.slurm_log('slurmd-%n')}",
        "MailProg=/bin/true",
    ]


def _accounting(folder: Folder, options: Options) -> list[str]:
    if not options.accounting:
        return ["AccountingStorageType=accounting_storage/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        f"AccountingStorageHost={CONTROLLER_ADDRESS}",
        f"AccountingStoragePort={ACCOUNTING_PORT}",
        # Not a password: the munge socket. Without it, clients of slurmdbd look for munge's default socket.
        f"AccountingStoragePass={folder.munge_socket}",
        "AccountingStorageTRES=gres/gpu",
    ]


def _partitions(options: Options) -> list[str]:
    every = f"Nodes=node[1-{options.nodes}] MaxTime=INFINITE State=UP"
    gives_way = "PriorityTier=1 PreemptMode=REQUEUE"
    return [
        f"PartitionName=low Default=YES {every} {gives_way} GraceTime={options.grace}",
        f"PartitionName=low0 {every} {gives_way} GraceTime=0",
        f"PartitionName=batch {every} {gives_way} GraceTime={options.grace}",
        f"PartitionName=high {every} PriorityTier=10 PreemptMode=OFF",
    ]


def slurmdbd_conf(folder: Folder) -> str:
    return "\n".join(
        [
            f"DbdHost={machine_name()}",
            f"DbdAddr={CONTROLLER_ADDRESS}",
            f"DbdPort={ACCOUNTING_PORT}",
            "SlurmUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={folder.munge_socket}",
            f"LogFile={folder.slurm_log('slurmdbd')}",
            f"PidFile={folder.root}/run/slurmdbd.pid",
            "StorageType=accounting_storage/mysql",
            "StorageHost=localhost",  # its socket is in MYSQL_UNIX_PORT: slurmdbd.conf has no key for it
            "StorageUser=root",
            "StorageLoc=slurm_acct_db",
            "",
        ]
    )


def node_host_lines(options: Options) -> list[str]:
    return [f"{node_address(node)} {node}" for node in options.node_names()]


def hosts(options: Options, of_machine: str) -> str:
    """The nodes' /etc/hosts: the machine's without its own name, which is often a loopback address there."""
    name = machine_name()
    kept = [line for line in of_machine.splitlines() if name not in line.partition("#")[0].split()[1:]]
    if not any("localhost" in line.split() for line in kept):
        kept.insert(0, "127.0.0.1 localhost")
    return "\n".join([*kept, f"{CONTROLLER_ADDRESS} {name}", *node_host_lines(options)]) + "\n"
