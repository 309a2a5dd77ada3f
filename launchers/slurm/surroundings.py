"""The environment that a job is sent with: the shell's, without what belongs to the job that the shell may be in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from distft.process import environment
from launchers.slurm.site import Site

_OF_A_JOB = re.compile(r"(SLURM|SLURMD|SRUN|SBATCH|SUBMITIT|DISTFT)_.*|(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)")
_OF_THE_CLUSTER = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}  # how commands reach it
_UNLESS_THE_PROFILE_SAYS = {"SBATCH_ACCOUNT": "account", "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos"}


def cleaned(variables: Mapping[str, str], site: Site) -> dict[str, str]:
    """What a job may inherit. In a shell within salloc or srun SLURM's variables hold the memory, CPUs and time of that
    job, and sbatch takes them for its own."""
    return {
        name: value
        for name, value in variables.items()
        if not _OF_A_JOB.fullmatch(name)
        or name in _OF_THE_CLUSTER
        or name == environment.SITE
        or (name in _UNLESS_THE_PROFILE_SAYS and not says(site, _UNLESS_THE_PROFILE_SAYS[name]))
    }


def says(site: Site, option: str) -> bool:
    """Whether a profile has an option of sbatch, by its own key or among the further ones."""
    return getattr(site, option) is not None or any(line.split("=")[0] == f"--{option}" for line in site.sbatch)


@contextmanager
def as_a_job_inherits(site: Site) -> Iterator[None]:
    """The environment, cleaned; afterwards it is as it was."""
    before = dict(os.environ)
    kept = cleaned(before, site)
    try:
        for name in before.keys() - kept.keys():
            del os.environ[name]
        yield
    finally:
        os.environ.update(before)
