"""`distft predict` and `distft eval`: one pass over records by any number of ranks, resumable.

The ranks share a folder and nothing else, unless several of them hold one model together (`groups`). Of W ranks or
groups of ranks, number r does the parts r, r + W, ... that nobody has done yet.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distft.checkpoint.best import choose_checkpoint
from distft.checkpoint.state import Stored
from distft.data import sources
from distft.data.bad_records import FILE, Bad, check, listing
from distft.data.records import Record
from distft.errors import RunFailed, UserError
from distft.inference.groups import check as check_groups
from distft.inference.groups import joined
from distft.inference.inputs import check_decoding, check_output, checked_part, column_of, part_of, source_like
from distft.inference.parts import BAD, LEFT_OUT, Pass, begin, do_parts, has_begun
from distft.inference.size import needed
from distft.inference.workers import CHECKPOINT, STARTED_HERE, alone_in, rank_and_world, start_workers, wait_for
from distft.metrics import report
from distft.metrics.scores import Report, merged
from distft.process.console import Console
from distft.process.devices import gpus
from distft.process.environment import SHARDS
from distft.process.lifetime import die_with_parent
from distft.recipe.schema import Recipe
from distft.run.commits import recipe_of
from distft.run.files import complete_file
from distft.run.folder import RunDir
from distft.tasks.shared.generation import Decoding


def carry_out(work: Pass, nproc: int | None, console: Console, shards: int | None = None) -> int | None:
    """The whole pass. Returns the number of parts; None on a rank that is not to put them together.

    Args:
        nproc: ranks on this machine; None: one per GPU, as in training.
        shards: how many ranks hold one model together; None: as many as it takes to fit in memory.
    """
    among = rank_and_world()
    if among is not None:
        die_with_parent()
        return as_one_of_several(work, *among, int(os.environ.get(SHARDS, shards or 1)), console)
    ranks = nproc or max(gpus() or 1, shards or 1)
    size = needed(work, ranks, console) if shards is None else shards
    check_groups(size, ranks)
    begin(work)
    if ranks > 1:
        start_workers(ranks, work.part, work.stored.folder if work.stored is not None else None, size)
    return do_parts(work, console)


def as_one_of_several(work: Pass, rank: int, world: int, shards: int, console: Console) -> int | None:
    """A rank's share. Rank 0 of those that nobody looks after sees to it that all is done, if need be by itself.

    Raises:
        RunFailed: another rank of the same model has ended, or not all is done and the model is too large for one.
    """
    if rank == 0:
        begin(work)
    elif not wait_for(lambda: has_begun(work)):
        return None  # rank 0 has put everything together long ago
    groups = world // shards
    with joined(rank, world, shards) as group:
        count = do_parts(work, console, lambda number: number % groups == rank // shards, group)
    if rank > 0 or STARTED_HERE in os.environ:
        return None
    console.say(f"rank 0 of {world} has done its share and waits for the others")
    if not wait_for(lambda: all(work.file(number).exists() for number in range(count))) and shards > 1:
        raise RunFailed("other ranks have not done their share; run the same command again, which goes on")
    return do_parts(work, console)


def predict_file(
    run_dir: Path,
    source: Path,
    out: Path,
    part: str | None,
    decoding: Decoding,
    base_only: bool,
    nproc: int | None,
    shards: int | None,
) -> int | None:
    """Predict every record of `source` into `out`, a JSON object a line. Returns how many; None on other ranks."""
    run = RunDir(run_dir)
    run.read()
    recipe = recipe_of(run)
    checked_part(recipe, part)
    check_decoding(recipe, decoding)
    check_output(source, out)
    folder = out.with_name(f".{out.name}.parts")
    like = source_like(run, recipe, source, part, answered=False)
    stored = None if base_only else checkpoint_of(run, recipe)
    work = Pass(run, recipe, [like], folder, False, stored, part, decoding)
    with alone_in(folder), while_it_trains(run):
        count = carry_out(work, nproc, Console(rank_and_world() in (None, (0, 1))), shards)
        if count is None:
            return None
        lines = put_together(work, count, out)
        shutil.rmtree(folder)
    return lines


def put_together(work: Pass, count: int, out: Path) -> int:
    """All parts as one file. Returns the number of its lines."""
    lines = 0
    with complete_file(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for number in range(count):
            text = work.file(number).read_text(encoding="utf-8")
            lines += text.count("\n")
            file.write(text)
    return lines


def checkpoint_of(run: RunDir, recipe: Recipe) -> Stored:
    """The one to predict with; of ranks that were started here the one that their parent has chosen."""
    named = os.environ.get(CHECKPOINT)
    return Stored(Path(named)) if named else choose_checkpoint(run, recipe)


@contextmanager
def while_it_trains(run: RunDir) -> Iterator[None]:
    """A run that is still training removes old checkpoints. Raises UserError where that was the one in use."""
    try:
        yield
    except FileNotFoundError as error:
        if str(run.checkpoints) not in str(error):
            raise
        raise UserError(f"{run.path} is still training and has removed the checkpoint in use; run this again") from None


def predict_one(run_dir: Path, text: str, part: str | None, decoding: Decoding, base_only: bool) -> str:
    """The answer to one text; of a task that does not write texts all that is known, as JSON."""
    from distft.inference.predictor import Predictor

    run = RunDir(run_dir)
    run.read()
    check_decoding(recipe_of(run), decoding)
    with while_it_trains(run):
        stored = None if base_only else checkpoint_of(run, recipe_of(run))
        predictor = Predictor(run_dir, stored, part, decoding)
    record = Record("--prompt", {column_of(predictor.recipe, part): text})
    [outcome] = predictor.outcomes([record], answered=False)
    if not isinstance(outcome, dict):
        raise UserError(str(outcome))
    if "error" in outcome:
        raise UserError(str(outcome["error"]))
    answer = predictor.answer(outcome)
    return str(answer["answer"]) if set(answer) == {"answer"} else json.dumps(answer, ensure_ascii=False)


def evaluate_run(
    run_dir: Path, data: Path | None, part: str | None, nproc: int | None, shards: int | None
) -> tuple[Report, list[Path]] | None:
    """Scores of a run on `data`, or on its held-out data, and the files in which they are; None on other ranks.

    Raises:
        UserError: there are no held-out data, or a record does not fit the task.
    """
    run = RunDir(run_dir)
    run.read()
    recipe = recipe_of(run)
    parts = [one.name for one in recipe.parts()] if part is None else [part]
    for one in parts:
        checked_part(recipe, one)
    if data is None and not any(part_of(recipe, one).eval for one in parts):
        raise UserError("this run has no held-out data; give a file (--data)")
    if data is not None and len(parts) > 1:
        raise UserError("--data: this run has several tasks; choose one (--task)")
    stored, reports = checkpoint_of(run, recipe), dict[str, Report]()
    about = data.stem if data is not None else "eval"
    about = f"{about}-data" if data is not None and about == "eval" else about  # the held-out data have that name
    for one in parts:
        held_out = sources.sources_of(part_of(recipe, one), "eval")
        read = [source_like(run, recipe, data, one, answered=True)] if data else held_out
        if not read:
            continue
        folder = run.evaluations / f".{'-'.join(filter(None, [about, one]))}.parts"
        work = Pass(run, recipe, read, folder, True, stored, one, held_out=data is None)
        with alone_in(folder), while_it_trains(run):
            count = carry_out(work, nproc, Console(rank_and_world() in (None, (0, 1))), shards)
            if count is None:
                continue
            reports[one or ""] = score(work, count, run.evaluations / f"{'-'.join(filter(None, [about, one]))}.{FILE}")
            shutil.rmtree(folder)
    if not reports:
        return None
    alone = next(iter(reports.values())) if len(parts) == 1 else None
    name = "-".join(filter(None, [about, part]))
    found = merged(reports) if alone is None else alone
    return found, report.write(run.evaluations, name, found)


def score(work: Pass, count: int, path: Path) -> Report:
    """The report on all parts. `path`: of the list of bad records, if there are any.

    Raises:
        UserError: nothing can be scored, or too many records are bad.
    """
    from distft.inference.predictor import reporter

    texts = (work.file(number).read_text(encoding="utf-8") for number in range(count))
    # not splitlines(), which takes for an end of line what a text may hold (U+2028)
    outcomes = [json.loads(line) for text in texts for line in text.split("\n") if line]
    left_out = [outcome[LEFT_OUT] for outcome in outcomes if LEFT_OUT in outcome]
    bad, records = [Bad(**outcome[BAD]) for outcome in outcomes if BAD in outcome], len(outcomes)
    with listing(path, f"eval of {work.part}" if work.part else "eval", work.source) as listed:
        check(work.source, bad, records)
        listed += bad
    outcomes = [outcome for outcome in outcomes if LEFT_OUT not in outcome and BAD not in outcome]
    if bad:
        print(f"{len(bad):,} of {records:,} records left out, see {path}")
    if not outcomes:
        raise UserError(left_out[0] if left_out else f"{work.source.name} has no records")
    if left_out:
        print(f"{len(left_out)} of {len(left_out) + len(outcomes)} records were not scored; the first: {left_out[0]}")
    return reporter(work.run, work.recipe, work.part)(outcomes)
