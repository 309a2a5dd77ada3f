import json
import os

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from distft.data.sources import fingerprint, read
from distft.errors import UserError


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()


def rows(spec, split="train"):
    return list(read(str(spec), split, None))


def complaint(spec, split="train"):
    with pytest.raises(UserError) as caught:
        rows(spec, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


def test_utf16_is_refused_at_its_first_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n', encoding="utf-16")
    assert f"{path}:1 is not UTF-8" in complaint(path)


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
    assert [r.fields["text"] for r in rows(tmp_path / "one", "whatever")] == ["a", "b"]
    assert [(r.where, r.fields) for r in rows(tmp_path / "splits", "test")] == [
        (f"{tmp_path}/splits[0]", {"text": "b"})
    ]
    assert "no split 'validation'; it has train, test" in complaint(tmp_path / "splits", "validation")


@pytest.mark.parametrize("spec", ["nowhere.jsonl", "sub/nowhere.CSV", "./nowhere", "/nowhere/at/all", "~/nowhere-xyz"])
def test_a_missing_file_is_not_looked_for_on_the_hub(spec, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="does not exist"):
        read(spec, "train", None)  # before the first record is asked for


def test_unknown_suffix_and_foreign_folder(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "folder").mkdir()
    assert "known are .jsonl .json .csv .parquet" in complaint("a.txt")
    assert "was not written by datasets" in complaint("folder")


def test_hub_failure_is_one_sentence(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert "data 'someone/something' is no file or folder here" in complaint("someone/something")


def test_hub_data_set_is_loaded_by_name_config_and_split(monkeypatch):
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return datasets.Dataset.from_list([{"text": "a"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [r.where for r in read("someone/something", "dev", "main")] == ["someone/something[0]"]
    assert len(fingerprint("someone/something", "dev", "main")) == 64
    assert asked == [("someone/something", "main", "dev")] * 2


def test_fingerprint_follows_content_not_name(tmp_path):
    for name, text in [("a.jsonl", "a"), ("b.jsonl", "a"), ("c.jsonl", "c")]:
        (tmp_path / name).write_text(json.dumps({"text": text}))
    a, b, c = (fingerprint(f"{name}.jsonl", "train", None) for name in "abc")
    assert a == b != c


def test_fingerprint_of_a_folder_ignores_caches_of_datasets(tmp_path):
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "one")
    before = fingerprint("one", "train", None)
    (tmp_path / "one" / "cache-123.arrow").write_bytes(b"x")
    assert fingerprint("one", "train", None) == before
    (tmp_path / "one" / "extra.arrow").write_bytes(b"x")
    assert fingerprint("one", "train", None) != before


def test_a_file_is_read_again_only_where_it_may_have_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    first = fingerprint(str(path), "train", None, memory=tmp_path)
    assert first == fingerprint(str(path), "train", None)
    reads = []
    monkeypatch.setattr("distft.data.sources._hash_file", lambda file, digest: reads.append(file))
    assert fingerprint(str(path), "train", None, memory=tmp_path) == first
    assert reads == []
    os.utime(path, ns=(1, 1))
    assert fingerprint(str(path), "train", None, memory=tmp_path) != first  # nothing was read into it
    assert reads == [path]
