"""Files in other encodings than UTF-8."""

from __future__ import annotations

import codecs
import gzip
from pathlib import Path

import pytest
from pydantic import ValidationError

from distft.data.records import Broken
from distft.data.sources import Source, fingerprint, read, read_leniently
from distft.errors import UserError
from tests.unit.recipes import recipe

TEXT = "text\tlabel\r\n我在上海\t好\r\n\u0a0a 中\t坏\r\n"  # \u0a0a and 上 (4e0a) have the byte of a line's end
ROWS = [{"text": "我在上海", "label": "好"}, {"text": "\u0a0a 中", "label": "坏"}]


def of(path: Path, encoding: str | None = None) -> list[dict[str, object]]:
    return [record.fields for record in read(Source(str(path), encoding=encoding))]


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
        ("\ufeff".encode("gb18030"), "gb18030"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, mark: bytes, encoding: str, named: bool) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(mark + TEXT.encode(encoding))
    assert of(path, encoding if named else None) == ROWS
    packed = tmp_path / "a.tsv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert of(packed) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-be", "gb18030", "GB18030", "UTF-8"])
def test_without_a_mark_the_recipe_says_it(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(TEXT.encode(encoding))
    assert of(path, encoding) == ROWS


@pytest.mark.parametrize(
    ("encoding", "word"),
    [
        ("latin-1", "Grüße"),
        ("cp1252", "„so“ €"),
        ("shift_jis", "表示ソ"),
        ("big5", "功許蓋"),
        ("euc-kr", "한국"),
        ("cp500", "é"),
    ],
)
def test_every_format_of_text_has_an_encoding(tmp_path: Path, encoding: str, word: str) -> None:
    def written(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    assert of(written("a.jsonl", f'{{"text": "{word}"}}\n'), encoding) == [{"text": word}]
    assert of(written("a.json", f'[\n{{"text": "{word}"}}]\n'), encoding) == [{"text": word}]
    assert of(written("a.csv", f'text\n"{word}\n"\n'), encoding) == [{"text": f"{word}\n"}]
    assert of(written("a.conll", f"{word.split()[0]} O\n"), encoding) == [{"tokens": [word.split()[0]], "tags": ["O"]}]
    text = written("a.txt", f"{word}\n{word}")
    assert of(text, encoding) == [{"text": word}] * 2
    parallel = Source({"source": str(text), "target": str(text)}, encoding=encoding)
    assert [record.fields for record in read(parallel)] == [{"source": word, "target": word}] * 2
    assert fingerprint(parallel) != fingerprint(Source(parallel.spec))
    assert fingerprint(Source(str(text), encoding=encoding)) != fingerprint(Source(str(text)))


def test_utf8_has_one_fingerprint_however_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    names = (None, "utf-8", "UTF8", "utf-8-sig")
    assert len({fingerprint(Source(str(tmp_path / "a.txt"), encoding=name)) for name in names}) == 1


def test_a_mark_outweighs_no_other_encoding_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\n", encoding="utf-8-sig")
    with pytest.raises(UserError, match=r"begins with the byte-order mark of utf-8, but data\.encoding is gb18030"):
        of(path, "gb18030")
    path.write_bytes("abc\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"looks like UTF-16 without a byte-order mark; set data\.encoding"):
        of(path)


def test_a_line_that_does_not_decode_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("好\n".encode("gb18030") + b"\xff\xff\n" + "好".encode("gb18030"))
    _, broken, _ = read_leniently(Source(str(path), encoding="gb18030"))
    assert isinstance(broken, Broken)
    assert (broken.where, "is not gb18030" in broken.why) == (f"{path}:2", True)
    with pytest.raises(UserError, match=r"a\.txt:1 is not UTF-8 .*; name the file's encoding in data.encoding"):
        of(path)


def test_recipes_name_encodings_that_there_are() -> None:
    [part] = recipe(data={"train": "a.txt", "encoding": "gb18030"}).parts()
    assert part.train[0].encoding == "gb18030"
    for wrong in ("gb18080", "hex", ""):
        with pytest.raises((ValidationError, UserError), match="is no encoding of text"):
            recipe(data={"train": "a.txt", "encoding": wrong})
