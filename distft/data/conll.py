"""CoNLL columns: sentences of one token per line, in the forms that corpora have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from distft.data import text_lines
from distft.data.records import Broken, Record
from distft.errors import UserError

_HEAD = 5000  # lines by which the form of a file is told
_BLANKS = re.compile(r"[ \t]+")  # not \s: a token may hold a no-break space
_TAG = re.compile(r"[OBIESMLU]|[BIESMLU][-_]\S+|\S+[-_][BIESMLU]", re.IGNORECASE)
_MARKED = re.compile(r"[BIESMLU][-_](\S+)|(\S+)[-_][BIESMLU]", re.IGNORECASE)
_BRACKETS = re.compile(r"(\([^()*\s]+)?\*\)?|\([^()*\s]+\)")  # of CoNLL-2012: (ORG* * *) (GPE)
_COUNT = re.compile(r"\d+([-.]\d+)?")  # CoNLL-U counts contractions 1-2, and words that are not there 1.1
_NEW = re.compile(r"# new(par|doc)\b")
_DOCUMENTS = re.compile(r"#(begin|end) document\b")
_CHUNKS = frozenset(  # a column of them stands beside that of entities since CoNLL-2003
    ("NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP", "NC", "PC", "VC")
)
_UNUSED = "_"
_DOCUMENT = "-DOCSTART-"
_PLAIN = (("tokens", 0), ("tags", -1))

_Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Form:
    """What is where in the lines of a file.

    Attributes:
        fields: names of columns and their places; negative: from the right.
        separator: between the columns; None: blanks and tabs.
        index: the column that counts the words of a sentence.
        width: columns of most lines, by which comments are told; 0: not known.
        brackets: fields in which brackets mark entities.
        as_ever: the first lines say the same where blanks divide them, the first column is the token, the last its tag.
    """

    fields: tuple[tuple[str, int], ...] = _PLAIN
    separator: str | None = None
    index: int | None = None
    width: int = 0
    brackets: tuple[str, ...] = ()
    as_ever: bool = True

    def described(self) -> list[Any]:
        """For digests of what is read: nothing where it is what it was before files were looked at."""
        return [] if self.as_ever else [self.fields, self.separator, self.index, self.brackets]


def form_of(
    path: Path, columns: Sequence[str], delimiter: str | None, encoding: str | None, detect: bool = True
) -> Form:
    """The form of a file by its first lines.

    Args:
        columns: names of the first columns as a recipe has them; "_": not read.
        detect: False: what is not said is as CoNLL-2003 has it, whatever is in the file.

    Raises:
        UserError: which columns are meant is not clear.
    """
    head = [line for line in islice(text_lines.lines(path, encoding), _HEAD) if isinstance(line, str)]
    filled = [line for line in head if line.strip() and not line.startswith(("#", _DOCUMENT))]
    separator = delimiter or (_separator(filled) if detect else None)
    sentences = list(_sentences(head, separator))
    rows = [row for sentence in sentences for row in sentence]
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    index = _index(sentences, width) if detect else None
    if columns:
        named = [(name, place) for place, name in enumerate(columns) if name != _UNUSED]
        twice = next((name for name, number in Counter(name for name, _ in named).items() if number > 1), None)
        if twice is not None:
            raise UserError(f"data.columns has the column {twice!r} more than once; write _ for those not to be read")
        fields = tuple(named)
    else:
        fields = _guessed(path, rows, index, width) if detect else _PLAIN
    cells = {name: [row[place] for row in rows if -len(row) <= place < len(row)] for name, place in fields}
    brackets = tuple(name for name, held in cells.items() if _is_bracketed(held))
    same = separator is None or all(_split(line, separator) == _split(line, None) for line in filled)
    as_ever = fields == _PLAIN and index is None and not brackets and same
    return Form(fields, separator, index, width if detect else 0, brackets, as_ever)


def conll(path: Path, form: Form, encoding: str | None = None) -> Iterator[Record | Broken]:
    """Sentences, with a list for each field; blank lines between."""
    sentence: list[tuple[int, str | Broken]] = []
    for number, line in enumerate(chain(text_lines.lines(path, encoding), ("",)), 1):
        if isinstance(line, str) and (not line.strip() or line.startswith(_DOCUMENT)):
            if sentence and (record := _sentence(path, sentence, form)) is not None:
                yield record
            sentence = []
        elif isinstance(line, Broken) or not _is_comment(line, form, not sentence):
            sentence.append((number, line))


def _is_comment(line: str, form: Form, first: bool) -> bool:
    """`first`: no word of the sentence came before. A token may be a # or begin with one."""
    if not line.startswith("#"):
        return False
    if (line.startswith("# ") and "=" in line) or (form.index is not None and form.width):
        return True
    if not form.width or not first:
        return bool(form.width and _DOCUMENTS.match(line))
    other = len(_split(line, form.separator)) != form.width
    return bool(_NEW.match(line) or _DOCUMENTS.match(line)) or (
        other and line.startswith(("# ", "#\t")) and len(line.strip()) > 1
    )


def _sentence(path: Path, found: Sequence[tuple[int, str | Broken]], form: Form) -> Record | Broken | None:
    begin, width = found[0][0], 0
    kept = []
    for number, line in found:
        if isinstance(line, Broken):
            return line
        columns = _split(line, form.separator)
        if len(columns) == 1 and form.fields == _PLAIN:
            return Broken(f"{path}:{number}", f"has the token {columns[0]!r} but its tag is missing; add a column")
        width = width or len(columns)
        if len(columns) != width:
            why = f"has {len(columns)} columns but its sentence began with {width} in line {begin}; make them equal"
            return Broken(f"{path}:{number}", why)
        if (needed := _needed(form)) > width:
            return Broken(f"{path}:{number}", f"has {width} columns but {needed} are read; see data.columns")
        if form.index is None or columns[form.index].isdecimal():
            kept.append(columns)
    values = {name: [columns[place] for columns in kept] for name, place in form.fields}
    if form.index is not None and values.get("tokens") in ([], [_DOCUMENT]):
        return None
    return Record(f"{path}:{begin}", {**values, **{name: _opened(values[name]) for name in form.brackets}})


def _needed(form: Form) -> int:
    """Columns that a line must have: the last one, which is counted from the right, lies behind all others."""
    places = [place for _, place in form.fields]
    return 1 + max([*places, -1 if form.index is None else form.index]) + any(place < 0 for place in places)


def _split(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return _BLANKS.split(line.strip(" \t\r\n"))
    return [cell.strip(" ") for cell in line.strip(" \t\r\n").split(separator)]


def _separator(lines: Sequence[str]) -> str | None:
    """A tab if the lines are divided evenly by it and no last column, where the tag is, holds a blank."""
    rows = [_split(line, "\t") for line in lines if "\t" in line]
    even = len({len(row) for row in rows}) == 1
    return "\t" if rows and len(rows) == len(lines) and even and not any(" " in row[-1] for row in rows) else None


def _sentences(head: Sequence[str], separator: str | None) -> Iterator[_Rows]:
    sentence: list[list[str]] = []
    for line in chain(head, ("",)):
        if line.strip() and not line.startswith(("#", _DOCUMENT)):
            sentence.append(_split(line, separator))
        elif sentence and not line.startswith("#"):
            yield sentence
            sentence = []


def _index(sentences: Sequence[_Rows], width: int) -> int | None:
    """The column that counts the words of each sentence, with a token and a tag behind it."""
    for place in range(min(3, width - 2)):
        if all(_counts(sentence, place) for sentence in sentences) and (
            len(sentences) > 1 or any(len(sentence) > 1 for sentence in sentences)
        ):
            return place
    return None


def _counts(sentence: _Rows, place: int) -> bool:
    if any(len(row) <= place or not _COUNT.fullmatch(row[place]) for row in sentence):
        return False
    before = {tuple(row[:place]) for row in sentence}
    numbers = [int(row[place]) for row in sentence if row[place].isdecimal()]
    return (
        len(before) == 1 and numbers[:1] in ([0], [1]) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    )


def _guessed(path: Path, rows: _Rows, index: int | None, width: int) -> tuple[tuple[str, int], ...]:
    """The places of the token and its tag, as CoNLL-2003 has them but for what counts words before.

    Raises:
        UserError: other columns may as well be them.
    """
    token = 0 if index is None else index + 1
    if index == 2 and width > 11:  # CoNLL-2012; the last column is not of entities, but of mentions
        return (("tokens", 3), ("tags", 10))
    even = [row for row in rows if len(row) == width]
    if width < 2 or (width == 2 and not _types([row[0] for row in even])):
        return _PLAIN
    columns = list(zip(*even, strict=True))
    last = _types(columns[-1])
    others = {place: found for place in range(width - 1) if place != index and (found := _types(columns[place]))}
    if index is None and width > 2 and len(even) > 4 and all(map(str.isdecimal, columns[0])):
        raise _unclear(
            path, "the first column holds only numbers that do not count the words of sentences", width, 1, -1
        )
    if index == 0 and width == 10 and all(re.fullmatch(r"\d+|_", cell) for cell in columns[6]):
        raise _unclear(path, "the columns are CoNLL-U's, of which several may be the tags", width, 1, 3)
    same = [place for place, found in others.items() if last and (last & found or not found <= _CHUNKS)]
    empty = set(columns[-1]) <= {"O", "o"}
    if same or (others and not last and not (empty and index is None)):
        chosen = (same or list(others))[0]
        told = ", ".join(str(place + 1) for place in [*others, *([width - 1] if last or empty else [])])
        word = token if chosen != token else token + 1
        raise _unclear(path, f"the tags may be in column {told.replace(', ', ' or ')} of {width}", width, word, chosen)
    return (("tokens", token), ("tags", -1))


def _unclear(path: Path, what: str, width: int, token: int, tag: int) -> UserError:
    names = [_UNUSED] * width
    names[token], names[tag] = "tokens", "tags"
    return UserError(f"{path}: {what}; choose with data.columns, such as [{', '.join(names)}]")


def _types(cells: Sequence[str]) -> set[str]:
    """The types of entities that a column of tags marks; none if other things are in it."""
    kinds = set(cells)
    if not all(map(_TAG.fullmatch, kinds)):
        return set()
    return {(found[1] or found[2]).upper() for kind in kinds if (found := _MARKED.fullmatch(kind))}


def _is_bracketed(cells: Sequence[str]) -> bool:
    return {"("} < {cell[:1] for cell in cells} and all(map(_BRACKETS.fullmatch, cells))


def _opened(cells: Sequence[str]) -> list[str]:
    """IOB2 of CoNLL-2012's brackets."""
    tags, inside = [], ""
    for cell in cells:
        begins = cell.startswith("(")
        inside = cell[1:].rstrip(")").rstrip("*") if begins else inside
        tags.append(f"{'B' if begins else 'I'}-{inside}" if inside else "O")
        if cell.endswith(")"):
            inside = ""
    return tags
