"""One pass of a trained run over records, by any number of ranks: `distft predict` and `distft eval`.

The ranks share a folder and nothing else. Records are cut into parts of a fixed size; rank r does the parts r,
r + world, ... that nobody has done yet, each a file that exists when it is whole. So a pass that was killed goes on
where it was, with as many ranks as there are then, and what comes out does not depend on their number.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from distft import feed, report
from distft.asked import check_decoding, column_of, source_like
from distft.checkpoint import store
from distft.config import Recipe
from distft.console import Console
from distft.data import sources
from distft.data.sources import Source
from distft.data.types import Broken, Record
from distft.errors import UserError
from distft.export import chosen
from distft.metrics import Report, merged
from distft.process import die_with_parent
from distft.recipe import load_resolved
from distft.rundir import RunDir, write_atomically
from distft.tasks.generate import Decoding
from distft.tasks.kinds import kind_of

PART = 256  # records
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 300.0  # with ranks that something else starts, and that may come late or never
STARTED_HERE = "DISTFT_PASS"  # in the environment of ranks whose parent puts the parts together
LEFT_OUT = "left out"  # key of a record that the task makes nothing of, as in training
_ABOUT = "pass.json"


@dataclass(frozen=True)
class Pass:
    """What is predicted with what.

    Attributes:
        answered: the records hold what is right (evaluation).
        folder: of the parts.
    """

    run: RunDir
    recipe: Recipe
    source: Source
    folder: Path
    answered: bool
    part: str | None = None
    base_only: bool = False
    decoding: Decoding = field(default_factory=Decoding)

    @cached_property
    def about(self) -> str:
        """What parts of another pass would differ in, as JSON."""
        stored = chosen(self.run, self.recipe)
        parts: dict[str, Any] = {
            "source": sources.fingerprint(self.source),
            "checkpoint": [str(stored.folder), (stored.folder / store.MANIFEST).read_text(encoding="utf-8")],
            "decoding": asdict(self.decoding),
            "options": [self.part, self.base_only, self.answered, PART, self.recipe.train.micro_batch],
        }
        return json.dumps(parts, sort_keys=True)

    def records(self) -> Iterator[Record | Broken]:
        return sources.read(self.source) if self.answered else sources.read_leniently(self.source)

    def file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"


def rank_and_world() -> tuple[int, int] | None:
    """Of a process that somebody else starts several times; None for one that is alone, or starts the others."""
    if "RANK" not in os.environ:
        return None
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        raise UserError("RANK is set, so WORLD_SIZE must be a number too") from None


def begin(work: Pass) -> None:
    """Make the folder of the parts; parts of another pass are removed."""
    if not has_begun(work):
        shutil.rmtree(work.folder, ignore_errors=True)
        work.folder.mkdir(parents=True)
        write_atomically(work.folder / _ABOUT, work.about)


def has_begun(work: Pass) -> bool:
    """Whether the folder is there, and of this pass."""
    try:
        return (work.folder / _ABOUT).read_text(encoding="utf-8") == work.about
    except OSError:
        return False


def do_parts(work: Pass, console: Console, mine: Callable[[int], bool] = lambda number: True) -> int:
    """The parts that are mine and not done yet. Returns the number of all parts."""
    from distft.predictor import Predictor

    predictor = None
    count = 0
    records = work.records()
    with console.bar("records", total=None) as bar:
        while batch := list(itertools.islice(records, PART)):
            number, count = count, count + 1
            if not mine(number) or work.file(number).exists():
                continue
            predictor = predictor or Predictor(work.run.path, work.part, work.decoding, work.base_only)
            outcomes = predictor.outcomes(batch, work.answered)
            if work.answered:
                outcomes = [{LEFT_OUT: one} if isinstance(one, str) else one for one in outcomes]
            else:
                outcomes = [{"error": one} if isinstance(one, str) else predictor.answer(one) for one in outcomes]
            lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in outcomes]
            write_atomically(work.file(number), "".join(lines))
            bar.at(number * PART + len(batch), "")
    return count


def carry_out(work: Pass, nproc: int, console: Console) -> int | None:
    """The whole pass. Returns the number of parts; None on a rank that is not to put them together."""
    among = rank_and_world()
    if among is not None:
        die_with_parent()
        return as_one_of_several(work, *among, console)
    begin(work)
    if nproc > 1:
        start_ranks(nproc, work.part)
        return sum(1 for _ in work.folder.glob("*.jsonl"))
    return do_parts(work, console)


def as_one_of_several(work: Pass, rank: int, world: int, console: Console) -> int | None:
    """A rank's share. Rank 0 of those that nobody looks after sees to it that all is done, if need be by itself."""
    if rank == 0:
        begin(work)
    elif not wait_for(lambda: has_begun(work)):
        return None  # rank 0 has put everything together long ago
    count = do_parts(work, console, lambda number: number % world == rank)
    if rank > 0 or STARTED_HERE in os.environ:
        return None
    wait_for(lambda: all(work.file(number).exists() for number in range(count)))
    return do_parts(work, console)


def start_ranks(nproc: int, part: str | None) -> None:
    """This very command, several times; of several tasks for `part` alone."""
    threads = max(1, (os.cpu_count() or 1) // nproc)
    common = {**os.environ, "WORLD_SIZE": str(nproc), "DISTFT_PARENT": str(os.getpid()), STARTED_HERE: "1"}
    common.setdefault("OMP_NUM_THREADS", str(threads))
    command = [sys.executable, "-m", "distft", *sys.argv[1:], *(["--task", part] if part else [])]
    ranks = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(nproc)
    ]
    try:
        while any(rank.poll() is None for rank in ranks):
            if bad := [rank.returncode for rank in ranks if rank.poll() not in (None, 0)]:
                raise SystemExit(bad[0])  # it has said why
            time.sleep(POLL_SECONDS)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    if bad := [rank.returncode for rank in ranks if rank.returncode]:
        raise SystemExit(bad[0])


def wait_for(happened: Callable[[], bool]) -> bool:
    """Whether it has, before patience is at its end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def check_part(recipe: Recipe, part: str | None) -> None:
    """Raises UserError where a task must be named and is not, or the reverse."""
    from distft.predictor import checked_part

    checked_part(kind_of(recipe), part)


def predict_file(
    run_dir: Path, source: Path, out: Path, part: str | None, decoding: Decoding, base_only: bool, nproc: int
) -> int | None:
    """Predict every record of `source` into `out`, a JSON object a line. Returns how many; None on other ranks."""
    run = RunDir(run_dir)
    run.read()
    recipe = load_resolved(run.config)
    check_part(recipe, part)
    check_decoding(recipe, decoding)
    folder = out.with_name(f".{out.name}.parts")
    like = source_like(run, recipe, source, part, answered=False)
    work = Pass(run, recipe, like, folder, False, part, base_only, decoding)
    count = carry_out(work, nproc, Console(rank_and_world() in (None, (0, 1))))
    if count is None:
        return None
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    lines = 0
    with open(temporary, "w", encoding="utf-8") as file:
        for number in range(count):
            text = work.file(number).read_text(encoding="utf-8")
            lines += text.count("\n")
            file.write(text)
    os.replace(temporary, out)
    shutil.rmtree(folder)
    return lines


def predict_one(run_dir: Path, text: str, part: str | None, decoding: Decoding, base_only: bool) -> str:
    """The answer to one text; of a task that does not write texts all that is known, as JSON."""
    from distft.predictor import Predictor

    check_decoding(load_resolved(RunDir(run_dir).config), decoding)
    predictor = Predictor(run_dir, part, decoding, base_only)
    record = Record("--prompt", {column_of(predictor.recipe, part): text})
    [outcome] = predictor.outcomes([record], answered=False)
    if isinstance(outcome, str):
        raise UserError(outcome)
    if "error" in outcome:
        raise UserError(str(outcome["error"]))
    answer = predictor.answer(outcome)
    return str(answer["answer"]) if set(answer) == {"answer"} else json.dumps(answer, ensure_ascii=False)


def evaluate(run_dir: Path, data: Path | None, part: str | None, nproc: int) -> tuple[Report, list[Path]] | None:
    """Scores of a run on `data`, or on its held-out data, and the files in which they are; None on other ranks.

    Raises:
        UserError: there are no held-out data, or a record does not fit the task.
    """
    run = RunDir(run_dir)
    run.read()
    recipe = load_resolved(run.config)
    parts = feed.parts_of(recipe) if part is None else [part]
    if data is None and all(feed.source_of(recipe, "eval", one) is None for one in parts):
        raise UserError("this run has no held-out data; name a file (--data)")
    if data is not None and len(parts) > 1:
        raise UserError("--data: this run has several tasks; name the one that is meant (--task)")
    reports: dict[str, Report] = {}
    for one in parts:
        check_part(recipe, one)
        source = source_like(run, recipe, data, one, answered=True) if data else feed.source_of(recipe, "eval", one)
        if source is None:
            continue
        name = f"{data.stem if data else 'eval'}{f'-{one}' if one else ''}"
        work = Pass(run, recipe, source, run.evaluations / f".{name}.parts", True, one)
        count = carry_out(work, nproc, Console(rank_and_world() in (None, (0, 1))))
        if count is None:
            continue
        reports[one or ""] = score(work, count)
        shutil.rmtree(work.folder)
    if not reports:
        return None
    alone = next(iter(reports.values())) if len(parts) == 1 else None
    name = "-".join(filter(None, [data.stem if data else "eval", part]))
    found = merged(reports) if alone is None else alone
    return found, report.write(run.evaluations, name, found)


def score(work: Pass, count: int) -> Report:
    from distft.predictor import reporter

    texts = (work.file(number).read_text(encoding="utf-8") for number in range(count))
    # not splitlines(), which takes for an end of line what a text may hold (U+2028)
    outcomes = [json.loads(line) for text in texts for line in text.split("\n") if line]
    left_out = [outcome[LEFT_OUT] for outcome in outcomes if LEFT_OUT in outcome]
    outcomes = [outcome for outcome in outcomes if LEFT_OUT not in outcome]
    if not outcomes:
        raise UserError(left_out[0] if left_out else f"{work.source.name} holds no record")
    if left_out:
        print(f"{len(left_out)} of {len(left_out) + len(outcomes)} records are not scored: {left_out[0]}")
    return reporter(work.run, work.recipe, work.part)(outcomes)
