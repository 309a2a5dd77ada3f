"""Records encoded at once become what they become one by one: the same documents, notes, warnings and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain, repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.data.records import BatchEncoder, Encoded, Encoder, Record, each, encode_many
from distft.data.templates import Template
from distft.errors import UserError
from distft.tasks.causal_lm import CausalEncoder
from distft.tasks.dpo import DPOEncoder
from tests.unit.data import test_conversations as conversations
from tests.unit.data import test_templates as formats
from tests.unit.data.chat_templates import CHATML, REASONING, TEMPLATES, TOKENIZERS, TRANSCRIPT
from tests.unit.tasks import test_dpo, test_masked_lm, test_sequence_classification

TEXT = {**TEMPLATES, "transcript": TRANSCRIPT, "reasoning": REASONING, "calls": conversations.CALLS}


def described(outcome: Encoded | UserError) -> Any:
    if isinstance(outcome, UserError):
        return str(outcome)
    documents = [
        ({name: (column.dtype, column.tolist()) for name, column in document.columns.items()}, document.size)
        for document in outcome.documents
    ]
    return documents, [d.targets for d in outcome.documents], list(outcome.notes.items()), dict(outcome.warnings)


def check(encoder: Encoder, several: Sequence[dict[str, Any]]) -> list[Any]:
    """Returns what the records have become."""
    records = [Record(f"a.jsonl:{i}", fields) for i, fields in enumerate(several)]
    assert isinstance(encoder, BatchEncoder)
    found = list(map(described, encode_many(encoder, records)))
    assert found == list(map(described, each(records, encoder.encode)))
    return found


def messages(*contents: Any, system: str | None = None) -> list[dict[str, Any]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *formats.chat(*contents)]


OTHERS: list[dict[str, Any]] = [
    {"text": "the quick brown fox. " * 5},
    {"text": "Hi</s>\n", "id": 3},
    {"text": "half of \ud800 a pair"},
    {"messages": messages("q", "half of \ud800 a pair")},
    {"messages": messages("q", "\n\nafter empty lines", "q ", " a")},
    {"messages": messages("q", "", "q", "<think>hm</think>yes", system="be brief")},
    {"messages": messages("q", "a"), "tools": [conversations.WEATHER]},
    {"messages": [*messages("q"), conversations.assistant(None, tool_calls=[conversations.CALL])]},
    {"messages": messages("distft-marks-this-turn", "a")},
    {"prompt": "q", "completion": "bad", "label": False},
    {"prompt": messages("q", "given", "q"), "completion": "learned", "source": "x"},
]


def cases(test: Any) -> list[dict[str, Any]]:
    """The records that a test of formats is given."""
    return [case[0] for mark in test.pytestmark for case in mark.args[1]]


CASES = [*cases(formats.test_formats), *OTHERS, *cases(formats.test_records_that_do_not_fit_are_named)]


@cache
def causal(template: str, tokenizer: str, row: int = 64, drop: bool = False) -> CausalEncoder:
    return CausalEncoder(Template(TOKENIZERS[tokenizer], TEXT[template]), {}, row, drop)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEXT)
def test_all_formats_under_all_templates(template: str, tokenizer: str) -> None:
    found = check(causal(template, tokenizer), CASES)
    assert any(isinstance(one, str) for one in found)
    check(causal(template, tokenizer, 16, drop=True), CASES)
    check(causal(template, tokenizer).uncut, CASES)
    assert check(causal(template, tokenizer), []) == []


WORDS = ["the dog", "a", " ", "\n", "\n\n", "é🙂漢", "user", "<|im_end|>", "</s>", "'s", "12", "🏳️\u200d🌈"]
contents = st.lists(st.sampled_from(WORDS), max_size=4).map("".join)
turns = st.lists(st.tuples(contents, contents), min_size=1, max_size=4).map(lambda pairs: list(chain(*pairs)))
chats = st.builds(lambda c, s: {"messages": messages(*c, system=s)}, turns, st.one_of(st.none(), contents))


@pytest.mark.parametrize(("template", "tokenizer"), list(zip(TEXT, chain(TOKENIZERS, repeat("bytes")), strict=False)))
def test_any_conversations(template: str, tokenizer: str) -> None:
    @given(st.lists(chats, max_size=5))
    @settings(max_examples=30, deadline=None)
    def some(several: list[dict[str, Any]]) -> None:
        check(causal(template, tokenizer, 32), several)

    some()


def test_pairs() -> None:
    pairs = [*test_dpo.SHAPES.values(), {"prompt": "a", "chosen": "b"}, {"prompt": "a", "chosen": "b", "rejected": 3}]
    found = check(DPOEncoder(Template(TOKENIZERS["bytes"], CHATML), {}, 512), [*pairs, *test_dpo.SHAPES.values()])
    assert [isinstance(one, str) for one in found] == [False] * 6 + [True] * 2 + [False] * 6


def test_texts_of_encoders() -> None:
    texts: list[dict[str, Any]] = [{"text": text} for text in [*test_masked_lm.TEXTS, "", 3, "\ud800", "cat " * 99]]
    for overlong in ("split", "truncate", "drop"):
        found = check(test_masked_lm.encoder(16, overlong), texts)
        assert [isinstance(one, str) for one in found] == [False] * 5 + [True, True, False]
    check(test_masked_lm.encoder(16).uncut, texts)
    labelled = [{**text, "label": label} for text in texts for label in ("good", "none of them")]
    pairs = [{**one, "text_pair": pair} for one in labelled for pair in ("the cat", 4)]
    for row, drop in ((64, False), (8, False), (8, True)):
        for several in (labelled, pairs, [*labelled, *pairs], [{"text": 1}]):
            check(test_sequence_classification.encoder(row=row, drop=drop), several)
