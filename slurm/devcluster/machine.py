"""What the machine must have: root, namespaces, and the Debian packages, which are installed if they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from layout import Failed, WrongUse
from processes import DAEMON_PATH, run

_PACKAGE_OF = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "ip": "iproute2",
}
_PACKAGE_OF_ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"}
_ALWAYS = "slurm-wlm-basic-plugins"  # has no program of its own
_FEWEST_USERS = 2000
_POLICY = Path("/usr/sbin/policy-rc.d")


def require_rights() -> None:
    if os.geteuid() != 0:
        raise WrongUse("a devcluster needs root, for network namespaces and for jobs of several users; run it as root")
    if not sys.platform.startswith("linux") or not shutil.which("unshare", path=DAEMON_PATH):
        raise WrongUse("a devcluster needs Linux and `unshare` (Debian package util-linux)")
    # A user namespace's root can make namespaces, but run no other user's job there.
    if sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines()) < _FEWEST_USERS:
        raise WrongUse(
            "root here is that of a user namespace without other users; run devcluster as the machine's root"
        )
    try:
        run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"])
    except Failed as error:
        raise WrongUse(
            "root may not make network, mount and pid namespaces here (in a container, "
            f"give it CAP_SYS_ADMIN and CAP_NET_ADMIN): {error}"
        ) from None


def install_missing(accounting: bool) -> None:
    wanted = {**_PACKAGE_OF, **(_PACKAGE_OF_ACCOUNTING if accounting else {})}
    path = f"{os.environ.get('PATH', '')}:{DAEMON_PATH}"
    missing = sorted({package for program, package in wanted.items() if not shutil.which(program, path=path)})
    if not missing:
        return
    if not shutil.which("apt-get", path=path):
        raise WrongUse(
            f"these Debian packages are missing and there is no apt-get to install them: {' '.join(missing)}"
        )
    print(f"devcluster: installing {' '.join(missing)}", file=sys.stderr)
    ours = not _POLICY.exists()
    try:
        if ours:  # else the packages start daemons of their own, with their own settings
            _POLICY.write_text("#!/bin/sh\nexit 101\n")
            _POLICY.chmod(0o755)
        _apt(["update"], fatal=False)
        _apt(["install", "-y", "--no-install-recommends", _ALWAYS, *missing], fatal=True)
    except Failed as error:
        raise WrongUse(f"these Debian packages are missing and could not be installed: {error}") from None
    finally:
        if ours:
            _POLICY.unlink()


def _apt(arguments: list[str], fatal: bool) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(
        ["apt-get", "-qq", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    )
    if done.returncode and fatal:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        raise Failed(f"`apt-get {' '.join(arguments)}` failed: {errors[-1] if errors else done.stderr[-200:].strip()}")
