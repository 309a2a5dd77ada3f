"""The batch script of a job, made from a site profile. The only file that imports submitit."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distft.errors import UserError
from distft.launcher import CLUSTER
from distft.process import environment
from distft.process.interpreter import running
from distft.run.profile import Wanted
from launchers.slurm.site import Container, Site
from launchers.slurm.surroundings import as_a_job_inherits

NODE, POLICY = "launchers.slurm.node", "launchers.slurm.policy"
BYTES_WRITTEN = "$(stat -L -c %s /proc/$$/fd/1)"  # into the job's output
COMMENT = "--comment="
_NOT_OURS = re.compile(r"^#SBATCH --(?:signal|wckey)=")


@dataclass(frozen=True)
class Request:
    """One job to be sent. `folder` is where SLURM's output goes."""

    name: str
    run_dir: Path
    folder: Path
    site: Site
    nodes: int
    time: str
    dependency: str | None = None
    allow: frozenset[str] = frozenset()  # what may differ from the attempts before
    profile: Wanted | None = None  # of the attempts
    launcher: str = CLUSTER  # the name that run.json keeps
    module: str = NODE  # what runs once a node
    policy: bool = True  # whether the job may ask to be started again
    tag: str | None = None  # by which the queue knows whose job it is


def text(request: Request) -> str:
    """The script, as it would be sent."""
    executor = _executor(request)
    return str(executor._make_submission_file_text(_command(request), ""))


def send(request: Request) -> str:
    """Submit the job. Returns its id.

    Raises:
        UserError: sbatch refuses; with its own words.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    request.folder.mkdir(parents=True, exist_ok=True)
    try:
        with as_a_job_inherits(request.site):
            return str(_executor(request)._submit_command(_command(request)).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        said = re.findall(r"^\s*(sbatch: .*)$", str(error), re.MULTILINE)
        raise UserError("\n".join(said) or f"sbatch refused the job: {error}") from None
    finally:
        for leftover in request.folder.glob(".submission_file_*"):
            leftover.unlink()


def _executor(request: Request) -> Any:
    """submitit writes the script and sends it. Nothing is pickled: in the job our own light parent runs, because
    submitit's would answer signals itself."""
    import submitit

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc]
        """Without the signal and the wckey that submitit always writes."""

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            lines = super()._make_submission_file_text(command, uid).splitlines()
            kept = [line for line in lines if not _NOT_OURS.match(line)]
            return "\n".join([kept[0], *map(_flag, _own_options(request)), *kept[1:]]) + "\n"

        @classmethod
        def affinity(cls) -> int:
            return 2  # sbatch itself says what is missing; a script can be shown anywhere

    executor = Executor(folder=request.folder)
    executor.update_parameters(**parameters(request))
    return executor


def parameters(request: Request) -> dict[str, Any]:
    """In submitit's names."""
    site = request.site
    found: dict[str, Any] = {
        "job_name": request.name,
        "nodes": request.nodes,
        "ntasks_per_node": 1,
        "time": request.time,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "exclude": site.exclude,
        "cpus_per_task": site.cpus,
        "mem": site.memory,
        "exclusive": site.exclusive or None,
        "dependency": request.dependency or site.dependency,
        "stderr_to_stdout": True,
        "setup": setup(request),
        "teardown": teardown() if request.policy else ["exit $?"],
        # since 22.05 srun does not take the CPUs of a task from the batch job
        "srun_args": [
            "--kill-on-bad-exit=1",
            *([f"--cpus-per-task={site.cpus}"] if site.cpus else []),
            *_container_options(site.container),
            *site.srun,
        ],
        "additional_parameters": {"requeue" if request.policy else "no-requeue": True},
    }
    if site.reservation:
        found["additional_parameters"]["reservation"] = site.reservation
    if site.gpus is not None and site.gpus.request != "none":
        kind = f"{site.gpus.type}:" if site.gpus.type else ""
        if site.gpus.request == "gres":
            found["gres"] = f"gpu:{kind}{site.gpus.count}"
        else:
            found["gpus_per_node"] = f"{kind}{site.gpus.count}"
    if site.mail is not None:
        found |= {"mail_user": site.mail.user, "mail_type": ",".join(site.mail.events)}
    return {key: value for key, value in found.items() if value is not None}


def setup(request: Request) -> list[str]:
    """Shell before srun. SLURM's signals are for the ranks: the script waits for them and decides then."""
    site = request.site
    # with sbatch --export=NONE srun would otherwise keep from the ranks what is exported here
    lines = ["trap '' TERM USR1 USR2", "umask 077", "unset SLURM_EXPORT_ENV", f'DISTFT_OUTPUT="{BYTES_WRITTEN}"']
    lines += [f"module load {shlex.quote(module)}" for module in site.modules]
    lines += [_activation(site.activate)] if site.activate else []
    lines += [f"export {name}={value}" for name, value in _variables(request).items()]
    lines += site.setup
    lines.append('DISTFT_HOSTS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd , -)"')
    lines.append('DISTFT_ENDS="$(SLURM_TIME_FORMAT=%s squeue --noheader --job "$SLURM_JOB_ID" --format=%e)"')
    lines.append("export DISTFT_HOSTS DISTFT_ENDS")
    return lines


def teardown() -> list[str]:
    """Shell after srun: the policy, and again where it is killed itself."""
    return [
        "code=$?",
        f'export DISTFT_OUTPUT="$DISTFT_OUTPUT-{BYTES_WRITTEN}"',
        f"for _ in 1 2 3; do {shlex.join([sys.executable, *running(POLICY)])} $code; ended=$?",
        "[ $ended -lt 128 ] && break; done",
        "exit $ended",
    ]


def _variables(request: Request) -> dict[str, str]:
    """Name and quoted value."""
    site = request.site
    quoted = {
        environment.RUN_DIR: shlex.quote(str(request.run_dir)),
        environment.LAUNCHER: shlex.quote(request.launcher),
        environment.SIGNAL_LEAD: str(site.signal_lead),
        environment.MAX_RESTARTS: str(site.max_restarts),
    }
    if site.ranks is not None or site.gpus is not None:
        quoted[environment.RANKS] = str(site.ranks_a_node)
    if request.allow:
        quoted[environment.ALLOW] = shlex.quote(",".join(sorted(request.allow)))
    if request.profile is not None:
        quoted[environment.PROFILE] = shlex.quote(request.profile.text())
    if site.offline:
        quoted["HF_HUB_OFFLINE"] = "1"
    if site.interface:
        quoted |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), shlex.quote(site.interface))
    caches = {
        "HF_HOME": site.scratch.huggingface,
        "TRITON_CACHE_DIR": site.scratch.triton,
        "TORCH_EXTENSIONS_DIR": site.scratch.torch_extensions,
        "XDG_CACHE_HOME": site.scratch.distft,
    }
    quoted |= {name: _expandable(path) for name, path in caches.items() if path}
    return quoted | {name: shlex.quote(value) for name, value in site.variables.items()}


def _expandable(path: str) -> str:
    """Quoted but for `~` at its start and `$NAME`, which the node's shell fills in."""
    home = path.startswith("~/")
    parts = re.split(r"(\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_]*\})", path[1:] if home else path)
    return ('"$HOME"' if home else "") + "".join(
        f'"{part}"' if index % 2 else shlex.quote(part) for index, part in enumerate(parts) if part
    )


def _activation(path: str) -> str:
    target = _expandable(path)
    return f"if [ -d {target} ]; then . {target}/bin/activate; else . {target}; fi"


def _own_options(request: Request) -> list[str]:
    site = request.site
    options = [line for line in site.sbatch if not line.startswith(COMMENT)]
    comments = [line.removeprefix(COMMENT) for line in site.sbatch if line.startswith(COMMENT)]
    if comment := " ".join(filter(None, [*comments[-1:], request.tag])):  # sbatch would take the last one alone
        options.append(COMMENT + comment)
    if site.signal_lead:
        options.append(f"--signal=USR2@{site.signal_lead}")
    if site.wckey:
        options.append(f"--wckey={site.wckey}")
    return options


def _flag(option: str) -> str:
    name, equals, value = option.partition("=")
    return f"#SBATCH {name}{equals}{shlex.quote(value) if value else ''}"


def _command(request: Request) -> str:
    site = request.site
    python = [sys.executable]
    if site.container is not None:
        python = [site.container.python]
        if site.container.runtime == "apptainer":
            binds = [part for mount in site.container.mounts for part in ("--bind", mount)]
            python = ["apptainer", "exec", "--nv", *binds, site.container.image, *python]
    return shlex.join([*python, "-u", *running(request.module)])


def _container_options(container: Container | None) -> list[str]:
    if container is None or container.runtime != "pyxis":
        return []
    mounts = [f"--container-mounts={','.join(container.mounts)}"] if container.mounts else []
    return [f"--container-image={container.image}", *mounts]
