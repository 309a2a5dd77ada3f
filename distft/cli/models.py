"""Commands that use a trained run: predict, eval, export (lazy imports)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distft.cli.app import RunFolder, app
from distft.errors import UserError

Ranks = Annotated[
    int | None, typer.Option(min=1, help="number of ranks on this machine; default: the number of GPUs, or 1")
]
Shards = Annotated[
    int | None,
    typer.Option(
        min=1, help="ranks that hold one model together; default: 1, or as many as it takes to fit in their memory"
    ),
]


@app.command()
def predict(
    run_dir: RunFolder,
    prompt: Annotated[str | None, typer.Option(help="a single text")] = None,
    source: Annotated[Path | None, typer.Option("--input", help="records, or .txt with one text per line")] = None,
    output: Annotated[Path | None, typer.Option(help="file to write: one line of JSON per record")] = None,
    task: Annotated[str | None, typer.Option(help="name of the task, if the run has several")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="maximum length of an answer, in tokens")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="of sampling; 0: always the most likely token")] = 0.0,
    base_only: Annotated[bool, typer.Option("--base-only", help="use the base model as before training")] = False,
    nproc: Ranks = None,
    shards: Shards = None,
) -> None:
    """Predict with a trained run.

    Uses the best or newest checkpoint. After a kill, the same command continues.
    """
    if (prompt is None) == (source is None) or (source is None) != (output is None):
        raise UserError("give either --prompt TEXT, or --input FILE and --output FILE")
    if prompt is not None and shards is not None:
        raise UserError("--shards: give --input FILE and --output FILE; --prompt is answered by one process")
    from distft.inference import passes
    from distft.tasks.shared.generation import Decoding

    decoding = Decoding(max_tokens=max_tokens, temperature=temperature)
    if prompt is not None:
        print(passes.predict_one(run_dir, prompt, task, decoding, base_only))
    elif source is not None and output is not None:
        lines = passes.predict_file(run_dir, source, output, task, decoding, base_only, nproc, shards)
        if lines is not None:
            print(f"{lines} predictions in {output}")


@app.command(name="eval")
def evaluate(
    run_dir: RunFolder,
    data: Annotated[Path | None, typer.Option(help="file of labelled records; default: the held-out data")] = None,
    task: Annotated[str | None, typer.Option(help="name of the task, if the run has several; default: all")] = None,
    nproc: Ranks = None,
    shards: Shards = None,
) -> None:
    """Evaluate a trained run.

    Prints a table; writes JSON and pictures into the run folder.
    """
    from distft.inference import passes
    from distft.metrics import report

    done = passes.evaluate_run(run_dir, data, task, nproc, shards)
    if done is not None:
        found, files = done
        report.show(data.name if data else "held-out data", found)
        print("\n".join(f"written: {file}" for file in files))


@app.command()
def export(
    run_dir: RunFolder,
    out: Annotated[Path, typer.Argument(help="folder to create")],
    merged: Annotated[bool, typer.Option("--merged", help="merge the adapter into the base model")] = False,
    nproc: Ranks = None,
) -> None:
    """Write the trained adapter or model.

    In the format of PEFT or transformers, from the best or newest checkpoint. Uses no GPU.
    After a kill, the same command continues.
    """
    from distft.inference.workers import alone_in
    from distft.model import export as exporter
    from distft.model.context import RunContext
    from distft.process.devices import gpus
    from distft.run.commits import recipe_of
    from distft.run.folder import RunDir

    run = RunDir(run_dir)
    run.read()
    exporter.check_target(out)
    with alone_in(out.resolve().with_name(f".{out.resolve().name}.export")):
        exporter.write(RunContext(run, recipe_of(run)), out, merged, ranks=nproc or gpus() or 1)
    print(f"written: {out}")
