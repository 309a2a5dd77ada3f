"""The daemons that the whole cluster shares: munged, MariaDB, slurmdbd and slurmctld."""

from __future__ import annotations

import socket
import subprocess

from layout import CLUSTER, Failed, Folder, Options
from processes import run, start, wait_for

_CLIENT_SECONDS = 5


def names(options: Options) -> list[str]:
    return ["munged", *(["mariadbd", "slurmdbd"] if options.accounting else []), "slurmctld"]


def begin_database(folder: Folder) -> subprocess.Popen[bytes]:
    """Makes MariaDB's tables in the background: seconds in which the network can be built."""
    command = [
        "mariadb-install-db",
        "--no-defaults",
        "--user=root",
        f"--datadir={folder.database}",
        "--skip-test-db",
        "--auth-root-authentication-method=socket",
        "--auth-root-socket-user=root",
        *_SMALL_DATABASE,
    ]
    return start(folder, "mariadb-install-db", command)


# Nothing in this database is kept, so it may lose everything in a crash and never waits for a disk.
_SMALL_DATABASE = [
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=16M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--innodb-doublewrite=0",
]


def start_munged(folder: Folder) -> None:
    munge = folder.root / "munge"
    start(
        folder,
        "munged",
        [
            "munged",
            "--foreground",
            f"--socket={folder.munge_socket}",
            f"--key-file={munge}/key",
            f"--pid-file={munge}/pid",
            f"--seed-file={munge}/seed",
            f"--log-file={munge}/log",
        ],
    )
    _wait_until_answered(folder, "munged", ["munge", "--no-input", f"--socket={folder.munge_socket}"])


def start_accounting(folder: Folder, tables: subprocess.Popen[bytes]) -> None:
    if tables.wait(timeout=120):
        raise Failed(f"mariadb-install-db failed (see {folder.output('mariadb-install-db')})")
    start(
        folder,
        "mariadbd",
        [
            "mariadbd",
            "--no-defaults",
            "--user=root",
            f"--datadir={folder.database}",
            f"--socket={folder.database_socket}",
            f"--pid-file={folder.root}/run/mariadbd.pid",
            "--skip-networking",
            "--innodb-lock-wait-timeout=900",  # slurmdbd complains of less
            *_SMALL_DATABASE,
        ],
    )
    wait_for("MariaDB answered", lambda: _listens(folder), 60, (folder, "mariadbd"))
    start(folder, "slurmdbd", ["slurmdbd", "-D"], MYSQL_UNIX_PORT=str(folder.database_socket))
    _wait_until_answered(folder, "slurmdbd", ["sacctmgr", "--noheader", "show", "cluster"])
    run(["sacctmgr", "--immediate", "add", "cluster", CLUSTER], folder=folder)


def start_controller(folder: Folder) -> None:
    start(folder, "slurmctld", ["slurmctld", "-D"])
    _wait_until_answered(folder, "slurmctld", ["sinfo", "--noheader"])


def _listens(folder: Folder) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(folder.database_socket)) == 0


def _wait_until_answered(folder: Folder, name: str, command: list[str]) -> None:
    refusal = ""

    def answered() -> bool:
        nonlocal refusal
        try:
            run(command, folder=folder, seconds=_CLIENT_SECONDS)
        except Failed as error:
            refusal = str(error)
            return False
        return True

    try:
        wait_for(f"{name} answered", answered, 30, (folder, name))
    except Failed as error:
        raise Failed(f"{error}; {refusal}") from None
