import errno
import fcntl
import hashlib
import json
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distft.data import encoding, sources, token_cache
from distft.data.cache_writer import CacheWriter
from distft.data.checksums import Damaged, SummedFile, sealed, unsealed
from distft.data.corpus import Corpus
from distft.data.records import Document, Encoded
from distft.data.sources import Source
from distft.data.templates import Template
from distft.data.token_cache import build_cache, content_of, root_of
from distft.errors import UserError
from distft.recipe.schema import Data
from distft.tasks.causal_lm import CausalEncoder


def byte_tokenizer():
    """One token a byte: lengths are plain to see."""
    vocab = {piece: i for i, piece in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


TEMPLATE = Template.load(byte_tokenizer(), Data())


class Stop(Exception):
    pass


@pytest.fixture
def data(tmp_path):
    """Makes a file of the records given, and the settings to read it."""

    def make(records, **settings):
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return Data(train=str(path), **{"cache": str(tmp_path / "cache"), "row_tokens": 16, **settings})

    return make


def run(data, check_stop=lambda: None, progress=lambda records: None, template=TEMPLATE):
    encoder = CausalEncoder(template, data.fields, data.row_tokens, drop=data.overlong == "drop")
    return build_cache(Source(data.train, data.train_split), encoder, data.cache, check_stop, progress)


def texts(corpus):
    return [TEMPLATE.tokenizer.decode(corpus.document(i)["tokens"]) for i in range(len(corpus))]


def targets_of(corpus):
    return [corpus.document(i).targets for i in range(len(corpus))]


def left_over(data):
    return [path.name for path in root_of(data.cache).iterdir() if ".tmp-" in path.name]


def test_what_goes_in_comes_out(data):
    settings = data([{"text": "hello"}, {"prompt": "a", "completion": "é🙂"}], row_tokens=100)
    corpus = Corpus.open(run(settings))
    assert texts(corpus) == ["hello</s>", "<|user|>\na\n<|assistant|>\né🙂</s>\n"]
    assert corpus.sizes.tolist() == [6, 33]
    assert targets_of(corpus) == [5, 7]
    assert corpus.sizes.dtype == np.int32
    document = corpus.document(1)
    assert (document["tokens"].dtype, document["targets"].dtype) == (np.int32, np.bool_)
    assert TEMPLATE.tokenizer.decode(document["tokens"][document["targets"]]) == "é🙂</s>"
    assert (document.size, document.record, document.part, document.draw) == (33, 1, None, 0)
    assert (corpus.meta.records, corpus.meta.documents, corpus.meta.size, corpus.meta.targets) == (2, 2, 39, 12)
    assert (corpus.meta.source, corpus.meta.notes) == (settings.train, {})
    for i in (-1, 2):
        with pytest.raises(IndexError):
            corpus.document(i)
    with pytest.raises(ValueError, match="read-only"):
        document["tokens"][0] = 0


def test_overlong_is_split_into_pieces_that_are_documents(data):
    settings = data([{"text": "x" * 39}, {"text": "short"}, {"prompt": "p" * 40, "completion": "c"}, {"text": ""}])
    corpus = Corpus.open(run(settings))
    # 40 tokens in three pieces; of the chat's 67 the last piece alone has a target, and its first token is none
    assert corpus.sizes.tolist() == [16, 16, 8, 6, 3]
    assert all(not corpus.document(i)["targets"][0] for i in range(len(corpus)))
    assert targets_of(corpus) == [15, 15, 7, 5, 1]
    assert [corpus.document(i).record for i in range(len(corpus))] == [0, 0, 0, 1, 2]
    assert corpus.meta.notes == {"longer than a row were split": 2, "without anything to predict were dropped": 5}


def test_overlong_is_dropped(data):
    corpus = Corpus.open(run(data([{"text": "x" * 16}, {"text": "x" * 15}], overlong="drop")))
    assert corpus.sizes.tolist() == [16]
    assert corpus.document(0).record == 1
    assert corpus.meta.notes == {"longer than a row were dropped": 1}


@pytest.mark.parametrize(
    ("records", "settings", "said"),
    [
        ([], {}, "has no records"),
        ([{"text": ""}], {}, "none of the 1 records .*: 1 without anything to predict"),
        ([{"messages": [{"role": "user", "content": "a"}]}], {}, "1 without anything to predict were dropped"),
        ([{"text": "x" * 40}] * 2, {"overlong": "drop"}, "of the 2 records .*: 2 longer than a row were dropped"),
    ],
)
def test_nothing_to_learn_is_an_error_and_leaves_nothing(data, records, settings, said):
    settings = data(records, **settings)
    with pytest.raises(UserError, match=said):
        run(settings)
    assert left_over(settings) == []


class Letters:
    """Columns of several kinds, any number of documents a record, and notes."""

    columns = {"small": "uint8", "real": "float32", "none": "int64"}  # noqa: RUF012

    def __init__(self, digest="letters"):
        self.digest = digest

    def encode(self, record, answered=True):
        text = record.fields["text"]
        documents = [
            Document({"small": [ord(c)], "real": np.arange(i) / 2, "none": np.zeros(0)}, size=i + 1, targets=7 * i)
            for i, c in enumerate(text)
        ]
        return Encoded(documents, {"had letters": len(text)} if text else {"were silent": 1})


def test_any_columns_and_any_number_of_documents_a_record(data):
    settings = data([{"text": "ab"}, {"text": ""}, {"text": "xyz"}])
    corpus = Corpus.open(
        build_cache(Source(settings.train), Letters(), settings.cache, lambda: None, lambda number: None)
    )
    found = [corpus.document(i) for i in range(len(corpus))]
    assert [chr(document["small"][0]) for document in found] == list("abxyz")
    assert [document["real"].tolist() for document in found] == [[], [0.0], [], [0.0], [0.0, 0.5]]
    assert [document["none"].tolist() for document in found] == [[]] * 5
    assert [document["small"].dtype for document in found] == [np.uint8] * 5
    assert {str(document[name].dtype) for document in found for name in ("real", "none")} == {"float32", "int64"}
    assert [(d.size, d.targets, d.record) for d in found] == [(1, 0, 0), (2, 7, 0), (1, 0, 2), (2, 7, 2), (3, 14, 2)]
    assert corpus.sizes.tolist() == [1, 2, 1, 2, 3]
    assert corpus.meta.notes == {"had letters": 5, "were silent": 1}
    assert (corpus.meta.records, corpus.meta.documents, corpus.meta.size, corpus.meta.targets) == (3, 5, 9, 28)


def test_what_the_notes_say_is_said_where_nothing_is_left(data):
    settings = data([{"text": ""}] * 3)
    with pytest.raises(
        UserError, match=r"none of the 3 records of .*a\.jsonl can be used for training: 3 were silent$"
    ):
        build_cache(Source(settings.train), Letters(), settings.cache, lambda: None, lambda number: None)
    assert left_over(settings) == []


def test_another_encoder_or_other_columns_have_a_cache_of_their_own(data, monkeypatch):
    settings = data([{"text": "ab"}])

    def made(encoder):
        return build_cache(Source(settings.train), encoder, settings.cache, lambda: None, lambda number: None)

    folders = {made(Letters()), made(Letters("others")), run(settings)}
    monkeypatch.setattr(Letters, "columns", {**Letters.columns, "real": "float64"})
    assert len({*folders, made(Letters())}) == 4
    monkeypatch.setattr(token_cache, "FORMAT", token_cache.FORMAT + 1)
    assert made(Letters()) not in folders


def test_made_once_and_again_only_for_what_matters(data, tmp_path, monkeypatch):
    settings = data([{"text": "hello", "other": "bye bye"}])
    first = run(settings)
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_write", lambda *a: pytest.fail("written twice"))
        assert run(settings) == first
        assert run(settings.model_copy(update={"seed": 3, "packing": False, "eval": "x"})) == first
        assert run(settings.model_copy(update={"train_split": "x"})) == first  # a file has no splits
    changes = [{"row_tokens": 17}, {"overlong": "drop"}, {"fields": {"text": "other"}}]
    others = [run(settings.model_copy(update=change)) for change in changes]
    others.append(run(data([{"text": "hullo", "other": "bye bye"}])))
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    template = Template.load(byte_tokenizer(), Data(template=str(tmp_path / "t.jinja")))
    others.append(run(settings, template=template))
    assert len({first, *others}) == 6


def test_runs_know_their_data_as_before_the_folders_changed(data):
    settings = data([{"text": "hello"}])
    source = Source(settings.train)
    known = [2, sources.fingerprint(source), "letters", sorted(Letters.columns.items())]
    expected = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    assert content_of(source, Letters(), settings.cache, lambda: None) == expected
    assert built(settings, Letters()).name != expected


@pytest.fixture
def each_record(monkeypatch):
    """Every record is a time to stop, and to keep what there is."""
    monkeypatch.setattr(encoding, "_EVERY", -1.0)


def test_stopping_leaves_nothing_half_written(data, each_record):
    settings = data([{"text": "hello"}] * 1000)
    calls = 0

    def check_stop():
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Stop

    seen = []
    with pytest.raises(Stop):
        run(settings, check_stop=check_stop, progress=seen.append)
    assert max(seen) < 5
    assert left_over(settings) == []
    folder = run(settings, progress=seen.append)
    assert seen[-1] == 1000
    assert Corpus.open(folder).meta.records == 1000


def of_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def built(settings, encoder, check_stop=lambda: None, progress=lambda records: None):
    return build_cache(Source(settings.train), encoder, settings.cache, check_stop, progress)


class Counting(Letters):
    """Counts what it encodes."""

    def __init__(self, digest="letters"):
        super().__init__(digest)
        self.encoded = 0

    def encode(self, record, answered=True):
        self.encoded += 1
        return super().encode(record)


MANY = [{"text": "ab" * (i % 4)} for i in range(150)]


@pytest.mark.parametrize("kept_before", [True, False])
def test_what_was_stopped_goes_on_and_is_the_same_to_the_byte(data, monkeypatch, each_record, kept_before):
    settings, calls = data(MANY), []

    def stop_late():
        calls.append(1)
        if len(calls) == 76:
            raise Stop

    at_once = built(settings, Letters())
    expected = of_files(at_once)
    at_once.rename(at_once.with_name("aside"))
    monkeypatch.setattr(encoding, "_KEEP_EVERY", -1.0 if kept_before else 1000.0)
    first, second = Counting(), Counting()
    with pytest.raises(Stop):
        built(settings, first, stop_late)
    assert not at_once.exists()
    again = built(settings, second)
    assert (first.encoded, second.encoded) == (75, 75)
    assert of_files(again) == expected


def test_what_was_killed_goes_on_from_what_was_on_the_disk(data, monkeypatch, each_record):
    settings = data(MANY)
    monkeypatch.setattr(encoding, "_KEEP_EVERY", -1.0)
    add = CacheWriter.add

    def killed(self, encoded):
        if self.records == 117:
            os._exit(9)
        add(self, encoded)

    pid = os.fork()
    if pid == 0:
        CacheWriter.add = killed
        built(settings, Letters())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    encoder = Counting()
    folder = built(settings, encoder)
    assert encoder.encoded == 33
    elsewhere = data(MANY, cache=f"{settings.cache}-of-its-own")
    assert of_files(folder) == of_files(built(elsewhere, Letters()))


@pytest.mark.parametrize("damage", ["cut off", "no JSON", "another number", "another byte", "of other columns"])
def test_what_cannot_be_gone_on_with_is_begun_anew(data, each_record, damage):
    settings = data([{"text": "ab"}] * 100)
    root, calls = root_of(settings.cache), []

    def stop():
        calls.append(1)
        if len(calls) == 50:
            raise Stop

    with pytest.raises(Stop):
        built(settings, Letters(), stop)
    [path] = root.glob("*.part/progress.json")
    kept = json.loads(unsealed(path.read_text()))
    if damage == "cut off":
        path.with_name("real.column.bin").write_bytes(b"")
    elif damage == "no JSON":
        path.write_text("{")
    elif damage == "another number":
        path.write_text(path.read_text().replace('"records": ', '"records": 1'))
    elif damage == "another byte":
        content = bytearray(path.with_name("records.bin").read_bytes())
        content[kept["sums"]["records"]["bytes"] - 5] ^= 1
        path.with_name("records.bin").write_bytes(content)
    else:
        path.write_text(sealed(json.dumps({**kept, "ends": {"others": 0}})))
    encoder = Counting()
    assert len(Corpus.open(built(settings, encoder))) == 200
    assert encoder.encoded == 100


def test_without_locks_nobody_goes_on_with_what_another_writes(data, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    def stop():
        if list(root_of(settings.cache).glob("*/sizes.bin")):
            raise Stop

    settings = data(MANY)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(Stop):
        built(settings, Letters(), stop)
    assert [path for path in root_of(settings.cache).iterdir() if path.is_dir()] == []


def test_nothing_has_the_final_name_before_the_rename(data, monkeypatch):
    def killed(temporary, folder):
        numbers = {f"{name}.bin" for name in ("sizes", "targets", "records", "contents")}
        columns = {f"{name}.{part}.bin" for name in ("tokens", "targets") for part in ("offsets", "column")}
        assert {path.name for path in temporary.iterdir()} == {*numbers, *columns, "meta.json", "checksums.json"}
        raise Stop

    settings = data([{"text": "hello"}])
    monkeypatch.setattr(token_cache.Path, "rename", killed)
    with pytest.raises(Stop):
        run(settings)
    assert [path.suffix for path in root_of(settings.cache).iterdir() if path.is_dir()] == [".part"]


def test_data_that_change_while_they_are_read_are_not_kept_under_their_old_name(data, monkeypatch):
    settings = data([{"text": "hello"}])
    path, add = Path(settings.train), CacheWriter.add

    def add_and_change(writer, encoded):
        add(writer, encoded)
        path.write_text(json.dumps({"text": "howdy"}))

    monkeypatch.setattr(CacheWriter, "add", add_and_change)
    with pytest.raises(UserError, match=r"a\.jsonl changed while being read; run the same command again"):
        run(settings)
    assert left_over(settings) == []


def test_bad_record_leaves_nothing(data):
    settings = data([{"text": "hello"}, {"txt": "hello"}])
    with pytest.raises(UserError, match=r"a\.jsonl:2 fits no format"):
        run(settings)
    assert left_over(settings) == []


@pytest.mark.parametrize(("owner", "name"), [(SummedFile, "write"), (SummedFile, "sync")])
def test_full_disk_is_one_sentence_and_leaves_nothing(data, monkeypatch, owner, name):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    settings = data([{"text": "hello"}])
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(UserError, match=r"No space left on device.*data\.cache"):
        run(settings)
    assert left_over(settings) == []


def test_cache_that_is_no_folder(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache"):
        run(data([{"text": "hello"}], cache=str(tmp_path / "file")))


def test_lost_race_takes_what_is_there(data, monkeypatch):
    settings = data([{"text": "hello"}])

    def other_job_first(self):
        if not left_over(settings)[1:]:  # the other job does not meet another one
            monkeypatch.undo()
            monkeypatch.setattr(fcntl, "flock", no_locks)
            run(settings)
        return finish(self)

    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    finish = CacheWriter.finish
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(CacheWriter, "finish", other_job_first)
    assert texts(Corpus.open(run(settings))) == ["hello</s>"]
    assert left_over(settings) == []


def test_second_job_waits_for_the_first_and_hears_a_stop(data, monkeypatch):
    settings = data([{"text": "hello"}] * 200)
    monkeypatch.setattr(token_cache, "_POLL", 0.01)
    halfway, go_on = threading.Event(), threading.Event()
    waited = []

    def slowly(records):
        halfway.set()
        assert go_on.wait(10)

    first = threading.Thread(target=run, args=(settings,), kwargs={"progress": slowly})
    first.start()
    assert halfway.wait(10)

    def stop():
        raise Stop

    with pytest.raises(Stop):
        run(settings, check_stop=stop)

    def wait():
        waited.append(1)
        go_on.set()

    folder = run(settings, check_stop=wait, progress=lambda records: pytest.fail("did the work twice"))
    first.join(10)
    assert waited
    assert len(Corpus.open(folder)) == 200


def test_only_stale_temporary_folders_are_removed(data):
    settings = data([{"text": "hello"}])
    root = root_of(settings.cache)
    long_ago = time.time() - 2 * 86400
    for name in ("dead", "alive"):
        (root / f"0.tmp-{name}").mkdir(parents=True)
        (root / f"0.tmp-{name}" / "tokens.bin").write_bytes(b"x")
        os.utime(root / f"0.tmp-{name}" / "tokens.bin", (long_ago, long_ago if name == "dead" else time.time()))
        os.utime(root / f"0.tmp-{name}", (long_ago, long_ago))  # nothing was created in it for long
    run(settings)
    assert left_over(settings) == ["0.tmp-alive"]


def test_others_may_read_it_as_far_as_umask_says(data):
    before = os.umask(0o027)
    try:
        folder = run(data([{"text": "hello"}]))
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o640}


def test_default_cache_folder(data, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert run(data([{"text": "hello"}], cache=None)).parent == tmp_path / "xdg" / "distft" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run(data([{"text": "hello"}], cache=None)).parent == tmp_path / "home" / ".cache" / "distft" / "tokens"


def test_damaged_cache_is_noticed(data):
    for name in ("targets.column", "tokens.offsets", "sizes", "records"):
        folder = run(data([{"text": f"hello {name}"}]))
        with (folder / f"{name}.bin").open("ab") as file:
            file.write(bytes(8))
        with pytest.raises(Damaged, match=rf"damaged \(.*{name}.*run the same command again"):
            Corpus.open(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(Damaged, match=r"meta\.json"):
        Corpus.open(folder)
    with pytest.raises(Damaged, match="No such file"):
        Corpus.open(folder / "nowhere")
