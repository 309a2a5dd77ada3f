import gzip
import json
import os
import re
from dataclasses import replace

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from distft.data import hub, hub_datasets
from distft.data.records import Broken
from distft.data.sources import Source, fingerprint, read, read_leniently
from distft.errors import UserError


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()


def rows(spec, **how):
    return list(read(source(spec, **how)))


def source(spec, **how):
    return Source(spec if isinstance(spec, dict) else str(spec), **how)


def complaint(spec, **how):
    with pytest.raises(UserError) as caught:
        rows(spec, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fields(spec, **how):
    return [record.fields for record in rows(spec, **how)]


def leniently(spec, **how):
    """What there is of each record: its fields, or where and why not."""
    found = list(read_leniently(source(spec, **how)))
    assert any(isinstance(one, Broken) for one in found)
    return [(one.where, one.why) if isinstance(one, Broken) else one.fields for one in found]


def test_jsonl_keeps_line_numbers_through_bom_blank_lines_and_crlf(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\\u2028b"}\r\n\r\n  \n{"text": "\xe2\x80\xa8"}\r\n{"text": "no end"}')
    records = rows(path)
    assert [r.where for r in records] == [f"{path}:1", f"{path}:4", f"{path}:5"]
    assert [r.fields["text"] for r in records] == ["a\u2028b", "\u2028", "no end"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "a"', "Expecting ',' delimiter"),
        (b'{"text": }', "Expecting value"),
        (b"[1, 2]", "a JSON list, expected an object"),
        (b'"hello"', "a JSON str, expected an object"),
        (b"null", "a JSON NoneType, expected an object"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": ' + b"[" * 100_000, "cannot be parsed as JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}", "cannot be parsed as JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    message = complaint(path)
    assert f"{path}:3" in message
    assert said in message


def test_json_array_and_json_lines_in_a_json_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\ufeff\n[{"text": "a"},\n {"text": "b"}]\n')
    assert [(r.where, r.fields["text"]) for r in rows(path)] == [(f"{path}[0]", "a"), (f"{path}[1]", "b")]
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [r.where for r in rows(path)] == [f"{path}:1", f"{path}:2"]
    path.write_text('[{"text": "a"},\n{"text": b}]')
    assert f"{path}:2 is not valid JSON" in complaint(path)
    path.write_text('[{"text": "a"}, 3]')
    assert f"{path}[1] holds a JSON int" in complaint(path)
    path.write_text("[]")
    assert rows(path) == []


def test_csv_with_quotes_newlines_and_huge_fields(tmp_path):
    path = tmp_path / "a.csv"
    huge = "x" * 300_000
    path.write_bytes(f'\ufeffprompt,completion\r\n"a, ""b""\r\nc",d\r\n\r\n{huge},e\r\n'.encode())
    records = rows(path)
    assert [r.where for r in records] == [f"{path}:2", f"{path}:5"]
    assert records[0].fields == {"prompt": 'a, "b"\r\nc', "completion": "d"}
    assert records[1].fields["prompt"] == huge


@pytest.mark.parametrize(
    ("text", "said"),
    [("a,b\n1,2\n3\n", ":3 has 1 columns"), ("a,b\n1,2,3\n", ":2 has 3 columns"), ('a\n1\n"2\n3\n', ":3 is not valid")],
)
def test_bad_csv_is_named(tmp_path, text, said):
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert f"{path}{said}" in complaint(path)


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    messages = [{"role": "user", "content": "hi"}]
    pyarrow.parquet.write_table(pyarrow.table({"messages": [messages] * 2500}), path)
    records = rows(path)
    assert len(records) == 2500
    assert records[2499].where == f"{path}[2499]"
    assert records[2499].fields == {"messages": messages}
    path.write_bytes(b"PAR1 not really")
    assert f"{path} cannot be read as parquet" in complaint(path)


def test_folder_of_one_dataset_and_of_splits(tmp_path):
    data = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "splits")
    assert [r.fields["text"] for r in rows(tmp_path / "one", split="whatever")] == ["a", "b"]
    assert [(r.where, r.fields) for r in rows(tmp_path / "splits", split="test")] == [
        (f"{tmp_path}/splits[0]", {"text": "b"})
    ]
    assert "no split 'validation'; it has train, test" in complaint(tmp_path / "splits", split="validation")


@pytest.mark.parametrize(
    "spec", ["nowhere.jsonl", "sub/nowhere.CSV", "nowhere.en.gz", "./nowhere", "/nowhere/at/all", "~/nowhere-xyz"]
)
def test_a_missing_file_is_not_looked_for_on_the_hub(spec, monkeypatch):
    monkeypatch.setattr(hub, "commit_of", lambda repository: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="does not exist"):
        read(Source(spec))  # before the first record is asked for


def test_unknown_suffix_and_foreign_folder(tmp_path):
    (tmp_path / "a.doc").write_text("a")
    (tmp_path / "folder").mkdir()
    message = complaint("a.doc")
    assert "known are .jsonl .json .parquet .conll .bio .iob .csv .tsv .txt .text, also with .gz or .zst" in message
    assert all(key in message for key in ("data.format", "data.delimiter", "data.columns"))
    assert "nor was it written by save_to_disk" in complaint("folder")


def test_hub_failure_is_one_sentence():
    assert "data 'someone/something' is neither a local file or folder" in complaint("someone/something")


def test_hub_data_set_is_loaded_by_name_config_and_split(monkeypatch):
    asked = []

    def load(repository, config, split):
        asked.append((str(repository), config, split))
        return datasets.Dataset.from_list([{"text": "a"}])

    monkeypatch.setattr(hub_datasets, "load", load)
    source = Source("someone/something", "dev", "main", revision="v1")
    assert [r.where for r in read(source)] == ["someone/something[0]"]
    assert asked == [("datasets/someone/something@v1", "main", "dev")]


def test_fingerprint_follows_content_not_name(tmp_path):
    for name, text in [("a.jsonl", "a"), ("b.jsonl", "a"), ("c.jsonl", "c")]:
        (tmp_path / name).write_text(json.dumps({"text": text}))
    a, b, c = (fingerprint(Source(f"{name}.jsonl")) for name in "abc")
    assert a == b != c


def test_fingerprint_of_a_folder_ignores_caches_of_datasets(tmp_path):
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "one")
    before = fingerprint(Source("one"))
    (tmp_path / "one" / "cache-123.arrow").write_bytes(b"x")
    assert fingerprint(Source("one")) == before
    (tmp_path / "one" / "extra.arrow").write_bytes(b"x")
    assert fingerprint(Source("one")) != before


def test_a_file_is_read_again_only_where_it_may_have_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    first = fingerprint(source(path), memory=tmp_path)
    assert first == fingerprint(source(path))
    reads = []
    monkeypatch.setattr("distft.data.content._add", lambda file, found: reads.append(file))
    assert fingerprint(source(path), memory=tmp_path) == first
    assert reads == []
    os.utime(path, ns=(1, 1))
    assert fingerprint(source(path), memory=tmp_path) != first  # nothing was read into it
    assert reads == [path]


def write(path, text):
    """`text` in a file, packed where its name says so."""
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_a_name_for_people():
    assert Source("a.jsonl").name == "a.jsonl"
    assert Source({"source": "a.en", "target": "a.de"}).name == "a.en + a.de"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl.gz", '{"text": "a\u00e4"}\n\n{"text": "b"}\n'),
        ("a.JSON.GZ", '[{"text": "a\u00e4"}, {"text": "b"}]'),
        ("a.csv.gz", "text\na\u00e4\nb\n"),
        ("a.tsv.gz", "text\na\u00e4\nb\n"),
        ("a.txt.gz", "a\u00e4\n\nb"),
    ],
)
def test_packed_files(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()))
    assert fields(path) == [{"text": "aä"}, {"text": "b"}]


def test_packed_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert fields(tmp_path / "a.parquet.gz") == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("harm", [lambda b: b[:-20], lambda b: b[:40] + b"xx" + b[42:], lambda b: b"no gzip at all"])
def test_a_damaged_gzip_is_one_sentence(tmp_path, harm):
    packed = gzip.compress("".join(f'{{"n": {i * i}}}\n' for i in range(50_000)).encode())
    for name in ("a.txt.gz", "a.jsonl.gz", "a.parquet.gz"):
        (tmp_path / name).write_bytes(harm(packed))
        assert f"{tmp_path / name} is not a complete gzip file" in complaint(tmp_path / name)
        with pytest.raises(UserError, match="not a complete gzip"):
            list(read_leniently(source(tmp_path / name)))


SQUAD = {
    "version": "v2.0",
    "data": [
        {"title": "Empty", "paragraphs": []},
        {
            "title": "Rivers",
            "paragraphs": [
                {
                    "context": "The Rhine is long.",
                    "qas": [
                        {"id": "q1", "question": "What is long?", "answers": [{"text": "Rhine", "answer_start": 4}]},
                        {"id": 2, "question": "Who?", "answers": [], "is_impossible": True, "plausible_answers": []},
                        {"question": "And this?"},
                    ],
                }
            ],
        },
    ],
}


@pytest.mark.parametrize("indent", [None, 2])
def test_squad_becomes_a_flat_record_for_each_question(tmp_path, indent):
    path = tmp_path / "a.json"
    path.write_text("\n" + json.dumps(SQUAD, indent=indent))
    first, second, third = rows(path)
    assert first.where == f"{path}[1].paragraphs[0].qas[0]"
    assert first.fields == {
        "id": "q1",
        "title": "Rivers",
        "context": "The Rhine is long.",
        "question": "What is long?",
        "answers": {"text": ["Rhine"], "answer_start": [4]},
        "is_impossible": False,
    }
    assert second.fields["id"] == "2"
    assert second.fields["is_impossible"] is True
    assert second.fields["answers"] == third.fields["answers"] == {"text": [], "answer_start": []}
    assert third.fields["id"] == third.where == f"{path}[1].paragraphs[0].qas[2]"


@pytest.mark.parametrize(
    ("article", "said"),
    [
        ({"paragraphs": [{"qas": [{"question": "?"}]}]}, "[1].paragraphs[0].qas[0] lacks 'context'"),
        ({"paragraphs": [{"context": "c", "qas": [{"id": "1"}]}]}, "[1].paragraphs[0].qas[0] lacks 'question'"),
        ({"paragraphs": [{"context": "c"}]}, "[1].paragraphs[0] lacks 'qas'"),
        ({"title": "no text"}, "[1] lacks 'paragraphs'"),
        ({"paragraphs": [{"context": "c", "qas": ["Who?"]}]}, "[1].paragraphs[0].qas[0] is not in the SQuAD format"),
        (
            {"paragraphs": [{"context": "c", "qas": [{"question": "?", "answers": [{"text": "c"}]}]}]},
            "[1].paragraphs[0].qas[0] lacks 'answer_start'",
        ),
    ],
)
def test_bad_squad_is_named(tmp_path, article, said):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"paragraphs": []}, article]}))
    assert f"{path}{said}" in complaint(path)


def test_what_is_bad_of_squad_leaves_the_rest(tmp_path):
    path = tmp_path / "a.json"
    article = SQUAD["data"][1]
    [paragraph] = article["paragraphs"]
    good = paragraph["qas"][0]
    spoilt = {**article, "paragraphs": [{**paragraph, "qas": [good, {"id": "x"}, good]}, {"context": "c"}, 3]}
    write(path, json.dumps({"data": [{"title": "t"}, spoilt, article]}))
    found = list(read_leniently(source(path)))
    broken = [(one.where.removeprefix(str(path)), one.why.split()[1]) for one in found if isinstance(one, Broken)]
    assert broken == [
        ("[0]", "'paragraphs',"),
        ("[1].paragraphs[0].qas[1]", "'question',"),
        ("[1].paragraphs[1]", "'qas',"),
        ("[1].paragraphs[2]", "not"),
    ]
    whole = [one.where.removeprefix(str(path)) for one in found if not isinstance(one, Broken)]
    assert whole == [
        "[1].paragraphs[0].qas[0]",
        "[1].paragraphs[0].qas[2]",
        *(f"[2].paragraphs[0].qas[{number}]" for number in range(3)),
    ]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": ["a", "b"], "label": [0, 1]}, [{"text": "a", "label": 0}, {"text": "b", "label": 1}]),
        ({"text": ["a"]}, [{"text": "a"}]),
        (
            {"text": {"0": "a", "2": "b"}, "label": {"2": 1, "0": None}},
            [{"text": "a", "label": None}, {"text": "b", "label": 1}],
        ),
        (
            {"tokens": [["a", "b"], ["c"]], "tags": [["O", "O"], ["O"]]},
            [{"tokens": ["a", "b"], "tags": ["O", "O"]}, {"tokens": ["c"], "tags": ["O"]}],
        ),
    ],
)
def test_columns_in_a_json_file(tmp_path, columns, expected, indent):
    path = tmp_path / "a.json"
    write(path, "\n" + json.dumps(columns, indent=indent) + "\n")
    assert fields(path) == expected
    assert [record.where for record in rows(path)] == [f"{path}[{index}]" for index in range(len(expected))]


@pytest.mark.parametrize(
    "record",
    [
        {"tokens": ["a", "b"], "ner_tags": [0, 1]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"text": ["a", "b"], "label": [0]},
        {"text": "a", "label": [0]},
        {"text": "a", "answers": {"0": "a"}},
        {"answers": {"text": ["a"], "answer_start": [0]}},
        {"a": {"0": 1}, "b": {"1": 1}},
        {"text": []},
        {"a": {}},
        {},
    ],
)
def test_a_single_record_is_not_taken_for_columns(tmp_path, record):
    path = tmp_path / "a.json"
    write(path, json.dumps(record))
    assert fields(path) == [record]
    write(path, json.dumps(record, indent=2))
    if record:
        assert f"{path} is one JSON object; expected" in complaint(path)
    columns = {"text": ["a", "b"], "label": [0, 1]}
    write(path, json.dumps(columns) + "\n" + json.dumps(record))  # lines are records, whatever the first looks like
    assert fields(path) == [columns, record]


def test_an_address_is_no_file(tmp_path):
    for spec in ("https://example.org/a.jsonl", "https:/example.org/a", "s3://bucket/a.parquet"):
        with pytest.raises(UserError, match=rf"^data {spec} is an address on the web; download it first"):
            rows(spec)


def test_objects_in_a_json_file_that_are_not_squad(tmp_path):
    path = tmp_path / "a.json"
    lines = [{"data": [1]}, {"data": []}, {"data": "text"}]
    write(path, "".join(json.dumps(line) + "\n" for line in lines))
    assert fields(path) == lines
    squads = [SQUAD, SQUAD]  # lines of such objects are lines
    write(path, "".join(json.dumps(line) + "\n" for line in squads))
    assert fields(path) == squads
    write(path, json.dumps({"text": "a"}, indent=2))
    assert f"{path} is one JSON object; expected" in complaint(path)
    write(path, json.dumps(SQUAD, indent=2)[:-20])
    assert "is not valid JSON" in complaint(path)
    assert f"{path}:1 " not in complaint(path)
    write(path, '{"text": "a"\n{"text": "b"}\n')
    assert f"{path}:1 is not valid JSON" in complaint(path)
    assert leniently(path)[1:] == [{"text": "b"}]


def test_objects_one_behind_the_other_over_several_lines(tmp_path):
    objects = [{"text": "a\nb", "n": [1]}, {"text": "}{"}, {"n": {}}]
    path = write(tmp_path / "a.json", "\n\n" + "\n".join(json.dumps(one, indent=2) for one in objects) + "\n")
    assert fields(path) == objects
    assert [record.where.rpartition(":")[2] for record in rows(path)] == ["3", "9", "12"]
    write(path, '{\n"a": 1\n}{\n"a": 2\n}\n[3]')
    assert leniently(path)[:2] == [{"a": 1}, {"a": 2}]
    assert f"{path}:6 holds a JSON list" in complaint(path)
    write(path, '{\n"a": 1\n}\n{\n"a" 2\n}\n')
    assert f"{path}:5 is not valid JSON: Expecting ':' delimiter (column 5)" in complaint(path)


def test_a_pair_of_a_text_and_what_is_in_it_is_a_record(tmp_path):
    pair = ["Anna lives", {"entities": [[0, 4, "PER"]]}]
    expected = [{"text": "Anna lives", "entities": [[0, 4, "PER"]]}] * 2
    assert fields(write(tmp_path / "a.json", json.dumps([pair, pair]))) == expected
    assert fields(write(tmp_path / "a.jsonl", f"{json.dumps(pair)}\n" * 2)) == expected
    assert "holds a JSON list, expected an object" in complaint(write(tmp_path / "b.jsonl", '["a", 1]'))


def test_lines_of_text(tmp_path):
    path = write(tmp_path / "a.txt", '\ufeff one "two"\r\n\n  \nthree\u2028, four')
    expected = [(f"{path}:1", ' one "two"'), (f"{path}:4", "three\u2028, four")]
    assert [(r.where, r.fields["text"]) for r in rows(path)] == expected
    assert [f["text"] for f in fields(path, format="lines")] == [' one "two"', "", "  ", "three\u2028, four"]
    other = write(tmp_path / "a.en", "one\n\n")
    assert fields(other, format="lines") == [{"text": "one"}, {"text": ""}]


def test_tsv_has_no_quotes(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\r\n"one\t1\r\n\r\n two "2", \t\r\n')
    assert [(r.where, r.fields) for r in rows(path)] == [
        (f"{path}:2", {"text": '"one', "label": "1"}),
        (f"{path}:4", {"text": ' two "2", ', "label": ""}),
    ]
    assert fields(path, columns=("a", "b"))[:2] == [{"a": "text", "b": "label"}, {"a": '"one', "b": "1"}]


@pytest.mark.parametrize(
    ("name", "text", "how", "said"),
    [
        ("a.tsv", "a\tb\n1\t2\n3\n", {}, ":3 has 1 columns but the header has 2; lines are split at '\\t'"),
        ("a.tsv", "1\t2\n3\t4\t5\n", {"columns": ("a", "b")}, ":2 has 3 columns but data.columns names 2"),
        ("a.txt", "1@2\n3\n", {"columns": ("a", "b"), "delimiter": "@"}, ":2 has 1 columns but data.columns names 2"),
        ("a.csv", "1,2\n3\n", {"columns": ("a", "b")}, ":2 has 1 columns but data.columns names 2; quote fields"),
        ("a.txt", "1 2\n", {"columns": ("a", "b")}, " has several columns; set data.delimiter"),
        ("a.csv", "a,b,a\n1,2,3\n", {}, ":1 has the column 'a' more than once; rename one"),
        ("a.tsv", "a\tb\ta\n1\t2\t3\n", {}, ":1 has the column 'a' more than once; rename one"),
    ],
)
def test_bad_columns_are_named(tmp_path, name, text, how, said):
    path = write(tmp_path / name, text)
    assert f"{path}{said}" in complaint(path, **how)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.dat", "a.dat.gz"])
@pytest.mark.parametrize("delimiter", ["@", "\t", " ||| ", ";"])
def test_the_last_delimiters_of_a_line_divide_it(tmp_path, name, delimiter):
    path = write(tmp_path / name, f'at{delimiter}home "{delimiter}yes\n\nno{delimiter}\n')
    two = [{"sentence": f'at{delimiter}home "', "label": "yes"}, {"sentence": "no", "label": ""}]
    assert fields(path, delimiter=delimiter, columns=("sentence", "label")) == two
    write(path, f"sentence{delimiter}label\nat{delimiter}home{delimiter}yes\n")
    assert fields(path, delimiter=delimiter) == [{"sentence": f"at{delimiter}home", "label": "yes"}]


def test_a_comma_keeps_its_quotes(tmp_path):
    path = write(tmp_path / "a.csv", '"a, b",1\n')
    expected = [{"x": "a, b", "y": "1"}]
    assert fields(path, columns=("x", "y")) == fields(path, columns=("x", "y"), delimiter=",") == expected
    path = write(tmp_path / "a.txt", 'x,y\n"a, b",1\n')
    assert fields(path, delimiter=",") == expected
    write(path, "x,y\na, b,1\n")
    assert f"{path}:2 has 3 columns but the header has 2; quote fields with commas" in complaint(path, delimiter=",")


def test_one_column_is_the_whole_line(tmp_path):
    path = write(tmp_path / "a.txt", "a\tb, c\n\nd\n")
    assert fields(path, columns=("line",)) == [{"line": "a\tb, c"}, {"line": "d"}]


CONLL = """\ufeff-DOCSTART- -X- O

# text = EU rejects
EU NNP B-ORG
rejects\tVBZ\t O
#a=b SYM O
A\u00a0B  X  O

-DOCSTART- -X- O
Peter NNP B-PER

\t
# SYM O"""


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.iob", "a.conll.gz"])
def test_sentences_in_columns(tmp_path, name):
    path = write(tmp_path / name, CONLL.replace("\n", "\r\n") if name == "a.bio" else CONLL)
    assert [(r.where, r.fields) for r in rows(path)] == [
        (f"{path}:4", {"tokens": ["EU", "rejects", "#a=b", "A\u00a0B"], "tags": ["B-ORG", "O", "O", "O"]}),
        (f"{path}:10", {"tokens": ["Peter"], "tags": ["B-PER"]}),
        (f"{path}:13", {"tokens": ["#"], "tags": ["O"]}),
    ]
    text = write(tmp_path / "a.txt", CONLL)
    assert fields(text, format="conll") == fields(path)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("Peter", "has the token 'Peter' but its tag is missing"),
        ("Peter \t", "has the token 'Peter' but its tag is missing"),
        ("Peter NNP x B-PER", "has 4 columns but its sentence began with 3 in line 3"),
    ],
)
def test_a_bad_line_of_a_sentence_is_named(tmp_path, bad, said):
    path = write(tmp_path / "a.conll", f"a X O\n\nsees X O\n{bad}\n\nb Y\n")
    assert f"{path}:4 {said}" in complaint(path)
    first, (where, why), last = leniently(path)
    assert (where, first["tokens"], last["tokens"]) == (f"{path}:4", ["a"], ["b"])
    assert said in why


def test_line_i_of_parallel_files_is_record_i(tmp_path):
    files = {
        "source": str(write(tmp_path / "a.en", "one\r\n\nthree\u2028\n")),
        "target": str(write(tmp_path / "a.de.gz", "\ufeffeins\n\ndrei")),
    }
    assert [(r.where, r.fields) for r in rows(files)] == [
        (f"{tmp_path}/a.en:1", {"source": "one", "target": "eins"}),
        (f"{tmp_path}/a.en:2", {"source": "", "target": ""}),
        (f"{tmp_path}/a.en:3", {"source": "three\u2028", "target": "drei"}),
    ]
    assert fields({"text": files["source"]})[1:] == [{"text": ""}, {"text": "three\u2028"}]


@pytest.mark.parametrize("lengths", [(3, 5, 3), (5, 3, 5), (0, 1, 1), (4, 4, 3)])
def test_parallel_files_of_unequal_length(tmp_path, lengths):
    paths = [write(tmp_path / f"a.{i}", "x\n" * n) for i, n in enumerate(lengths)]
    message = complaint({path.suffix: str(path) for path in paths})
    assert all(f"{path} has {n} lines" in message for path, n in zip(paths, lengths, strict=True))


def test_parallel_files_that_cannot_be_read(tmp_path):
    good = str(write(tmp_path / "a.en", "x\n"))
    for files, said in [
        ({"source": good, "target": "nowhere.de"}, "data file nowhere.de does not exist"),
        ({"source": good, "target": str(tmp_path)}, "(column target) is a folder"),
        ({}, "lists no files"),
    ]:
        with pytest.raises(UserError, match=re.escape(said)):
            read(Source(files))  # before the first record is asked for


def test_a_line_that_is_not_utf8_is_one_broken_record(tmp_path):
    lines = b"a\tO\n\n\xff\tO\n\nc\tO\n"
    for name, how, last in [
        ("a.conll", {}, {"tokens": ["c"], "tags": ["O"]}),
        ("a.txt", {}, {"text": "c\tO"}),
        ("a.tsv", {"columns": ("x", "y")}, {"x": "c", "y": "O"}),
        ("a.csv", {"columns": ("x",)}, {"x": "c\tO"}),
        ("a.en", {"format": "lines"}, {"text": "c\tO"}),
    ]:
        path = tmp_path / name
        path.write_bytes(lines)
        assert f"{path}:3 is not UTF-8" in complaint(path, **how)
        found = leniently(path, **how)
        assert len(found) == (5 if how.get("format") else 3)
        assert (found[-1], found[len(found) // 2][0]) == (last, f"{path}:3")
    good = write(tmp_path / "a.de", "1\n2\n3\n4\n5\n")
    found = leniently({"source": str(good), "target": str(tmp_path / "a.en")})
    assert found[2][0] == f"{tmp_path}/a.en:3"
    assert [one["source"] for i, one in enumerate(found) if i != 2] == ["1", "2", "4", "5"]


def test_jsonl_goes_on_behind_what_is_broken(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"n": 1}\n{"n": \n[]\n{"n": 4}\n')
    first, (where, why), other, last = leniently(path)
    assert (first, where, other, last) == (
        {"n": 1},
        f"{path}:2",
        (f"{path}:3", "holds a JSON list, expected an object with named fields"),
        {"n": 4},
    )
    assert f"{where} {why}" == complaint(path)


def test_csv_goes_on_in_the_line_after_a_stray_quote(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1,"x\ny"\n"2,3\n4,5\n6\n"7"8,9\n"x\n\xff",1\n10,11\n"12\n\n13,14\n')
    assert [one if isinstance(one, dict) else f"{one[0]} {one[1]}"[:60] for one in leniently("a.csv")] == [
        {"a": "1", "b": "x\ny"},
        "a.csv:4 is not valid CSV: ',' expected after '\"'",
        {"a": "4", "b": "5"},
        "a.csv:6 has 1 columns but the header has 2; quote fields with commas"[:60],
        "a.csv:7 is not valid CSV: ',' expected after '\"'",
        "a.csv:9 is not UTF-8 ('utf-8' codec can't decode byte 0xff in position 0"[:60],
        {"a": "10", "b": "11"},
        "a.csv:11 is not valid CSV: unexpected end of data",
        {"a": "13", "b": "14"},
    ]


def test_columns_of_no_name_may_be_several(tmp_path):
    assert fields(write(tmp_path / "a.csv", "a,,\n1,2,3\n"))[0]["a"] == "1"


def test_a_column_is_named_once(tmp_path):
    path = write(tmp_path / "a.csv", "1,2\n")
    assert "data.columns has the column 'a' more than once" in complaint(path, columns=("a", "a"))


def test_what_is_wrong_with_a_header_is_wrong_with_the_file(tmp_path):
    for name, text in [("a.csv", b'"a"b,c\n1,2\n'), ("a.csv", b"\xff,c\n1,2\n"), ("a.tsv", b"\xff\tc\n1\t2\n")]:
        (tmp_path / name).write_bytes(text)
        with pytest.raises(UserError, match=re.escape(f"{tmp_path / name}:1 is not")):
            list(read_leniently(source(tmp_path / name)))


def test_what_reads_differently_has_another_fingerprint(tmp_path):
    text = '{"a": "1"}\n'
    for name in ("a.jsonl", "b.jsonl", "a.csv", "a.tsv", "a.txt", "a.conll", "a.dat"):
        write(tmp_path / name, text)
    write(tmp_path / "long.txt", text * 2)
    plain = Source("a.txt")
    sources = [
        *(Source(name) for name in ("a.jsonl", "a.csv", "a.tsv", "a.txt", "a.conll", "long.txt")),
        replace(plain, format="lines"),
        replace(plain, columns=("x",)),
        replace(plain, columns=("y",)),
        replace(plain, delimiter=":"),
        replace(plain, delimiter=";"),
        replace(plain, delimiter=";", columns=("x",)),
        replace(plain, delimiter=";", columns=("x", "y")),
        replace(plain, delimiter=";", columns=("x,y",)),
        Source("a.tsv", delimiter="\t"),
        Source({"x": "a.txt"}),
        Source({"y": "a.txt"}),
        Source({"x": "a.txt", "y": "a.txt"}),
        Source({"x": "long.txt"}),
    ]
    for memory in (None, tmp_path, tmp_path):
        assert len({fingerprint(one, memory) for one in sources}) == len(sources)
        assert [fingerprint(one, memory) for one in sources] == [fingerprint(one) for one in sources]
    same = [(Source("a.conll"), replace(plain, format="conll")), (Source("a.jsonl"), Source("b.jsonl"))]
    same.append((Source("a.dat", delimiter=";"), replace(plain, delimiter=";")))
    same.append((Source("a.jsonl"), Source("a.jsonl", delimiter=";", columns=("x",))))  # which says nothing there
    for one, other in same:
        assert fingerprint(one) == fingerprint(other)


def test_a_split_and_a_hub_data_set_have_fingerprints_of_their_own(tmp_path, monkeypatch):
    data = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "splits")
    monkeypatch.setattr(hub, "commit_of", lambda repository: "a")
    sources = [Source("splits"), Source("splits", "test"), Source("some/hub", "0"), Source("some/hub", "1")]
    assert len({fingerprint(one) for one in sources}) == 4
    assert fingerprint(sources[2]) == fingerprint(sources[2])
