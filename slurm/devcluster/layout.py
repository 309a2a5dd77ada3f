"""Where the cluster's files are, what its parts are called, and what `up` can be asked for."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import stat
from pathlib import Path

DEFAULT_FOLDER = "/run/distft-devcluster"
CLUSTER = "distft"
BRIDGE = "distft-br0"
CONTROLLER_ADDRESS = "10.77.0.254"
GPUS_PER_NODE = 2
CPUS_PER_NODE = 4
MEMORY_PER_NODE_MB = 8000
MOST_NODES = 64
# Not Slurm's own 6817-6819: a Slurm that a package or somebody else runs on this machine stays undisturbed.
CONTROLLER_PORT, NODE_PORT, ACCOUNTING_PORT = 16817, 16818, 16819

_MARK = ".distft-devcluster"  # only a folder with this file in it is ever removed
_COMPLETE = "options.json"  # written last by `up`: without it the cluster is half built
_LONGEST_FOLDER = 60  # a Unix socket's path ends at 107 characters


class WrongUse(Exception):
    """The command cannot be done as it was given or on this machine (exit code 2)."""


class Failed(Exception):
    """Something that should have worked did not (exit code 1)."""


@dataclasses.dataclass(frozen=True)
class Options:
    nodes: int = 4
    kill_wait: int = 5
    slurmd_timeout: int = 15
    grace: int = 10
    user_signal: bool = True
    accounting: bool = True

    def node_names(self) -> list[str]:
        return [f"node{i}" for i in range(1, self.nodes + 1)]


def node_address(node: str) -> str:
    return f"10.77.0.{node.removeprefix('node')}"


def node_link(node: str) -> str:
    """The root namespace's end of the node's cable; the node's own end is always called eth0."""
    return f"distft-{node}"


@dataclasses.dataclass(frozen=True)
class Folder:
    """The one folder that holds everything the cluster writes."""

    root: Path

    @property
    def slurm_conf(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def hosts(self) -> Path:
        return self.root / "hosts"

    @property
    def munge_socket(self) -> Path:
        return self.root / "munge" / "socket"

    @property
    def database(self) -> Path:
        return self.root / "mysql"

    @property
    def database_socket(self) -> Path:
        return self.root / "mysql.socket"

    def namespace(self, node: str) -> Path:
        return self.root / "netns" / node

    def record(self, name: str) -> Path:
        return self.root / "pids" / f"{name}.json"

    def output(self, name: str) -> Path:
        """What a process prints. Slurm's daemons write the same with times into slurm_log()."""
        return self.root / "log" / f"{name}.out"

    def slurm_log(self, daemon: str) -> Path:
        return self.root / "log" / f"{daemon}.log"

    def gpu(self, index: int) -> Path:
        return self.root / "dev" / f"gpu{index}"

    def create(self) -> None:
        if self.root.exists() and not self.is_ours() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise WrongUse(f"{self.root} holds something else; set DISTFT_DEVCLUSTER to a new folder")
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        (self.root / _MARK).touch()
        for name in ("munge", "netns", "pids", "log", "dev", "spool", "controller", "run"):
            (self.root / name).mkdir(exist_ok=True)
        self.database.mkdir(mode=0o700, exist_ok=True)

    def is_ours(self) -> bool:
        return (self.root / _MARK).is_file()

    def remove(self) -> None:
        if self.is_ours():
            shutil.rmtree(self.root)

    def mark_complete(self, options: Options) -> None:
        aside = self.root / f"{_COMPLETE}.new"
        aside.write_text(json.dumps(dataclasses.asdict(options)))
        aside.rename(self.root / _COMPLETE)

    def options(self) -> Options | None:
        """What the cluster was brought up with; None where there is no complete cluster."""
        try:
            return Options(**json.loads((self.root / _COMPLETE).read_text()))
        except (OSError, ValueError, TypeError):
            return None


def folder_from_environment() -> Folder:
    text = os.environ.get("DISTFT_DEVCLUSTER") or DEFAULT_FOLDER
    # Slurm's files know no quoting, and % and [ ] mean something in them.
    if not re.fullmatch(r"/[A-Za-z0-9_./-]+", text) or len(text) > _LONGEST_FOLDER or ".." in text.split("/"):
        raise WrongUse(
            f"DISTFT_DEVCLUSTER={text!r} must be an absolute path of letters, digits and _ . - /, "
            f"of at most {_LONGEST_FOLDER} characters"
        )
    return Folder(Path(os.path.normpath(text)))


def refuse_hidden_folder(folder: Folder) -> None:
    """Ordinary users read slurm.conf and reach munge's socket, so they must be able to walk to the folder."""
    for parent in folder.root.parents:
        if parent.exists() and not parent.stat().st_mode & stat.S_IXOTH:
            raise WrongUse(f"ordinary users cannot enter {parent}; set DISTFT_DEVCLUSTER to another folder")
