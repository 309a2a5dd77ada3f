"""CoNLL columns in the forms that corpora have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distft.data.records import Record
from distft.data.sources import Source, fingerprint, read
from distft.errors import UserError

ANNA = {"tokens": ["Anna", "sees", "Graz"], "tags": ["B-PER", "O", "B-LOC"]}
YES = {"tokens": ["Yes"], "tags": ["O"]}


def of(path: Path, text: str, **how: Any) -> list[dict[str, Any]]:
    path.write_text(text)
    return [record.fields for record in read(Source(str(path), **how))]


def refusal(path: Path, text: str, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        of(path, text, **how)
    return str(caught.value)


FORMS = {
    "index first": "1\tAnna\tPROPN\tB-PER\n2\tsees\tVERB\tO\n3\tGraz\tPROPN\tB-LOC\n\n1\tYes\tX\tO\n",
    "index from 0, with blanks": "0 Anna B-PER\n1 sees O\n2 Graz B-LOC\n\n0 Yes O\n",
    "comments with a tab": "#\thttp://a.b/c [2009]\n1\tAnna\tB-PER\n2\tsees\tO\n3\tGraz\tB-LOC\n\n# x\n1\tYes\tO\n",
    "index behind a document": "d1 1 Anna B-PER\nd1 2 sees O\nd1 3 Graz B-LOC\n\nd2 1 Yes O\n",
    "CoNLL-U's comments": "# newdoc\n# newpar id = 1\n# sent_id = a b\n# text = A\nAnna B-PER\nsees O\nGraz B-LOC\n"
    "\n# newpar\nYes O\n",
    "sentences with a number": "# sentence 12\nAnna B-PER\nsees O\nGraz B-LOC\n\n# sentence 13\nYes O\n",
    "documents of CoNLL-2012": "#begin document (a); part 0\nAnna B-PER\nsees O\nGraz B-LOC\n\nYes O\n#end document\n",
    "documents of CoNLL-2003": "-DOCSTART- O\n\nAnna B-PER\nsees O\nGraz B-LOC\n\n-DOCSTART- O\nYes O\n",
    "counted documents": "1 -DOCSTART- O\n\n1 Anna B-PER\n2 sees O\n3 Graz B-LOC\n\n1 Yes O\n",
    "contractions and gaps": "1-2 Annasees _\n1 Anna B-PER\n2 sees O\n2.1 was _\n3 Graz B-LOC\n\n1 Yes O\n",
    "chunks beside": "Anna NNP I-NP B-PER\nsees VBZ I-VP O\nGraz NNP I-NP B-LOC\n\nYes X O O\n",
    "tabs of any number": "Anna\t\tB-PER\nsees\tO\nGraz \tB-LOC\n\nYes\t\t\tO\n",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_forms_of_columns(tmp_path: Path, text: str, end: str) -> None:
    if "\t\t" not in text:
        assert of(tmp_path / "a.conll", text.replace("\n", end)) == [ANNA, YES]
    else:  # columns of one sentence are counted alike
        even = text.replace("\t\t\t", "\t").replace("\t\t", "\t").replace("\n", end)
        assert of(tmp_path / "a.conll", even) == [ANNA, YES]


def test_a_token_may_be_a_number_or_a_hash(tmp_path: Path) -> None:
    for text in ("1 CD\n2 CD\n", "1 X O\n2 X O\n\n7 X O\n", "# O\n1 O\n\n#a O\n# O\n", "# X O\n#1 X O\n"):
        expected = [
            {"tokens": [line.split()[0] for line in lines], "tags": [line.split()[-1] for line in lines]}
            for lines in (part.splitlines() for part in text.split("\n\n"))
        ]
        assert of(tmp_path / "a.conll", text) == expected


def test_tokens_with_a_blank_between_tabs(tmp_path: Path) -> None:
    text = "New York\tB-LOC\nis\tO\n\n10 000\tO\n"
    expected = [{"tokens": ["New York", "is"], "tags": ["B-LOC", "O"]}, {"tokens": ["10 000"], "tags": ["O"]}]
    assert of(tmp_path / "a.conll", text) == expected
    assert of(tmp_path / "a.conll", text.replace("\t", "\tX Y\t")) == expected
    assert of(tmp_path / "a.txt", text.replace("\t", ";"), format="conll", delimiter=";") == expected
    # where the last column holds the blank, blanks divide
    assert of(tmp_path / "a.conll", "York\tX B-LOC\n") == [{"tokens": ["York"], "tags": ["B-LOC"]}]


CONLL_2012 = """#begin document (bn/a); part 000
bn/a 0 0 Mr. NNP (TOP(S(NP* - - - A * (ARG0* (1
bn/a 0 1 Hu NNP *) - - - A (PERSON* *) 1)
bn/a 0 2 Jin NNP *) - - - A *) * -
bn/a 0 3 left VBD (VP*) leave 01 1 A * (V*) -
bn/a 0 4 Rome NNP (NP*))) - - - A (GPE) * (2)

bn/a 0 0 Yes UH (TOP*) - - - A * -

#end document
"""


def test_entities_of_conll_2012(tmp_path: Path) -> None:
    tags = ["O", "B-PERSON", "I-PERSON", "O", "B-GPE"]
    assert of(tmp_path / "a.conll", CONLL_2012) == [{"tokens": ["Mr.", "Hu", "Jin", "left", "Rome"], "tags": tags}, YES]
    chosen = of(tmp_path / "a.conll", CONLL_2012, columns=("_", "_", "_", "tokens", "tags"))
    assert chosen[0]["tags"] == ["NNP", "NNP", "NNP", "VBD", "NNP"]


GERMEVAL = """#\thttp://de.wikipedia.org/wiki/Manfred_Korfmann [2009-10-17]
1\tAachen\tB-ORG\tB-LOC
2\tist\tO\tO

#\tn-tv.de [2005]
1\tJa\tO\tO
"""


def test_nested_entities_are_chosen(tmp_path: Path) -> None:
    assert "the tags may be in column 3 or 4 of 4; choose with data.columns, such as [_, tokens, tags, _]" in refusal(
        tmp_path / "a.tsv", GERMEVAL, format="conll"
    )
    outer = of(tmp_path / "a.tsv", GERMEVAL, format="conll", columns=("_", "tokens", "tags", "_"))
    assert outer == [{"tokens": ["Aachen", "ist"], "tags": ["B-ORG", "O"]}, {"tokens": ["Ja"], "tags": ["O"]}]
    assert of(tmp_path / "a.conll", GERMEVAL, columns=("_", "tokens", "_", "tags"))[0]["tags"] == ["B-LOC", "O"]
    both = of(tmp_path / "a.conll", GERMEVAL, columns=("_", "tokens", "outer", "inner"))[0]
    assert both == {"tokens": ["Aachen", "ist"], "outer": ["B-ORG", "O"], "inner": ["B-LOC", "O"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("B-LOC\tRome\nO\tis\n", "the tags may be in column 1 of 2; choose with data.columns, such as [tags, tokens]"),
        ("Rome B-LOC x\nis O y\n", "the tags may be in column 2 of 3"),
        ("Rome B-LOC B-LOC.CITY\nBonn B-LOC B-LOC\n", "the tags may be in column 2 or 3 of 3"),
        ("1 Rome B-LOC O\n2 is O O\n", "the tags may be in column 3 or 4 of 4"),
        ("".join(f"{n} w X O\n" for n in (7, 3, 5, 9, 1)), "the first column holds only numbers that do not count"),
        (
            "1\tRome\tRome\tPROPN\tNN\t_\t2\tnsubj\t_\t_\n2\tis\tbe\tAUX\tV\t_\t0\troot\t_\tSpaceAfter=No\n",
            "CoNLL-U's, of which several may be the tags; choose with data.columns, such as [_, tokens, _, tags, _, _,",
        ),
    ],
)
def test_what_may_mean_several_things_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path / "a.conll", text)


def test_columns_that_a_recipe_names(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    text = "1\tRome\tPROPN\tB-LOC\tx\n2\tis\tAUX\tO\tx\n"
    assert of(path, text, columns=("_", "tokens", "_", "tags")) == [{"tokens": ["Rome", "is"], "tags": ["B-LOC", "O"]}]
    assert of(path, text, columns=("_", "word", "pos"))[0] == {"word": ["Rome", "is"], "pos": ["PROPN", "AUX"]}
    assert "a.conll:1 has 5 columns but 6 are read; see data.columns" in refusal(
        path, text, columns=("_", "tokens", "_", "_", "_", "tags")
    )
    assert "'tags' more than once; write _" in refusal(path, text, columns=("tags", "tokens", "tags"))
    path.write_text(text.replace("\tx", ""))
    ways = [{}, {"columns": ("_", "tokens", "tags")}, {"columns": ("_", "tokens", "_", "tags")}, {"detect": False}]
    assert len({fingerprint(Source(str(path), **way)) for way in ways}) == 4


def test_a_counted_line_without_a_tag_is_refused(tmp_path: Path) -> None:
    text = "1 Rome O\n2 is O\n\n1 Yes\n"
    assert "a.conll:4 has 2 columns but 3 are read" in refusal(tmp_path / "a.conll", text)


def test_usual_files_are_read_as_ever(tmp_path: Path) -> None:
    """So the runs that were begun on them go on."""
    for text in ("Anna\tB-PER\nsees\tO\n", "a X O\nb X B-x\n\n# c = d\nc X O\n", FORMS["chunks beside"]):
        now = of(tmp_path / "a.conll", text)
        assert now == of(tmp_path / "a.conll", text, detect=False)
        source = Source(str(tmp_path / "a.conll"))
        assert fingerprint(source) == fingerprint(Source(source.spec, detect=False))
    before = of(tmp_path / "a.conll", FORMS["index first"], detect=False)
    assert before[0]["tokens"] == ["1", "2", "3"]


def test_where_a_counted_sentence_is(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(GERMEVAL)
    found = list(read(Source(str(path), columns=("_", "tokens", "tags"))))
    assert [one.where for one in found if isinstance(one, Record)] == [f"{path}:2", f"{path}:6"]
