"""The command table. Imports are lazy: a command that only looks must answer at once on a login node."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

from distft.errors import DONE, UserError
from distft.exit_codes import outcome
from distft.process import lifetime, stop_signals, streams

if "train" in sys.argv[1:2] and "DISTFT_FORKSERVER_FD" not in os.environ:
    stop_signals.listen()  # before anything slower is imported: a stop signal counts from the first millisecond

import typer

app = typer.Typer(
    help="Fine-tune large models, here and on SLURM, and never lose a run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="KEY", help="continue although this differs from the attempts before; repeatable"),
]
Nodes = Annotated[int | None, typer.Option(help="nodes; default: the site's")]
RanksANode = Annotated[int | None, typer.Option(help="ranks a node; default: one a GPU")]
TimeLimit = Annotated[str | None, typer.Option(help="time limit of a job; default: the site's")]
Restarts = Annotated[int | None, typer.Option(min=0, help="restarts of the ranks within a job; default: the site's")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value pairs that replace values of the recipe")]


@app.command()
def new(
    task: Annotated[str, typer.Argument(help="a task.type; or `site`, `sbatch`: files to describe a cluster")],
    data: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="training data; COLUMN=FILE, repeated: parallel files")
    ] = None,
    held_out: Annotated[list[str] | None, typer.Option("--eval", metavar="FILE", help="held-out data")] = None,
    out: Annotated[Path | None, typer.Option(help="the file to write; default: TASK.yaml here")] = None,
) -> None:
    """Write a recipe to start from, with the columns of your data filled in."""
    from distft.commands import new as starter

    written = starter.write(task, data or [], held_out or [], out)
    print("\n".join(written.lines()))


@app.command()
def train(
    config: Annotated[
        str | None, typer.Argument(help="the recipe (YAML); not needed where the run folder has one")
    ] = None,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="run folder; default: runs/NAME")] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="ranks; default: the GPUs, else 1")] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="how often ranks that crashed or hung are started again by themselves")
    ] = 0,
    allow: Allow = None,
    prepare: Annotated[bool, typer.Option("--prepare", help="make the run folder and start nothing")] = False,
) -> None:
    """Run or continue a run here. The same command continues whatever was interrupted; a finished run is a no-op."""
    if "RANK" in os.environ or "DISTFT_FORKSERVER_FD" in os.environ:
        from distft.training import node_process

        raise typer.Exit(node_process.run(run_dir))
    from distft.launcher import Job, Mode, Resources, find_launcher
    from distft.recipe.changes import check_allowed
    from distft.recipe.load import load

    recipe = load(Path(config), overrides or []) if config is not None else None
    if recipe is None and run_dir is None:
        raise UserError("name a recipe or a run folder: distft train CONFIG, or distft train --run-dir DIR")
    folder = run_dir or Path("runs") / str(recipe.name if recipe else "")
    mode: Mode = "prepare" if prepare else "run"
    resources = Resources(nproc=nproc, max_restarts=max_restarts)
    streams.may_leave()  # the run does not end because its terminal does
    raise typer.Exit(find_launcher("local").launch(Job(folder, recipe, resources, mode, check_allowed(allow or []))))


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="the recipe (YAML)")],
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="run folder; default: runs/NAME")] = None,
    site: Annotated[str | None, typer.Option(help="site profile, name or file; default: $DISTFT_SITE")] = None,
    nodes: Nodes = None,
    nproc: RanksANode = None,
    time: TimeLimit = None,
    max_restarts: Restarts = None,
    after: Annotated[Path | None, typer.Option(help="run folder of a run that must finish first")] = None,
    allow: Allow = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the batch script and change nothing")] = False,
    check: Annotated[bool, typer.Option("--check", help="a ten-second job that looks around instead")] = False,
) -> None:
    """Send a run to SLURM. It comes back by itself after preemption, time limits and crashes."""
    from distft.launcher import Job, Mode, Resources, find_launcher
    from distft.recipe.changes import check_allowed
    from distft.recipe.load import load

    recipe = load(config, overrides or [])
    resources = Resources(nodes, nproc, time, site, max_restarts, after)
    folder = run_dir or Path("runs") / str(recipe.name)
    mode: Mode = "show" if dry_run else "check" if check else "run"
    raise typer.Exit(find_launcher("slurm").launch(Job(folder, recipe, resources, mode, check_allowed(allow or []))))


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="run folder")],
    site: Annotated[str | None, typer.Option(help="site profile; default: that of the run's last job")] = None,
    nodes: Nodes = None,
    nproc: RanksANode = None,
    time: TimeLimit = None,
    max_restarts: Restarts = None,
    allow: Allow = None,
) -> None:
    """Send a run folder to SLURM again: one that was cancelled, held, or that somebody copied here."""
    from distft.launcher import Job, Resources, find_launcher
    from distft.recipe.changes import check_allowed

    resources = Resources(nodes, nproc, time, site, max_restarts)
    raise typer.Exit(find_launcher("slurm").launch(Job(run_dir, None, resources, allow=check_allowed(allow or []))))


@app.command()
def cancel(run_dir: Annotated[Path, typer.Argument(help="run folder")]) -> None:
    """End a run that waits or runs, here or on SLURM. It can be resumed."""
    from distft.launcher import find_launcher
    from distft.run.folder import RunDir

    run = RunDir(run_dir)
    print(find_launcher(run.read().launcher).cancel(run))


@app.command()
def status(
    run_dirs: Annotated[list[Path] | None, typer.Argument(help="run folders; default: all below ./runs")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="look again every few seconds, until Ctrl-C")] = False,
) -> None:
    """State, step, loss, speed, ETA, and how each attempt ended; what SLURM says, where it is asked."""
    from distft.commands import status as report

    if watch:
        report.watch(run_dirs or [])
        return
    statuses, broken = report.of_all(run_dirs or [])
    for sentence in broken:
        print(f"distft: error: {sentence}", file=sys.stderr)
    if as_json:
        print(json.dumps(report.as_json(statuses), indent=2))
    elif statuses:
        report.show(statuses)
    elif not broken:
        print("no runs below ./runs; name a run folder")


@app.command()
def logs(
    run_dir: Annotated[Path, typer.Argument(help="run folder")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="and what is still to come")] = False,
    rank: Annotated[int, typer.Option(min=0, help="whose log")] = 0,
    attempt: Annotated[int | None, typer.Option(min=1, help="default: the newest")] = None,
) -> None:
    """What a rank said."""
    from distft.commands import logs as rank_logs
    from distft.run.folder import RunDir

    try:
        rank_logs.show(RunDir(run_dir), attempt, rank, follow)
    except KeyboardInterrupt:
        raise typer.Exit(DONE) from None


@app.command()
def ranks(run_dir: Annotated[Path, typer.Argument(help="run folder")]) -> None:
    """What AdaLoRA did: the rank of each weight as a table, and as a picture in the run folder."""
    from distft.commands import adalora_ranks as given_out
    from distft.run.folder import RunDir

    run = RunDir(run_dir)
    found = given_out.of(run)
    given_out.show(found)
    print(f"picture: {given_out.draw(run, found)}")


@app.command(name="verify-resume")
def verify_resume(
    config: Annotated[Path, typer.Argument(help="the recipe (YAML)")],
    overrides: Overrides = None,
    kills: Annotated[int, typer.Option(min=1, max=20, help="how often the second run is killed")] = 2,
    steps: Annotated[int, typer.Option(min=2, max=1000, help="steps of each run")] = 24,
    nproc: Annotated[int | None, typer.Option(min=1, help="ranks; default: the GPUs, else 1")] = None,
) -> None:
    """Run a recipe shortly here, without kills and with some, and compare everything bit for bit."""
    from distft.recipe.load import load

    if kills >= steps:
        raise UserError(f"--kills {kills} needs more steps than {steps}: each kill is after another step")
    recipe = load(config, overrides or [])
    from distft.commands import verify_resume

    ranks = ("--nproc", str(nproc)) if nproc is not None else ()
    raise typer.Exit(verify_resume.verify(config, overrides or [], recipe, verify_resume.Trial(ranks, steps, kills)))


@app.command()
def sync(
    run_dir: Annotated[Path, typer.Argument(help="run folder")],
    offline: Annotated[bool, typer.Option("--offline", help="write a folder for `wandb sync` instead")] = False,
) -> None:
    """Send the local record to W&B as one run without gaps, from a machine with internet; safe to repeat."""
    from distft.commands import sync as syncing
    from distft.run.folder import RunDir

    print(syncing.sync(RunDir(run_dir), offline))


@app.command()
def predict(
    run_dir: Annotated[Path, typer.Argument(help="run folder")],
    prompt: Annotated[str | None, typer.Option(help="one text")] = None,
    source: Annotated[Path | None, typer.Option("--input", help="records, or .txt with one text a line")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON lines, one a record")] = None,
    task: Annotated[str | None, typer.Option(help="which of several tasks")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="longest answer")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token")] = 0.0,
    base_only: Annotated[bool, typer.Option("--base-only", help="the base model, as before the run")] = False,
    nproc: Annotated[int, typer.Option(min=1, help="ranks on this machine")] = 1,
) -> None:
    """Predict with the base model and what the run has trained so far. The same command goes on after a kill."""
    if (prompt is None) == (source is None) or (source is None) != (output is None):
        raise UserError("give either --prompt TEXT, or --input FILE and --output FILE")
    from distft.inference import passes
    from distft.tasks.shared.generation import Decoding

    decoding = Decoding(max_tokens=max_tokens, temperature=temperature)
    if prompt is not None:
        print(passes.predict_one(run_dir, prompt, task, decoding, base_only))
    elif source is not None and output is not None:
        lines = passes.predict_file(run_dir, source, output, task, decoding, base_only, nproc)
        if lines is not None:
            print(f"{lines} predictions in {output}")


@app.command(name="eval")
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="run folder")],
    data: Annotated[Path | None, typer.Option(help="records with what is right; default: the held-out data")] = None,
    task: Annotated[str | None, typer.Option(help="which of several tasks; default: all")] = None,
    nproc: Annotated[int, typer.Option(min=1, help="ranks on this machine")] = 1,
) -> None:
    """Score the run's model: a table here, JSON and pictures in the run folder."""
    from distft.inference import passes
    from distft.metrics import report

    done = passes.evaluate(run_dir, data, task, nproc)
    if done is not None:
        found, files = done
        report.show(data.name if data else "held-out data", found)
        print("\n".join(f"written: {file}" for file in files))


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="run folder")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    merged: Annotated[bool, typer.Option("--merged", help="base and adapter as one model")] = False,
) -> None:
    """Write the adapter (for PEFT) or the model (for transformers) of the newest checkpoint."""
    from distft.model import export as exporter
    from distft.model.context import RunContext
    from distft.recipe.load import load_resolved
    from distft.run.folder import RunDir

    run = RunDir(run_dir)
    run.read()
    exporter.check_target(out)
    exporter.write(RunContext(run, load_resolved(run.config)), out, merged)
    print(f"written: {out}")


@app.command()
def config(
    config: Annotated[Path | None, typer.Argument(help="the recipe (YAML)")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="the JSON schema of recipes, for editors")] = False,
) -> None:
    """Print the resolved recipe, every key with its value."""
    from distft.recipe.load import dump, json_schema, load

    if schema:
        print(json.dumps(json_schema(), indent=2))
    elif config is None:
        raise UserError("name a recipe, or ask for --schema")
    else:
        print(dump(load(config, overrides or [])), end="")


def main() -> NoReturn:
    """Run a command; turn what went wrong into one sentence and an exit code."""
    os.umask(0o077)
    warnings.simplefilter("ignore", FutureWarning)  # what libraries tell each other is of no use to a user
    code = outcome(app)
    if "RANK" in os.environ:
        lifetime.leave(code)
    sys.exit(code)
