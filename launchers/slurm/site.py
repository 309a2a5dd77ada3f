"""Site profiles: a TOML file with the settings of one cluster. Every key, its type and meaning.

Values end up in a batch script, so each is checked here against what it may contain. The keys that are shell on
purpose (`setup`) are single lines. No secret may stand in a profile: it is a file that people share.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from distft.errors import UserError
from distft.plan.devices import whole_name
from distft.process import environment
from distft.recipe.messages import explain
from distft.recipe.section import Positive, Section

FOLDERS = (Path("slurm/sites"), Path("~/.config/distft/sites"))
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(_|$|=)", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9-]{16,}|\b[0-9a-f]{40}\b|://[^/\s:@]+:[^/\s@]+@"
)
_OURS = re.compile(
    r"(DISTFT_|SLURM_|SBATCH_|SUBMITIT_).*|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_(ADDR|PORT)"
)
_TIME = re.compile(r"[0-9]{1,6}|[0-9]{1,4}(:[0-9]{2}){1,2}|[0-9]{1,3}-[0-9]{1,2}(:[0-9]{2}){0,2}")
_OWNED_OPTIONS = {
    "array", "chdir", "error", "export", "job-name", "no-requeue", "ntasks", "ntasks-per-node", "open-mode", "output",
    "requeue", "signal", "wait", "wrap",
}  # fmt: skip


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("contains a line break or another unprintable character; write it on one plain line")
    return value


def _no_secret(value: str) -> str:
    if _SECRET_VALUE.search(value) or (re.search(r"\w=", value) and _SECRET_NAME.search(value)):
        raise ValueError(
            "looks like a secret; keep it out of the profile; export it in your shell or use the tool's login"
        )
    return value


def _time_limit(value: str) -> str:
    if not _TIME.fullmatch(value):
        raise ValueError(
            f"got {value!r}; give a limit such as 90 (minutes), 4:00:00 or 2-12 (days-hours), or 0 for none, where the "
            "partition has none: such a job stops only when the run is over, or it is preempted or cancelled"
        )
    return value


def _environment_name(name: str) -> str:
    if _SECRET_NAME.search(name):
        raise ValueError(f"{name} looks like a secret; export it in the shell that you submit from; jobs inherit it")
    if _OURS.fullmatch(name):
        raise ValueError(f"{name} is set by distft or SLURM; leave it out")
    return name


def _raw_option(line: str) -> str:
    name = line.removeprefix("--").split("=", 1)[0]
    if name in _OWNED_OPTIONS:
        raise ValueError(f"--{name} is set by distft; leave it out")
    return line


Line = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_one_line), AfterValidator(_no_secret)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+-]*$", max_length=128)]
Names = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+,-]*$", max_length=256)]
Constraint = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\[(][A-Za-z0-9_.,&|*()\[\]:=-]*$", max_length=256)]
Hosts = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,\[\]-]*$", max_length=1024)]
Memory = Annotated[str, Field(pattern=r"^[0-9]{1,9}[KMGT]?B?$")]
Time = Annotated[str, AfterValidator(_time_limit)]
Absolute = Annotated[str, Field(pattern=r"^(/|~(/|$)|\$)", max_length=1024), AfterValidator(_one_line)]
Interface = Annotated[str, Field(pattern=r"^[=^]?[A-Za-z0-9_.:,-]{1,64}$")]
Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9._%+-]+(@[A-Za-z0-9.-]+)?$", max_length=256)]
Dependency = Annotated[str, Field(pattern=r"^[a-z]+(:[0-9_+]+)*([,?][a-z]+(:[0-9_+]+)*)*$", max_length=256)]
Option = Annotated[
    str,
    Field(pattern=r"^--[a-z][a-z0-9-]*(=[A-Za-z0-9_.,:/@+*&|\[\]()=%-]+)?$", max_length=256),
    AfterValidator(_raw_option),
    AfterValidator(_no_secret),
]
Model = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(whole_name)]
Rate = Annotated[float, Field(gt=0)]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_environment_name)]


class Gpus(Section):
    """GPUs per node. Each becomes one rank."""

    request: Literal["gres", "gpus-per-node", "none"] = Field("gres", description="how your SLURM is asked for GPUs")
    count: Positive = Field(1, description="GPUs per node")
    type: Name | None = Field(None, description="GPU type, for example a100")
    model: Model | None = Field(
        None, description="the GPU for the plan, for example A100-80GB; default: what `type` says, where it says it all"
    )


class Rates(Section):
    """What was measured on this cluster, for the plan's time."""

    reached: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the GPU's bf16 peak that training reaches, 0 to 1"
    )
    within_node: Rate | None = Field(None, description="GB/s that a GPU sends to others of its node")
    between_nodes: Rate | None = Field(None, description="GB/s that a GPU sends to other nodes")


class Mail(Section):
    user: Address = Field(description="mail address")
    events: list[Literal["BEGIN", "END", "FAIL", "REQUEUE", "TIME_LIMIT", "ALL"]] = Field(
        ["END", "FAIL"], description="events that send a mail"
    )


class Scratch(Section):
    """Caches that do not fit into a home folder. `$VARIABLES` are expanded on the node."""

    huggingface: Absolute | None = Field(None, description="HF_HOME")
    triton: Absolute | None = Field(None, description="TRITON_CACHE_DIR")
    torch_extensions: Absolute | None = Field(None, description="TORCH_EXTENSIONS_DIR")
    distft: Absolute | None = Field(None, description="XDG_CACHE_HOME, for the token cache")


class Container(Section):
    """The ranks run in an image that has distft installed; the batch script does not."""

    image: Line = Field(description="file or address of the image")
    runtime: Literal["pyxis", "apptainer"] = Field("pyxis", description="pyxis: srun --container-image")
    mounts: list[Line] = Field(default_factory=list, description="SOURCE:TARGET")
    python: Absolute = Field("/usr/bin/python3", description="Python inside the image")


class Site(Section):
    """One cluster."""

    partition: Names | None = Field(None, description="--partition; separate several with commas")
    account: Name | None = Field(None, description="--account")
    qos: Name | None = Field(None, description="--qos")
    constraint: Constraint | None = Field(None, description="--constraint: features of nodes")
    reservation: Name | None = Field(None, description="--reservation")
    exclude: Hosts | None = Field(None, description="--exclude: nodes to avoid")
    nodes: Positive = Field(1, description="nodes per job; --nodes overrides it")
    ranks: Positive | None = Field(None, description="ranks per node; default: one per GPU")
    cpus: Positive | None = Field(None, description="CPUs per node (--cpus-per-task; there is one task per node)")
    memory: Memory | None = Field(None, description="memory per node, for example 64G; 0: all of it")
    time: Time = Field("1:00:00", description="time limit in a SLURM format; --time overrides it")
    gpus: Gpus | None = Field(None, description="GPUs of a node; leave it out for nodes without GPUs")
    rates: Rates = Field(default_factory=Rates, description="rates that were measured here, for `distft plan`")
    exclusive: bool = Field(False, description="reserve whole nodes")
    modules: list[Line] = Field(default_factory=list, description="environment modules to load (`module load`)")
    activate: Absolute | None = Field(None, description="virtual environment, or shell script to source")
    setup: list[Line] = Field(default_factory=list, description="shell lines to run before the ranks start")
    variables: dict[EnvironmentName, Line] = Field(default_factory=dict, description="environment variables")
    offline: bool = Field(True, description="nodes have no internet (sets HF_HUB_OFFLINE=1)")
    interface: Interface | None = Field(
        None, description="network interface between ranks (NCCL_ and GLOO_SOCKET_IFNAME); default: found by the route"
    )
    scratch: Scratch = Field(default_factory=Scratch, description="cache folders")
    container: Container | None = Field(None, description="container image for the ranks")
    mail: Mail | None = Field(None, description="--mail-user, --mail-type")
    dependency: Dependency | None = Field(None, description="--dependency, for example afterok:123")
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        10, description="how many times crashed or hung ranks are restarted in a job before it is requeued"
    )
    signal_lead: Annotated[int, Field(ge=0, le=65535)] = Field(
        120, description="seconds before the time limit at which SLURM sends SIGUSR2; 0: no signal, only the clock"
    )
    srun: list[Option] = Field(default_factory=list, description="more options for srun, for example --mpi=none")
    sbatch: list[Option] = Field(default_factory=list, description="more options for sbatch, for example --licenses=x")
    wckey: Name | None = Field(None, description="--wckey; default: none")
    shared: list[Absolute] = Field(
        default_factory=list, description="folders that all nodes share; everything a run needs must be in one of them"
    )

    @model_validator(mode="after")
    def _ranks_are_known(self) -> Site:
        if self.ranks is not None and self.gpus is not None and self.ranks > self.gpus.count:
            raise ValueError(f"ranks {self.ranks} is more than the {self.gpus.count} GPUs of a node")
        if self.container is not None and self.activate is not None:
            raise ValueError("container and activate cannot be used together: the image has its own environment")
        return self

    @property
    def ranks_a_node(self) -> int:
        return self.ranks or (self.gpus.count if self.gpus else 1)


def find(name: str | None) -> Path:
    """The file of a profile: a path, or the name of one below `slurm/sites` or `~/.config/distft/sites`.

    Raises:
        UserError: none was named, here or by $DISTFT_SITE, or there is none of that name.
    """
    name = name or os.environ.get(environment.SITE)
    if not name:
        raise UserError("give a site profile: --site NAME or FILE.toml, or set DISTFT_SITE (docs/slurm.md)")
    if name.endswith(".toml"):
        candidates = [Path(name)]
    else:
        candidates = [folder.expanduser() / f"{name}.toml" for folder in FOLDERS]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted({path.stem for folder in FOLDERS for path in folder.expanduser().glob("*.toml")})
    places = ", ".join(str(path) for path in candidates)
    raise UserError(f"no site profile {name!r} ({places}); known profiles: {', '.join(known) or 'none'}")


def load(path: Path) -> Site:
    """The profile in a file. Raises UserError, a line a problem, where it is not valid."""
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from None
    try:
        return Site.model_validate(values)
    except ValidationError as error:
        found = [(".".join(map(str, key)), what) for key, what in explain(error, values, Site)]
        lines = [f"{path}{_line_of(text, key)}: {key}: {what}" for key, what in found]
        raise UserError("\n".join(["not a valid site profile", *lines])) from None


def _line_of(text: str, key: str) -> str:
    """`:LINE` where the last part of a dotted key is set, as far as it can be seen."""
    last = re.escape(next((part for part in reversed(key.split(".")) if not part.isdigit()), key))
    first = re.escape(key.split(".")[0])
    for wanted in (rf"^\s*[\"']?{last}[\"']?\s*=", rf"^\s*\[?\s*{first}\b"):
        if found := re.search(wanted, text, re.MULTILINE):
            return f":{text.count(chr(10), 0, found.start()) + 1 + found.group().count(chr(10))}"
    return ""
