"""Data and models from a hub: the right commit, what breaks off on the way, what is refused, and no token anywhere."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distft.data import hub_errors
from distft.data.hub_datasets import chosen_of, patterns_of
from distft.errors import UserError
from distft.run.commits import Repository
from tests.hub import Hub, running
from tests.unit.data.hub_client import Client

TOKEN = "hf_" + "Tt0ken" * 6
CARD = """\
---
license: mit
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*
  - split: test
    path: en/test.parquet
- config_name: de
  default: true
  data_files: "**/de.jsonl"
dataset_info:
- config_name: en
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names: {'0': bad, '1': good}
---
# A data set
"""


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def parquet(*texts: str) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.table({"text": list(texts), "label": [1] * len(texts)}), target)
    return target.getvalue()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running() as made:
        yield made


@pytest.fixture(autouse=True)
def fresh(hub: Hub) -> None:
    hub.forget()


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    made = Client(hub.address, tmp_path_factory.mktemp("hub") / "home")
    yield made
    made.close()


@pytest.fixture(scope="module")
def offline(hub: Hub, client: Client) -> Iterator[Client]:
    """The same cache, without a hub."""
    made = Client(hub.address, client.home, offline=True)
    yield made
    made.close()


def texts(found: dict[str, list[dict[str, str]]]) -> list[str]:
    return [row["text"] for row in found["rows"]]


def test_a_revision_is_the_commit_that_it_stands_for_now(hub: Hub, client: Client, offline: Client) -> None:
    first = hub.commit("datasets/org/moves", {"train.jsonl": lines("old")})
    hub.commit("datasets/org/moves", {"train.jsonl": lines("tagged")}, branch="v1")
    assert client.order("commit", name="org/moves") == first
    second = hub.commit("datasets/org/moves", {"train.jsonl": lines("new")})
    assert client.order("commit", name="org/moves") == second
    assert client.order("commit", name="org/moves", revision=first) == first
    assert texts(client.order("load", name="org/moves")) == ["new"]
    assert texts(client.order("load", name="org/moves", revision="v1")) == ["tagged"]
    assert texts(client.order("load", name="org/moves", revision=first)) == ["old"]
    hub.forget()
    assert texts(client.order("load", name="org/moves", revision=first)) == ["old"]
    assert hub.asked() == []  # a commit that is there needs no hub
    assert texts(offline.order("load", name="org/moves", revision=first)) == ["old"]
    assert texts(offline.order("load", name="org/moves")) == ["new"]  # as it was known last
    assert (
        "data 'org/moves': HF_HUB_OFFLINE keeps the hub from being asked; main is taken as it was known last"
        in offline.said()
    )


def test_without_a_hub_it_is_said_what_to_download(hub: Hub, client: Client, offline: Client) -> None:
    commit = hub.commit("datasets/org/parts", {"train-0.jsonl": lines("a"), "train-1.jsonl": lines("b")})
    told = offline.error("load", name="org/parts", revision=commit)
    assert told.startswith("data 'org/parts' is neither a local file or folder nor, with all files of commit ")
    assert "HF_HUB_OFFLINE keeps the hub from being asked" in told
    assert told.endswith(f"with the same HF_HOME: hf download org/parts --repo-type dataset --revision {commit}")
    client.order("fetch", name="org/parts", only=["train-0.jsonl"])
    assert "with all files of commit" in offline.error("load", name="org/parts", revision=commit)
    client.order("fetch", name="org/parts")  # as `hf download` does; `datasets` has seen none of it
    assert texts(offline.order("load", name="org/parts", revision=commit)) == ["a", "b"]
    told = offline.error("fetch", name="org/none", kind="model")
    assert told.startswith("model.path: 'org/none' is neither a local file or folder nor, with all files of revision m")
    assert told.endswith("hf download org/none")


def test_files_that_nobody_knows_to_be_all_are_no_data(hub: Hub, client: Client, offline: Client) -> None:
    """As an earlier version of the library, or a copy by hand, leaves them."""
    commit = hub.commit("datasets/org/listed", {"train-0.jsonl": lines("a"), "train-1.jsonl": lines("b")})
    folder = Path(client.order("fetch", name="org/listed"))
    listing = folder.parents[1] / "trees" / f"{commit}.json"
    listing.unlink()
    (folder / "train-1.jsonl").unlink()
    told = offline.error("load", name="org/listed", revision=commit)
    assert "does not know which files commit" in told
    assert "hf download org/listed --repo-type dataset --revision" in told


def test_a_file_of_another_size_is_not_read(hub: Hub, client: Client) -> None:
    hub.commit("datasets/org/bent", {"train.jsonl": lines("a")})
    (Path(client.order("fetch", name="org/bent")) / "train.jsonl").resolve().write_bytes(lines("a", "b"))
    told = client.error("load", name="org/bent")
    assert f"train.jsonl has {len(lines('a', 'b'))} bytes, and {len(lines('a'))} on the hub; remove " in told


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_what_there_is_not(hub: Hub, client: Client, kind: str) -> None:
    hub.commit(f"{kind}s/org/there", {"config.json": b"{}"})
    key, what = ("model.revision", "model") if kind == "model" else ("data.revision", "data set")
    told = client.error("commit", name="org/there", kind=kind, revision="nope")
    assert f"'org/there' has no revision 'nope' on the hub; set {key} to a branch, tag or commit" in told
    told = client.error("fetch", name="org/there", kind=kind, revision="0" * 40)
    assert f"has no revision '{'0' * 40}'" in told
    told = client.error("commit", name="org/missing", kind=kind)
    assert f"'org/missing' is neither local nor a {what} that the hub shows without a token (401)" in told
    assert "set HF_TOKEN to a token that may read it, or correct the name" in told
    assert "is neither a local file or folder nor a hub id" in client.error("commit", name="a/b/c", kind=kind)


def test_a_token_opens_what_is_its_own_and_is_nowhere_after_that(hub: Hub, client: Client) -> None:
    hub.tokens |= {TOKEN, "hf_other"}
    hub.commit("datasets/org/private", {"train.jsonl": lines("secret")}, token=TOKEN)
    hub.commit("models/org/gated", {"config.json": b"{}"}, token=TOKEN, gated=True)
    assert "without a token (401)" in client.error("load", name="org/private")
    assert "shows to this token (404)" in client.error("load", name="org/private", token="hf_other")
    told = client.error("load", name="org/private", token="hf_invalid")
    assert "the hub does not know the token (401); set HF_TOKEN to a valid one" in told
    for token, status in ((None, 401), ("hf_other", 403)):
        told = client.error("fetch", name="org/gated", kind="model", token=token)
        assert f"is gated on the hub ({status}); accept its terms on its page, and set HF_TOKEN" in told
    assert texts(client.order("load", name="org/private", token=TOKEN)) == ["secret"]
    client.order("fetch", name="org/gated", kind="model", token=TOKEN)
    assert {one.token for one in hub.asked("org/private/resolve")} >= {TOKEN}
    told = client.error("load", name="org/private", token=f"{TOKEN}\xe9")
    assert "HF_TOKEN has characters that no token has" in told
    assert TOKEN not in client.said()
    held = [path for path in client.home.parent.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert held == []
    assert not (client.home / "token").exists()


def test_a_busy_hub_is_asked_again(hub: Hub, client: Client) -> None:
    commit = hub.commit("datasets/org/busy", {"train.jsonl": lines("a")})
    hub.fail("/api/datasets/org/busy", times=2, status=429, headers={"Retry-After": "0"})
    hub.fail("/tree/", status=500)
    assert client.order("commit", name="org/busy") == commit
    assert texts(client.order("load", name="org/busy")) == ["a"]
    assert "data 'org/busy': the hub answers 429; next try in" in client.said()
    hub.fail("/api/datasets/org/busy", times=99, status=429, headers={"Retry-After": "7200"})
    told = client.error("commit", name="org/busy")  # nobody waits for two hours
    assert "the hub takes no more requests for some minutes (429)" in told
    assert "or set HF_TOKEN, which raises the limits" in told
    hub.forget()
    hub.commit("datasets/org/broken", {"train.jsonl": lines("a")})
    hub.fail("org/broken", times=99, status=503)
    assert "the hub answers 503; run the same command again later" in client.error("commit", name="org/broken")
    hub.fail("org/busy", times=99, status=503)
    assert client.order("commit", name="org/busy") == commit  # as it was known last


def test_what_breaks_off_goes_on_where_it_was(hub: Hub, client: Client) -> None:
    """In steps of the 10 MiB that the library takes at a time."""
    content = b"a long line\n" * 1_000_000
    commit = hub.commit("models/org/large", {"weights.bin": content})
    hub.fail("GET .*weights.bin", cut=11_000_000)
    folder = Path(client.order("fetch", name="org/large", kind="model"))
    assert folder.name == commit
    assert (folder / "weights.bin").read_bytes() == content
    assert [one.range for one in hub.asked("GET .*weights.bin")] == ["", f"bytes={10 << 20}-"]


@pytest.mark.parametrize("abrupt", [False, True])
def test_a_connection_that_always_breaks_is_a_sentence(hub: Hub, client: Client, abrupt: bool) -> None:
    name = f"org/cut-{abrupt}".lower()
    hub.commit(f"datasets/{name}", {"train.jsonl": lines(*"abc")})
    hub.fail("GET .*api/datasets", times=99, cut=10, abrupt=abrupt)
    told = client.error("commit", name=name)
    assert f"data '{name}' could not be downloaded: the connection broke off" in told
    assert told.endswith("run the same command again")
    hub.forget()
    hub.fail("GET .*train.jsonl", cut=3, abrupt=abrupt)
    assert texts(client.order("load", name=name)) == [*"abc"]


@pytest.mark.parametrize(
    ("pattern", "order"),
    [("GET /api/datasets/org/silent$", "commit"), pytest.param("/tree/", "fetch", marks=pytest.mark.long)],
)
def test_a_hub_that_never_answers_is_a_sentence(hub: Hub, client: Client, pattern: str, order: str) -> None:
    """The library asks for a list of files without any limit of time, and six times in half a minute."""
    hub.commit("datasets/org/silent", {"train.jsonl": lines(*"abc")})
    hub.fail(pattern, times=99, seconds=100.0)
    told = client.error(order, name="org/silent", timeout=0.5)
    assert "data 'org/silent' could not be downloaded: the hub does not answer (ReadTimeout); check HF_ENDPOINT" in told
    assert len(hub.asked(pattern)) <= 6


def test_a_stop_does_not_wait_for_a_download(hub: Hub, tmp_path: Path) -> None:
    hub.commit("models/org/slow", {f"{number}.safetensors": b"%d" % number * 50_000 for number in range(40)})
    hub.fail("GET .*safetensors", times=99, seconds=0.3)
    client = Client(hub.address, tmp_path / "home")
    try:
        told = client.error("fetch", name="org/slow", kind="model", stop=0.5)
    finally:
        client.close()
    assert told.startswith("stopped: stopped on request (SIGTERM)")
    assert len(hub.asked("GET .*safetensors")) < 40


def test_a_configuration_is_downloaded_alone(hub: Hub, client: Client, offline: Client) -> None:
    files = {
        "README.md": CARD.encode(),
        "en/train-0.parquet": parquet("one"),
        "en/train-1.parquet": parquet("two"),
        "en/test.parquet": parquet("three"),
        "de.jsonl": lines("eins"),
        "more/de.jsonl": lines("zwei"),
        "fr/train.jsonl": lines("un"),
    }
    commit = hub.commit("datasets/org/languages", files)
    assert sorted(texts(client.order("load", name="org/languages"))) == ["eins", "zwei"]
    assert hub.asked("resolve/.*/(en|fr)/") == []
    found = client.order("load", name="org/languages", config="en")
    assert [row["text"] for row in found["rows"]] == ["one", "two"]
    assert found["features"] == {"text": "Value", "label": "ClassLabel"}  # as the card says
    assert texts(client.order("load", name="org/languages", config="en", split="test")) == ["three"]
    assert texts(offline.order("load", name="org/languages", config="en", revision=commit)) == ["one", "two"]
    assert hub.asked("resolve/.*/fr/") == []
    told = client.error("load", name="org/languages", config="it")
    assert told == "data 'org/languages' has no configuration 'it'; set data.hub_config to one of en, de"
    told = client.error("load", name="org/languages", split="validation")
    assert "data 'org/languages' cannot be loaded with split 'validation': " in told


def test_which_configuration_is_meant() -> None:
    repository = Repository("dataset", "org/x")
    several = [{"config_name": "a"}, {"config_name": "b"}]
    with pytest.raises(UserError, match=r"data 'org/x' has several configurations; set data.hub_config to one of a, b"):
        chosen_of(several, None, repository)
    assert chosen_of([], "a", repository) is None
    assert chosen_of(several[:1], None, repository) == several[0]
    assert chosen_of([*several, {"config_name": "default"}], None, repository) == {"config_name": "default"}


@pytest.mark.parametrize(
    ("config", "patterns"),
    [
        ({}, ["*"]),
        ({"data_dir": "en/"}, ["en/*"]),
        ({"data_files": "a.csv"}, ["a.csv", "a.csv"]),
        ({"data_files": "./x/**/*.csv"}, ["x/**/*.csv", "x/*.csv"]),
        ({"data_dir": "en", "data_files": ["a", {"split": "test", "path": ["b"]}]}, ["en/a", "en/a", "en/b", "en/b"]),
        ({"data_files": {"train": "a", "test": ["b"]}}, ["a", "a", "b", "b"]),
    ],
)
def test_patterns_of_a_configuration(config: dict[str, object], patterns: list[str]) -> None:
    assert patterns_of(config) == patterns


def test_a_full_disk_and_one_that_is_not_ours() -> None:
    for number, told in ((errno.ENOSPC, "does not fit on the disk"), (errno.EACCES, "/cache/x: Permission denied")):
        with (
            pytest.raises(UserError, match=told) as caught,
            hub_errors.told(Repository("model", "org/x")),
        ):
            raise OSError(number, "Permission denied", "/cache/x")
        assert "set HF_HOME" in str(caught.value)


def test_an_answer_that_is_none_of_a_hub(hub: Hub, client: Client) -> None:
    hub.fail("org/portal", status=200, headers={"Content-Type": "text/html"})
    assert "the answer is none of a hub" in client.error("commit", name="org/portal")
