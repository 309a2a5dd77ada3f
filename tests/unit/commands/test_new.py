"""`distft new`: every starter loads, the columns of small files are found, and nothing is overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distft.commands import new
from distft.errors import UserError
from distft.recipe.load import load
from distft.recipe.schema import Recipe
from distft.recipe.tasks import BUILT_IN, QuestionAnswering, SequenceClassification, TokenClassification

REVIEWS = ["It came late and was broken", "A very good bike", "I would not buy it again"] * 4
LABELS = ["negative", "positive", "negative"] * 4


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(task: str, *data: str, held_out: tuple[str, ...] = ()) -> tuple[Recipe, str]:
    """The recipe for some data, and its doubts in one text."""
    written = new.write(task, data, held_out, None)
    assert written.next_command == f"distft train {written.path}"
    text = written.path.read_text()
    assert all(doubt in text for doubt in written.doubts)
    return load(written.path, []), " | ".join(written.doubts)


def table(name: str, delimiter: str, *columns: list[Any]) -> str:
    Path(name).write_text("".join(delimiter.join(map(str, row)) + "\n" for row in zip(*columns, strict=True)))
    return name


def objects(name: str, *records: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return name


@pytest.mark.parametrize("task", sorted(BUILT_IN))
def test_a_starter_is_for_the_sample(task: str) -> None:
    recipe, doubts = made(task)
    assert (recipe.task.type, recipe.name, doubts) == (task, task, "")
    for part in recipe.parts():
        [source] = part.train
        assert all(
            Path(file).is_file() for file in (source.path.values() if isinstance(source.path, dict) else [source.path])
        )
    text = Path(f"{task}.yaml").read_text()
    assert text.count("path: ./my-model") == 1
    assert "configs/" not in text


def test_a_table_with_a_header_has_its_columns_renamed() -> None:
    recipe, doubts = made("sequence-classification", table("a.csv", ",", ["Review", *REVIEWS], ["Intent", *LABELS]))
    assert recipe.data.fields == {"text": "Review", "label": "Intent"}
    assert (recipe.data.columns, recipe.data.train, doubts) == ([], str(Path("a.csv").resolve()), "")
    assert (recipe.train.best, recipe.train.eval_every) == (None, None)  # there is no held-out data


@pytest.mark.parametrize(("suffix", "delimiter", "key"), [("tsv", "\t", None), ("txt", "@", "@"), ("data", "|", "|")])
def test_a_table_without_a_header_gets_names(suffix: str, delimiter: str, key: str | None) -> None:
    recipe, doubts = made("sequence-classification", table(f"a.{suffix}", delimiter, REVIEWS, LABELS))
    assert (recipe.data.columns, recipe.data.delimiter, recipe.data.fields) == (["text", "label"], key, {})
    assert "first line looks like data" in doubts


@pytest.mark.parametrize(
    ("first", "header"),
    [(("great", "good"), False), (("opinion", "verdict"), None), (("remark", "Label"), True), (("x", "x"), False)],
)
def test_a_short_first_line_is_a_header_unless_its_words_come_again(
    first: tuple[str, str], header: bool | None
) -> None:
    data = table("a.tsv", "\t", [first[0], *(f"so {n}" for n in range(9))], [first[1], *["good", "bad", "good"] * 3])
    recipe, doubts = made("sequence-classification", data)
    assert bool(recipe.data.columns) == (header is False)
    assert ("is taken for the names" in doubts) == (header is None)


def test_columns_come_in_any_order() -> None:
    recipe, _ = made("sequence-classification", table("a.tsv", "\t", range(12), LABELS, REVIEWS))
    assert recipe.data.columns == ["column1", "label", "text"]


def test_exact_names_come_first() -> None:
    rows = [
        {"Text": "b", "sentence": "a", "text": f"some text {i}", "category": "x", "label": str(i % 2)} for i in range(9)
    ]
    recipe, doubts = made("sequence-classification", objects("a.jsonl", *rows))
    assert (recipe.data.fields, doubts) == ({}, "")


def test_what_is_only_guessed_or_missing_is_said() -> None:
    rows = [{"opinion": review, "verdict": label} for review, label in zip(REVIEWS, LABELS, strict=True)]
    recipe, doubts = made("sequence-classification", objects("a.jsonl", *rows))
    assert recipe.data.fields == {"text": "opinion", "label": "verdict"}
    assert "'verdict', a guess by what is in it" in doubts
    Path("sequence-classification.yaml").unlink()
    recipe, doubts = made("sequence-classification", objects("a.jsonl", {"text": "a b"}, {"text": "c d"}))
    assert "no column was found for label; there are: text; name it in data.fields" in doubts
    Path("sequence-classification.yaml").unlink()
    both = [{"text": f"{i} is a number", "intent": f"i{i % 3}", "category": f"c{i % 2}"} for i in range(9)]
    recipe, doubts = made("sequence-classification", objects("a.jsonl", *both))
    assert "label is read from the column 'intent'; it could also be 'category'" in doubts


@pytest.mark.parametrize(
    ("labels", "kind"), [([["a"], ["a", "b"]], "multi-label"), ([1.5, 2.25], "regression"), ([1, 0], "single")]
)
def test_the_kind_follows_from_the_labels(labels: list[Any], kind: str) -> None:
    data = objects("a.jsonl", *({"text": f"text {i}", "label": labels[i % 2]} for i in range(8)))
    recipe, _ = made("sequence-classification", data, held_out=(data,))
    assert isinstance(recipe.task, SequenceClassification)
    assert recipe.task.kind == kind
    assert recipe.train.best == ("pearson" if kind == "regression" else "accuracy")


@pytest.mark.parametrize(("name", "before", "crf"), [("a.txt", "B-LOC", True), ("a.conll", "I-LOC", False)])
def test_tags_in_columns(name: str, before: str, crf: bool) -> None:
    Path(name).write_text(f"In X O\nGraz X {before}\n\nAnna X B-PER\nknows X O\nLinz X B-LOC\n\n" * 3)
    recipe, doubts = made("token-classification", name)
    assert recipe.data.format == ("conll" if name == "a.txt" else "auto")
    assert isinstance(recipe.task, TokenClassification)
    assert (recipe.task.crf, "IOB1" in doubts) == (crf, not crf)


def test_tags_in_lists() -> None:
    data = objects("a.jsonl", {"words": ["In", "Graz"], "ner_tags": [0, 1]}, {"words": ["No"], "ner_tags": [0]})
    assert made("token-classification", data)[0].data.fields == {"tokens": "words", "tags": "ner_tags"}


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({"text": "In Graz.", "spans": [{"start": 3, "end": 7, "label": "LOC"}]}, {}),
        ({"id": 3, "text": "In Graz.", "label": [[3, 7, "LOC"]]}, {"spans": "label"}),
        ({"text": "In Graz.", "label": {"LOC": {"Graz": [[3, 6]]}}}, {"spans": "label"}),
        ({"Text": "In Graz.", "Entities": "[]", "label": "news"}, {"text": "Text", "spans": "Entities"}),
        ({"text": "In Graz.", "tokens": [{"text": "In", "id": 0}], "spans": [], "answer": "accept"}, {}),
        ({"text": "In Graz.", "tokens": ["In", "Graz", "."], "spans": []}, {"spans": "spans"}),
        ({"data": {"text": "In Graz."}, "annotations": [{"result": []}]}, {}),
        ({"sentence": ["In", "Graz"], "labels": ["O", "B-LOC"]}, {"tokens": "sentence", "tags": "labels"}),
        ({"text": "In Graz", "tokens": ["In", "Graz"], "tags": ["O", "B-LOC"], "entities": []}, {}),
    ],
)
def test_spans_in_texts(record: dict[str, Any], fields: dict[str, str]) -> None:
    recipe, doubts = made("token-classification", objects("a.jsonl", record))
    guessed = "tokens is read from the column 'sentence', a guess" if "sentence" in record else ""
    assert (recipe.data.fields, doubts[: len(guessed)]) == (fields, guessed)
    assert guessed or not doubts


def test_spans_that_a_run_would_refuse_are_told() -> None:
    record = {"text": "In Graz.", "entities": [{"start": 3, "end": 6, "label": "LOC", "text": "Graz"}]}
    assert "the end seems to be inside the span" in made("token-classification", objects("a.jsonl", record))[1]


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({"question": "Who?", "answer": "Anna."}, {"prompt": "question", "completion": "answer"}),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "text": "c"}, {}),
        ({"instruction": "Say it.", "input": "a", "output": "b"}, {}),
        ({"content": "A text."}, {"text": "content"}),
    ],
)
def test_forms_of_causal_lm(record: dict[str, Any], fields: dict[str, str]) -> None:
    recipe, doubts = made("causal-lm", objects("a.jsonl", record))
    assert (recipe.data.fields, doubts) == (fields, "")


def test_records_that_the_task_would_refuse_are_told() -> None:
    _, doubts = made("causal-lm", objects("a.jsonl", {"messages": [{"role": "user", "content": 5}]}))
    assert "a.jsonl:1: messages[0]: content must be a string" in doubts
    pairs = objects("b.jsonl", {"question": "Who?", "better": "Anna.", "worse": "No."})
    recipe, doubts = made("dpo", pairs)
    assert recipe.data.fields == {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert doubts == ""


def test_questions_and_a_sign_for_no_answer() -> None:
    rows = [
        {"question": f"What is {i}?", "review": f"It is number {i}. NONE", "answer": "NONE" if i % 2 else f"{i}"}
        for i in range(20)
    ]
    recipe, doubts = made("question-answering", objects("a.jsonl", *rows))
    assert recipe.data.fields == {"context": "review"}
    assert isinstance(recipe.task, QuestionAnswering)
    assert "'NONE' answers 10 of 20 questions" in doubts


def test_parallel_files_by_our_names_or_by_languages() -> None:
    for name in ("a.en", "a.de"):
        Path(name).write_text("one line\nanother\n")
    recipe, doubts = made("seq2seq-lm", "source=a.en", "target=a.de", held_out=("source=a.en", "target=a.de"))
    assert (
        recipe.data.train
        == recipe.data.eval
        == {"source": str(Path("a.en").resolve()), "target": str(Path("a.de").resolve())}
    )
    assert doubts == ""
    Path("seq2seq-lm.yaml").unlink()
    recipe, doubts = made("seq2seq-lm", "de=a.de", "en=a.en")
    assert recipe.data.fields == {"source": "de", "target": "en"}
    assert "exchange them" in doubts


def test_rows_hold_the_longest_and_so_does_the_model() -> None:
    data = objects("a.jsonl", {"text": "x" * 500}, {"text": "x" * 1400})
    recipe, _ = made("masked-lm", data)
    assert recipe.data.row_tokens == 512  # 350 tokens
    assert recipe.model.init is not None
    assert recipe.model.init.config["max_position_embeddings"] == 512
    Path("masked-lm.yaml").unlink()
    assert made("masked-lm", objects("a.jsonl", {"text": "x" * 400}))[0].data.row_tokens == 128
    assert made("causal-lm", objects("b.jsonl", {"text": "short"}))[0].data.row_tokens == 64
    Path("causal-lm.yaml").unlink()
    assert made("causal-lm", objects("b.jsonl", {"text": "x" * 99_999}))[0].data.row_tokens == 4096


def test_held_out_data_without_the_columns() -> None:
    train, other = objects("a.jsonl", {"text": "a"}), objects("b.jsonl", {"content": "a"})
    assert "the held-out data lack the columns text" in made("masked-lm", train, held_out=(other,))[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tokenclassification", [], []), "did you mean token-classification"),
        (("masked-lm", ["none.jsonl"], []), "--data none.jsonl: there is no such file"),
        (("masked-lm", ["empty.jsonl"], []), "empty.jsonl holds no record"),
        (("masked-lm", ["empty.txt"], []), "empty.txt is empty"),
        (("masked-lm", ["bad.jsonl"], []), "bad.jsonl:1 is not valid JSON"),
        (("masked-lm", ["bad.txt"], []), "bad.txt:1 is not UTF-8"),
        (("masked-lm", ["bad.txt", "bad.jsonl"], []), "--data source=FILE --data target=FILE"),
        (("masked-lm", [], ["bad.jsonl"]), "--eval needs --data"),
        (("multi-task", ["bad.jsonl"], []), "task.tasks"),
        (("site", ["bad.jsonl"], []), "takes no --data"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments: tuple[str, list[str], list[str]], told: str) -> None:
    Path("empty.jsonl").touch()
    Path("empty.txt").touch()
    Path("bad.jsonl").write_text("{no\n")
    Path("bad.txt").write_bytes(b"\xff\xff\n")
    before = sorted(Path().iterdir())
    with pytest.raises(UserError, match=told):
        new.write(*arguments, None)
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("name", "file"), [("masked-lm", "masked-lm.yaml"), ("site", "site.toml"), ("sbatch", "train.sbatch")]
)
def test_nothing_is_overwritten(name: str, file: str) -> None:
    Path(file).write_text("mine")
    with pytest.raises(UserError, match=f"{file} is there already and is left as it is; name another file with --out"):
        new.write(name, [], [], None)
    assert Path(file).read_text() == "mine"
    assert new.write(name, [], [], Path("other")).path.read_text() != "mine"
    with pytest.raises(UserError, match="cannot be written"):
        new.write(name, [], [], Path("no/where"))


def test_a_recipe_elsewhere_finds_its_data() -> None:
    Path("sub").mkdir()
    Path("sub/a, b").write_text("a line\n")
    written = new.write("masked-lm", ["sub/a, b"], [], Path("sub/x.yaml"))
    assert '"./a, b"' in written.path.read_text()
    assert load(Path("sub/x.yaml"), []).data.train == str(Path("sub/a, b").resolve())


def test_the_command_prints_what_to_check_and_loads_no_torch() -> None:
    data = table("a.tsv", "\t", REVIEWS, LABELS)
    code = (
        "import sys; from distft.cli.table import app; "
        f"app(['new', 'sequence-classification', '--data', {data!r}], standalone_mode=False); "
        "print(sorted({'torch', 'transformers', 'deepspeed', 'peft'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "written: sequence-classification.yaml"
    assert lines[1].startswith("to be checked: the first line looks like data")
    assert lines[2:] == ["next: distft train sequence-classification.yaml", "[]"]


def test_odd_names_of_columns_break_no_recipe() -> None:
    odd = ["a: {b", "no", "1", "x\ny", "\x85 \x07 #", "\u4e2d, \"'"]
    for name in odd:
        recipe, doubts = made("masked-lm", objects("a.jsonl", {name: "a longer text"}))
        assert (recipe.data.fields, "\n" in doubts) == ({"text": name}, False)
        Path("masked-lm.yaml").unlink()
