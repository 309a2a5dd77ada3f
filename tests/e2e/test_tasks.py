"""Every task by its recipe in configs/, made tiny: trained, scored, used for predictions, loaded without distft."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from distft.inference import workers
from tests.e2e.command import Ended, Workplace, records, until
from tests.e2e.conftest import Made
from tests.e2e.models import here
from tests.e2e.trials import CONFIGS, ENCODER, SAMPLE, SHORT, SOUNDS, TEXTS, TRIALS, Trial

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own

Trained = Callable[[str], Made]
Here = Callable[..., Ended]


@pytest.fixture(scope="module")
def trained(place: Workplace) -> Trained:
    """Runs by the names of trials, each made when it is first asked for."""

    @cache
    def made(name: str) -> Made:
        trial, run = TRIALS[name], place.folder / f"task-{name.replace(' ', '-')}"
        recipe = CONFIGS / f"{trial.recipe}.yaml"
        ended = place.run("train", recipe, *SHORT, *trial.overrides, "--run-dir", run)
        assert ended.code == 0, ended.err
        return Made(place, run, ended)

    return made


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    return lambda *args: here(monkeypatch, capfd, *args)


def write(path: Path, rows: Sequence[Any]) -> Path:
    """JSON lines; what is a text already is written as it is."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- every task -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRIALS)
def test_recipe(trained: Trained, command: Here, tmp_path: Path, name: str) -> None:
    trial, made = TRIALS[name], trained(name)
    assert [line.split(":")[0] for line in made.ended.err.splitlines() if ": held-out loss" in line] == [
        "step 0",
        "step 3",
        "step 6",
    ]
    scored = command("eval", made.run)
    assert scored.code == 0, scored.err
    report = json.loads((made.run / "evaluations" / "eval.json").read_text())
    assert trial.scores == report["scores"].keys()
    assert all(math.isfinite(score) for score in report["scores"].values())
    assert report["scores"] == pytest.approx(in_the_run(made.run, report["scores"]), abs=1e-4)
    assert f"written: {made.run / 'evaluations' / 'eval.json'}" in scored.out

    broken = '{"text": "half a rec'
    source = write(tmp_path / "asked.jsonl", [*trial.asked[:2], broken, *trial.asked[2:]])
    out = tmp_path / "told.jsonl"
    ended = command("predict", made.run, "--input", source, "--output", out, *trial.options)
    assert ended.code == 0, ended.err
    assert f"4 predictions in {out}" in ended.out
    told = read(out)
    assert told[2].keys() == {"error"}
    assert told[2]["error"].startswith(f"{source}:3 is not valid JSON")
    assert [one.keys() for one in (told[0], told[1], told[3])] == [trial.keys] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked.jsonl", "told.jsonl"]

    loaded_by_transformers(made.run / "final" / trial.exported, trial)


QUICK = ("token-classification", "dpo")  # with a CRF; by gathering and by tensor parallelism


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.long) for n in TRIALS])
def test_two_ranks_that_hold_the_model_together_tell_the_same(
    trained: Trained, command: Here, tmp_path: Path, name: str
) -> None:
    trial, run = TRIALS[name], trained(name).run
    source, told, scores = write(tmp_path / "asked.jsonl", trial.asked), [], []
    for number, options in enumerate(((), ("--nproc", "2", "--shards", "2"))):
        out = tmp_path / f"{number}.jsonl"
        ended = command("predict", run, "--input", source, "--output", out, *trial.options, *options)
        assert ended.code == 0, ended.err
        assert ("2 ranks hold the model together" in ended.err) == bool(options)
        told.append(read(out))
        assert command("eval", run, *options).code == 0
        scores.append(json.loads((run / "evaluations" / "eval.json").read_text())["scores"])
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    for alone, together in zip(*told, strict=True):
        assert together.keys() == alone.keys()
        for key, value in alone.items():
            assert together[key] == (pytest.approx(value, abs=1e-5) if numbers_in(value) else value), key


def numbers_in(value: Any) -> bool:
    """Whether it is a number, or a table of numbers."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(isinstance(one, float) for one in inner)


def test_a_rank_of_several_that_hold_a_model_dies_and_the_same_command_goes_on(
    trained: Trained, command: Here, tmp_path: Path
) -> None:
    made = trained("sequence-classification")
    source = write(
        tmp_path / "in.jsonl", [{"text": f"The brakes of bike {number} are quiet."} for number in range(4000)]
    )
    out, expected = tmp_path / "out.jsonl", tmp_path / "expected.jsonl"
    again = ("predict", made.run, "--input", source, "--output", out, "--nproc", "2", "--shards", "2")
    parts = tmp_path / ".out.jsonl.parts"
    with made.place.start(*again) as first:
        until(lambda: len(list(parts.glob("*.jsonl"))) >= 2, "two parts")
        ranks = psutil.Process(first.pid).children()
        ranks[1].kill()
        ended = first.end()
    assert ended.code == 1
    assert ended.sentence.startswith("rank 1 was killed (SIGKILL")
    assert not any(rank.is_running() for rank in ranks)
    done = sorted(parts.glob("*.jsonl"))
    assert 2 <= len(done) < 16
    mark_first_line(done[0])  # what is done is not done again
    ended = made.place.run(*again)
    assert ended.code == 0, ended.err
    assert command("predict", made.run, "--input", source, "--output", expected).code == 0
    assert [one.get("label") for one in read(out)] == [None, *(one["label"] for one in read(expected)[1:])]


def test_groups_must_come_out_even(trained: Trained, command: Here) -> None:
    ended = command("eval", trained("sequence-classification").run, "--nproc", "3", "--shards", "2")
    assert (ended.code, ended.sentence) == (2, "--shards 2: 3 ranks do not make groups of 2; give another --nproc")


def in_the_run(run: Path, names: Iterable[str]) -> dict[str, float]:
    """The same scores as they were in training, after the step that was exported."""
    step = json.loads((run / "final" / "distft.json").read_text())["step"]
    [found] = [one for one in records(run) if one["step"] == step and "eval_loss" in one]
    return {name: found[f"eval_{name}"] for name in names}


def loaded_by_transformers(folder: Path, trial: Trial) -> None:
    import transformers

    auto = getattr(transformers, trial.auto)
    _, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not [key for key in info["unexpected_keys"] if not key.startswith("crf.")]
    heard = trial.auto in ("AutoModelForCTC", "AutoModelForSpeechSeq2Seq")
    (transformers.AutoProcessor if heard else transformers.AutoTokenizer).from_pretrained(folder)


def test_transformers_predicts_the_same(trained: Trained, command: Here, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = trained("sequence-classification").run
    source, out = write(tmp_path / "in.jsonl", TEXTS), tmp_path / "out.jsonl"
    assert command("predict", run, "--input", source, "--output", out).code == 0
    model = AutoModelForSequenceClassification.from_pretrained(run / "final").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    for record, told in zip(TEXTS, read(out), strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(record["text"], return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert list(told["scores"]) == ["negative", "positive"]
        assert list(told["scores"].values()) == pytest.approx(expected, abs=1e-5)
        assert told["label"] == model.config.id2label[int(expected[1] > expected[0])]
    ended = command("predict", run, "--prompt", TEXTS[0]["text"])
    assert json.loads(ended.out)["scores"] == pytest.approx(read(out)[0]["scores"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("sequence-classification", ["It came late.", "", "Great."]),
        ("seq2seq-lm", ["The lamp is new.", "Where is the lock?"]),
        ("ctc", [record["audio"] for record in SOUNDS[:2]]),
    ],
)
def test_a_text_line_by_line(trained: Trained, command: Here, tmp_path: Path, name: str, lines: list[str]) -> None:
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in lines))
    out = tmp_path / "out.jsonl"
    ended = command("predict", trained(name).run, "--input", tmp_path / "in.txt", "--output", out)
    assert ended.code == 0, ended.err
    assert [one.keys() for one in read(out)] == [TRIALS[name].keys] * len(lines)


def test_the_best_checkpoint_is_exported(trained: Trained) -> None:
    run = trained("numbers").run
    scores = {one["step"]: one["eval_pearson"] for one in records(run) if one["step"] and "eval_pearson" in one}
    assert sorted(scores) == [3, 6]
    assert json.loads((run / "final" / "distft.json").read_text())["step"] == max(scores, key=lambda step: scores[step])


# --- several ranks ----------------------------------------------------------------------------------------------------


def test_eval_with_any_number_of_ranks(trained: Trained, tmp_path: Path) -> None:
    made = trained("sequence-classification")
    lines = (SAMPLE / "reviews-heldout.tsv").read_text().splitlines(keepends=True)
    few = tmp_path / "few.tsv"
    few.write_text("".join(lines[:5]))
    reports = []
    for nproc in (1, 2, 4):
        ended = made.place.run("eval", made.run, "--data", few, "--nproc", str(nproc))
        assert ended.code == 0, ended.err
        reports.append((made.run / "evaluations" / "few.json").read_bytes())
    assert reports[0] == reports[1] == reports[2]
    assert sum(sum(row) for row in json.loads(reports[0])["confusion"]["counts"]) == 5


def test_eval_of_several_tasks_with_two_ranks(trained: Trained, command: Here) -> None:
    made = trained("multi-task")
    report, parts = made.run / "evaluations" / "eval.json", {"entities", "sentiment"}
    assert command("eval", made.run).code == 0
    alone = report.read_bytes()
    ended = made.place.run("eval", made.run, "--nproc", "2")
    assert ended.code == 0, ended.err
    assert report.read_bytes() == alone
    assert json.loads(alone)["parts"].keys() == parts
    assert not [path for path in report.parent.iterdir() if path.is_dir()]  # parts of a pass
    for part in parts:
        assert command("eval", made.run, "--task", part).code == 0


def test_predict_goes_on_after_a_kill(trained: Trained, command: Here, tmp_path: Path) -> None:
    made = trained("sequence-classification")
    (tmp_path / "in.txt").write_text("".join(f"word{number}\n" for number in range(5000)))  # 20 parts
    undisturbed, out = tmp_path / "undisturbed.jsonl", tmp_path / "out.jsonl"
    ended = command("predict", made.run, "--input", tmp_path / "in.txt", "--output", undisturbed)
    assert ended.code == 0, ended.err
    again = ("predict", made.run, "--input", tmp_path / "in.txt", "--output", out, "--nproc", "2")
    parts = tmp_path / ".out.jsonl.parts"
    with made.place.start(*again) as first:
        until(lambda: len(list(parts.glob("*.jsonl"))) >= 2, "two parts")
        ranks = psutil.Process(first.pid).children()
        first.send(signal.SIGKILL)
        assert first.end().code == -signal.SIGKILL
    psutil.wait_procs(ranks, timeout=10.0)
    assert not any(rank.is_running() for rank in ranks)
    done = sorted(parts.glob("*.jsonl"))
    assert 2 <= len(done) < 20
    assert not out.exists()
    mark_first_line(done[0])  # what is done is not done again
    ended = made.place.run(*again)
    assert ended.code == 0, ended.err
    index = int(done[0].stem) * 256
    expected = undisturbed.read_text().splitlines()
    assert out.read_text().splitlines() == [*expected[:index], "{}", *expected[index + 1 :]]
    assert not parts.exists()


def test_a_second_command_at_the_same_output_is_refused(trained: Trained, command: Here, tmp_path: Path) -> None:
    made = trained("sequence-classification")
    (tmp_path / "in.txt").write_text("It came late.\n")
    arguments = ("predict", made.run, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl")
    with workers.alone_in(tmp_path / ".out.jsonl.parts"):
        ended = made.place.run(*arguments)
        assert (ended.code, "another command is using" in ended.err) == (2, True)
    assert command(*arguments).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.jsonl"]


def test_what_a_text_may_hold_ends_no_record(trained: Trained, command: Here, tmp_path: Path) -> None:
    """Python's splitlines() takes U+2028 for the end of a line."""
    data = write(tmp_path / "odd.jsonl", [{"source": "a\u2028b", "target": "c\u2028d"}])
    assert command("eval", trained("seq2seq-lm").run, "--data", data).code == 0


def test_held_out_data_of_that_name_have_a_report_of_their_own(trained: Trained, command: Here, tmp_path: Path) -> None:
    made = trained("sequence-classification")
    assert command("eval", made.run).code == 0
    before = (made.run / "evaluations" / "eval.json").read_bytes()
    (tmp_path / "eval.tsv").write_text("Fine.\tpositive\n")
    assert command("eval", made.run, "--data", tmp_path / "eval.tsv").code == 0
    assert (made.run / "evaluations" / "eval.json").read_bytes() == before
    assert (made.run / "evaluations" / "eval-data.json").exists()


def test_another_base_or_label_set_is_refused(trained: Trained, command: Here, tmp_path: Path) -> None:
    run = tmp_path / "moved"
    shutil.copytree(trained("sequence-classification").run, run)
    kept, config = (run / "labels.json").read_text(), run / "base" / "config.json"
    for labels, told in (('["negative"]', "labels.json was not changed"), ('"np"', "is damaged")):
        (run / "labels.json").write_text(f'{{"label": {labels}}}')
        ended = command("predict", run, "--prompt", "Fine.")
        assert (ended.code, told in ended.err) == (2, True), ended.err
    (run / "labels.json").write_text(kept)
    config.write_text(config.read_text() + "\n")
    for arguments in (("predict", run, "--prompt", "Fine."), ("eval", run), ("export", run, tmp_path / "out")):
        ended = command(*arguments)
        assert (ended.code, "is not the base model that" in ended.err) == (2, True), ended.err


@pytest.mark.parametrize("out", ["in.txt", "folder", ""])
def test_an_output_that_cannot_be_is_refused_before_the_work(
    trained: Trained, command: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("Fine.\n")
    (tmp_path / "folder").mkdir()
    ended = command("predict", trained("sequence-classification").run, "--input", "in.txt", "--output", out)
    assert (ended.code, "--output" in ended.err) == (2, True), ended.err
    assert (tmp_path / "in.txt").read_text() == "Fine.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in.txt"]


def mark_first_line(part: Path) -> None:
    lines = part.read_text().splitlines()
    part.write_text("".join(f"{line}\n" for line in ["{}", *lines[1:]]))


# --- what a user can get wrong ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """Data for `eval`, and what must be told about them. `at`: how the place of the mistake is written."""

    name: str
    file: str
    lines: Sequence[Any]
    at: str
    told: Sequence[str]


CONTEXT = {"question": "What does it cost?", "context": "It costs 20 euros."}
WRONG = {
    "label": Wrong(
        "sequence-classification", "x.tsv", ["Fine.\tpositive", "So so.\tneutral"], ":2", ["'neutral'", "negative"]
    ),
    "column": Wrong("sequence-classification", "x.tsv", ["Fine.\tpositive", "So so."], ":2", ["1 columns"]),
    "kind": Wrong("numbers", "x.jsonl", [{"text": "Fine.", "label": "many"}], ":1", ["a number", "'many'"]),
    "tags": Wrong(
        "token-classification",
        "x.jsonl",
        [{"tokens": ["In", "Graz", "."], "tags": ["O", "B-LOC"]}],
        ":1",
        ["3 words", "2 tags"],
    ),
    "no tag": Wrong("token-classification", "x.conll", ["In O", "Graz", ""], ":2", ["'Graz'", "tag is missing"]),
    "forbidden tags": Wrong(
        "token-classification", "x.conll", ["In O", "Graz I-LOC", ""], ":1", ["'I-LOC'", "cannot follow 'O'"]
    ),
    "answer": Wrong(
        "question-answering",
        "x.jsonl",
        [{**CONTEXT, "answers": ["30 euros"]}],
        ":1",
        ["'30 euros'", "is not in the context"],
    ),
    "place of an answer": Wrong(
        "question-answering",
        "x.jsonl",
        [{**CONTEXT, "answers": {"text": ["20 euros"], "answer_start": [3]}}],
        ":1",
        ["answer_start 3"],
    ),
    "no audio": Wrong("ctc", "x.jsonl", [{"audio": "gone.wav", "text": "low"}], ":1", ["gone.wav", "does not exist"]),
    "audio": Wrong("ctc", "x.jsonl", [{"audio": "x.jsonl", "text": "low"}], ":1", ["x.jsonl", "cannot be decoded"]),
    "member": Wrong(
        "speech-seq2seq",
        "x.jsonl",
        [{"audio": f"{SAMPLE}/tones.tar.gz#a.wav", "text": "low"}],
        ":1",
        ["no such member"],
    ),
    "target": Wrong("seq2seq-lm", "x.jsonl", [{"source": "Where?"}], ":1", ["'target'", "data.fields"]),
    "preference": Wrong("dpo", "x.jsonl", [{"prompt": "Why?", "chosen": "So."}], ":1", ["'rejected'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data(trained: Trained, command: Here, tmp_path: Path, case: str) -> None:
    wrong = WRONG[case]
    data = write(tmp_path / wrong.file, wrong.lines)
    ended = command("eval", trained(wrong.name).run, "--data", data)
    assert ended.code == 2, ended.err
    assert "\n" not in ended.sentence
    assert f"{data}{wrong.at}" in ended.sentence
    for part in wrong.told:
        assert part in ended.sentence


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("sequence-classification", ("--task", "sentiment"), "one task only"),
        ("multi-task", ("--task", "parsing"), "entities, sentiment"),
        ("multi-task", (), "entities, sentiment"),
    ],
)
def test_wrong_name_of_a_task(
    trained: Trained, command: Here, tmp_path: Path, name: str, options: Sequence[str], told: str
) -> None:
    source = write(tmp_path / "in.jsonl", TEXTS)
    ended = command("predict", trained(name).run, "--input", source, "--output", tmp_path / "out.jsonl", *options)
    assert ended.code == 2, ended.err
    assert "--task" in ended.sentence
    assert told in ended.sentence


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.best=bleu"], ["train.best", "'bleu'", "accuracy"]),
        (["data.eval=null"], ["train.best", "data.eval"]),
        (["task.kind=several"], ["task.", "'several'", "multi-label"]),
        (["task.type=classification"], ["task.type", "'classification'", "sequence-classification"]),
        (["data.overlong=split"], ["data.overlong", "truncate or drop"]),
        (["train.patience=2", "train.best=null"], ["patience", "best"]),
    ],
)
def test_wrong_recipe(command: Here, tmp_path: Path, overrides: list[str], told: list[str]) -> None:
    run = tmp_path / "run"
    ended = command("train", CONFIGS / "sequence-classification.yaml", *overrides, "--run-dir", run)
    assert ended.code == 2, ended.err
    assert "\n" not in ended.sentence
    for part in told:
        assert part in ended.sentence
    assert not run.exists()


def test_wrong_in_a_rank(trained: Trained, place: Workplace) -> None:
    """Labels, columns and models that do not fit the task; found by a rank of a run, two runs at a time."""
    model = {
        name: f"model={{path: {trained(name).run / 'base'}}}"
        for name in ("seq2seq-lm", "sequence-classification", "dpo")
    }
    handbook = f"data={{train: {SAMPLE}/handbook.jsonl, row_tokens: 128}}"
    three = "task.labels=[negative, neutral, positive]"
    cases: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "empty class": (("sequence-classification", *ENCODER, three), ("task.labels", "'neutral'", "reviews.tsv")),
        "no pair": (
            ("sequence-classification", *ENCODER, "data.fields={text_pair: reply}"),
            ("reviews.tsv:1", "'reply'", "text_pair"),
        ),
        "t5 in dpo": (("dpo", model["seq2seq-lm"]), ("model.path", "t5", "seq2seq-lm")),
        "t5 in causal-lm": (
            ("dpo", "task={type: causal-lm}", handbook, model["seq2seq-lm"]),
            ("model.path", "t5", "seq2seq-lm"),
        ),
        "llama in seq2seq-lm": (("seq2seq-lm", model["dpo"]), ("model.path", "llama", "seq2seq-lm")),
        "bert in seq2seq-lm": (("seq2seq-lm", model["sequence-classification"]), ("model.path", "bert", "seq2seq-lm")),
    }

    def bad(name: str) -> Ended:
        (recipe, *overrides), _ = cases[name]
        run = place.folder / f"wrong-{name.replace(' ', '-')}"
        return place.run("train", CONFIGS / f"{recipe}.yaml", *SHORT, *overrides, "--run-dir", run)

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(cases, pool.map(bad, cases), strict=True))
    for name, ended in found.items():
        assert ended.code == 2, (name, ended.err)
        assert "\n" not in ended.sentence
        for part in cases[name][1]:
            assert part in ended.sentence, (name, ended.sentence)
