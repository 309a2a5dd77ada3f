"""Question answering: windows lose no token and no character, and what is learned and predicted is the same span."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedTokenizerFast

from distft.data import sources
from distft.data.answers import Answer, placed
from distft.data.corpus import Corpus
from distft.data.records import Document, Encoded, Record
from distft.data.sources import Source
from distft.data.token_cache import build_cache
from distft.errors import UserError
from distft.recipe.tasks import QuestionAnswering
from distft.tasks import question_answering
from distft.tasks.protocol import Outcome
from distft.tasks.question_answering import MISPLACED, QUESTION_CUT, SPANS, UNHELD, Answering, AnsweringEncoder
from distft.tasks.shared.padding import Inputs, unpack_json

CPU = torch.device("cpu")
CONTEXT = (
    "Zürich lies on the Limmat. The river leaves the lake of Zürich, and the unbelievably old town is on both of its "
    "banks. In 1336 Rudolf Brun, a knight, made himself mayor.  The guilds ruled until 1798, when the French came 🙂. "
    "Today about 430,000 people live there; the 北京 delegation came in May"
)
QUESTION = "Who made himself mayor of Zürich?"
ROW, STRIDE = 40, 8


@functools.cache
def tokenizer_of(name: str) -> Any:
    """BERT's words in pieces, RoBERTa's bytes, or GPT-2's bytes: blanks belong to tokens, nothing is put around."""
    texts = [CONTEXT, QUESTION] * 3
    if name == "bert":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=130, special_tokens=special))
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(texts, trainer)
    if name == "roberta":
        made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=False)
    else:
        made.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")


TOKENIZERS = ["bert", "roberta", "gpt2"]


def encoder(name: str = "bert", row: int = ROW, stride: int = STRIDE, unanswerable: bool = False) -> AnsweringEncoder:
    return AnsweringEncoder(tokenizer_of(name), {}, row, stride, unanswerable)


def record(answer: Any = None, context: str = CONTEXT, question: str = QUESTION, **more: Any) -> Record:
    """An answer is a text, or a text with the character at which it begins."""
    if isinstance(answer, tuple):
        answer = {"text": [answer[0]], "answer_start": [answer[1]]}
    return Record("data.json[3]", {"context": context, "question": question, "answers": answer, **more})


def offsets_of(document: Document) -> list[tuple[int, int]]:
    return [(int(begin), int(end)) for begin, end in document["offsets"].reshape(-1, 2)]


def text_of_span(document: Document, context: str) -> str:
    """The characters from the first to the last token of its span; "" where it does not hold the answer."""
    first, last = document["span"] - document["context"][0]
    return context[offsets_of(document)[first][0] : offsets_of(document)[last][1]] if document["span"].any() else ""


def held(encoded: Encoded, context: str) -> set[str]:
    return {text_of_span(document, context) for document in encoded.documents} - {""}


# --- encoding


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("row", "stride"), [(ROW, STRIDE), (ROW, 1), (64, 20), (1024, 64)])
def test_windows_hold_every_token_of_the_context_and_share_the_stride(name: str, row: int, stride: int) -> None:
    tokenizer = tokenizer_of(name)
    question = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    context = tokenizer(CONTEXT, add_special_tokens=False)["input_ids"]
    if len(question) > row // 2:
        pytest.skip("the question would be cut")
    encoded = encoder(name, row, stride).encode(record("Rudolf Brun"))
    found: list[int] = []
    for document in encoded.documents:
        first, end = document["context"]
        assert document.size == len(document["tokens"]) == len(document["types"]) <= row
        before = int(name != "gpt2")  # [CLS]
        assert document["tokens"][before:][: len(question)].tolist() == question
        assert document["types"][first:end].all() == (name != "roberta")  # which knows one type
        assert not document["types"][:first].any()
        inside = document["tokens"][first:end].tolist()
        assert len(inside) == len(offsets_of(document))
        assert not found or inside[:stride] == found[-stride:]
        found += inside if not found else inside[stride:]
    assert found == context
    assert (len(encoded.documents) > 1) == (encoded.notes.get("longer than a row were split", 0) == 1) == (row < 1024)


ANSWERS = [
    ("Zürich", 0),  # at the very beginning
    ("May", len(CONTEXT) - 3),  # at the very end
    ("Rudolf Brun", CONTEXT.index("Rudolf")),
    ("1798", CONTEXT.index("1798")),
    ("北京", CONTEXT.index("北")),
    ("🙂", CONTEXT.index("🙂")),
    (CONTEXT[:26], 0),
    ("Brun, a knight, made himself mayor.  The guilds", CONTEXT.index("Brun")),  # with two blanks
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_answer_comes_back_from_its_tokens(name: str, answer: tuple[str, int]) -> None:
    for row, stride in [(1024, 64), (128, 40)]:
        assert held(encoder(name, row, stride).encode(record(answer)), CONTEXT) == {answer[0]}


def test_blanks_around_an_answer_do_not_move_its_tokens() -> None:
    for name in TOKENIZERS:
        begin = CONTEXT.index(" Rudolf Brun")
        assert held(encoder(name, 1024).encode(record((" Rudolf Brun", begin))), CONTEXT) == {"Rudolf Brun"}
        spaced = f"  {CONTEXT}  "
        assert held(encoder(name, 1024).encode(record((" May  ", len(spaced) - 6), spaced)), spaced) == {"May"}


def test_of_a_repeated_answer_the_given_place_counts_and_else_the_first() -> None:
    second = CONTEXT.index("Zürich", 1)
    document = encoder(row=1024).encode(record(("Zürich", second))).documents[0]
    token = document["span"][0] - document["context"][0]
    assert offsets_of(document)[token][0] == second
    for answer in ["Zürich", ["Zürich"], [{"text": "Zürich"}], {"text": ["Zürich"]}]:
        document = encoder(row=1024).encode(record(answer)).documents[0]
        assert offsets_of(document)[document["span"][0] - document["context"][0]][0] == 0


@pytest.mark.parametrize(
    ("context", "answer", "begin"),
    [
        ("The weather changed when he sat", "he", 25),
        ("The weather changed when he sat", " he ", 25),
        ("heat, the sheath, he", "he", 18),
        ("C++11 is more than C++", "C++", 19),
        ("In 1999 she had 99_", "99", 16),
        ("The weather changed", "he", 1),  # nowhere by itself
        ("他在北京大学。北京", "北京", 7),
        ("my head, said he.", " he", 14),
    ],
)
def test_an_answer_without_a_place_is_searched_for_outside_of_other_words(
    context: str, answer: str, begin: int
) -> None:
    end = begin + len(answer.strip())
    assert placed(Record("x", {}), context, [Answer(answer)]) == (begin, end, False)


def test_a_misplaced_answer_beside_one_in_place_is_counted() -> None:
    here, text = CONTEXT.index("Rudolf"), "Rudolf Brun"
    right, wrong = {"text": text, "answer_start": here}, {"text": "Brun", "answer_start": 3}
    for shape in ([right, wrong], [wrong, right], [right, {"text": "Brun", "answer_start": -1}]):
        encoded = encoder(row=1024).encode(record(shape))
        assert held(encoded, CONTEXT) == {text}
        assert encoded.notes == {MISPLACED: 1}
    assert encoder(row=1024).encode(record([right])).notes == {}
    with pytest.raises(UserError, match="is not in the context at answer_start 3"):
        encoder(row=1024).encode(record([wrong, {"text": text, "answer_start": here + 1}]))


def test_an_answer_that_begins_inside_a_piece_takes_the_whole_piece() -> None:
    assert tokenizer_of("bert").tokenize("in Zürich,") == ["in", "zurich", ","]
    for answer in ["rich", "Zür"]:
        assert held(encoder(row=1024).encode(record(answer)), CONTEXT) == {"Zürich"}


def test_windows_that_hold_a_part_of_the_answer_point_at_the_first_token() -> None:
    long = CONTEXT[CONTEXT.index("Rudolf") : CONTEXT.index(" The guilds") - 1]
    encoded = encoder(row=ROW, stride=8).encode(record(long))
    spans = [document["span"].tolist() for document in encoded.documents]
    assert UNHELD in encoded.notes
    assert set(map(tuple, spans)) == {(0, 0)}  # no window of 40 holds it, so none is said to
    wide = encoder(row=80, stride=30).encode(record("Brun"))
    assert UNHELD not in wide.notes
    assert 0 < sum(document["span"].any() for document in wide.documents) < len(wide.documents)


SHAPES: list[Any] = [
    {"text": ["Rudolf Brun", "Brun"], "answer_start": [CONTEXT.index("Rudolf"), CONTEXT.index("Brun")]},
    [{"text": "Rudolf Brun", "answer_start": CONTEXT.index("Rudolf")}, {"text": "Brun", "answer_start": None}],
    ["Rudolf Brun", "Brun"],
]


@pytest.mark.parametrize("shape", [*SHAPES, *map(json.dumps, SHAPES)])
def test_all_shapes_of_answers_are_one(shape: Any) -> None:
    encoded = encoder(row=1024).encode(record(shape))
    assert held(encoded, CONTEXT) == {"Rudolf Brun"}
    about = unpack_json(encoded.documents[0]["about"])
    assert about == {"context": CONTEXT, "answers": ["Rudolf Brun", "Brun"]}


def test_the_column_may_be_called_answer_or_anything() -> None:
    fields = {"context": CONTEXT, "question": QUESTION}
    for name, renamed in [("answer", {}), ("reply", {"answers": "reply"}), ("reply", {"answer": "reply"})]:
        made = AnsweringEncoder(tokenizer_of("bert"), renamed, 1024, STRIDE, False)
        assert held(made.encode(Record("x", {**fields, name: "1798"})), CONTEXT) == {"1798"}


def test_names_for_which_the_context_has_another_are_accepted_all_the_same() -> None:
    encoded = encoder(row=1024).encode(record(["Brun the Mayor", "Rudolf Brun"]))
    assert held(encoded, CONTEXT) == {"Rudolf Brun"}
    assert unpack_json(encoded.documents[0]["about"])["answers"] == ["Brun the Mayor", "Rudolf Brun"]


def test_an_answer_in_brackets_is_a_text() -> None:
    context = "As shown in [1] it rains {often}."
    for answer in ["[1]", "{often}"]:
        assert held(encoder(row=1024).encode(record(answer, context)), context) == {answer}


NOTHING: list[Any] = [None, "", [], [""], {"text": [], "answer_start": []}, {"text": [""], "answer_start": [-1]}, "[]"]


@pytest.mark.parametrize("nothing", NOTHING)
def test_without_an_answer_all_windows_point_at_the_first_token(nothing: Any) -> None:
    encoded = encoder(unanswerable=True).encode(record(nothing))
    assert len(encoded.documents) > 1
    assert all(document["span"].tolist() == [0, 0] for document in encoded.documents)
    assert unpack_json(encoded.documents[0]["about"])["answers"] == []
    assert UNHELD not in encoded.notes
    with pytest.raises(UserError, match=r"data.json\[3\] has no answer; set task.unanswerable=true"):
        encoder().encode(record(nothing))


def test_an_impossible_question_has_no_answer_whatever_is_written() -> None:
    for flag in [True, "True", "1", 1]:
        assert not held(encoder(unanswerable=True).encode(record("Brun", is_impossible=flag)), CONTEXT)
    for flag in [False, None, "", "false", 0]:
        assert held(encoder(row=1024).encode(record("Brun", is_impossible=flag)), CONTEXT) == {"Brun"}


def test_the_context_travels_once() -> None:
    documents = encoder().encode(record("1798")).documents
    assert [unpack_json(document["about"]) is None for document in documents] == [False] + [True] * (len(documents) - 1)


def test_what_is_to_be_predicted_needs_no_answer() -> None:
    asked = Record("x", {"context": CONTEXT, "question": QUESTION})
    documents = encoder().encode(asked, answered=False).documents
    assert len(documents) > 1
    assert all(len(document["span"]) == 0 for document in documents)
    assert unpack_json(documents[0]["about"]) == {"context": CONTEXT, "answers": None}
    same = encoder().encode(record("1798")).documents
    assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(documents, same, strict=True))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("word", ["unbelievably ", "🎈"])
def test_a_question_that_leaves_no_room_is_cut_to_half_a_row(name: str, word: str) -> None:
    question = f"a{word * 60}" if name != "bert" else f"{word} " * 60  # half a row ends within a balloon
    encoded = encoder(name).encode(record("1798", question=question))
    assert encoded.notes[QUESTION_CUT] == 1
    specials = tokenizer_of(name).num_special_tokens_to_add(pair=True)
    asked = encoded.documents[0].size - specials - len(offsets_of(encoded.documents[0]))
    assert ROW // 2 - 6 <= asked <= ROW // 2
    covered = {place for document in encoded.documents for begin, end in offsets_of(document) for place in (begin, end)}
    assert {0, len(CONTEXT)} <= covered
    whole = encoder(name, 1024, 64).encode(record("1798", question="unbelievably " * 45))
    assert QUESTION_CUT not in whole.notes


def test_the_documents_go_through_the_cache(tmp_path: Path) -> None:
    file = tmp_path / "squad.json"
    answers = [{"text": "1798", "answer_start": CONTEXT.index("1798")}]
    asked = [
        {"id": "a", "question": QUESTION, "answers": answers},
        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": asked}]}]}))
    made = encoder(unanswerable=True)
    corpus = Corpus.open(build_cache(Source(str(file)), made, str(tmp_path / "cache"), lambda: None, lambda done: None))
    expected = [document for r in sources.read(Source(str(file))) for document in made.encode(r).documents]
    assert len(corpus) == len(expected)
    for index, document in enumerate(expected):
        found = corpus.document(index)
        for name, dtype in made.columns.items():
            assert found[name].dtype == document[name].dtype == np.dtype(dtype)
            assert found[name].tolist() == document[name].tolist()


def test_the_digest_is_of_all_that_decides() -> None:
    tokenizer = tokenizer_of("bert")
    base = encoder().digest
    encoder().encode(record("1798"))  # leaves its truncation behind in the tokenizer
    assert encoder().digest == base
    others = [encoder("roberta"), encoder(row=41), encoder(stride=9), encoder(unanswerable=True)]
    others.append(AnsweringEncoder(tokenizer, {"answers": "x"}, ROW, STRIDE, False))
    assert len({base, *(other.digest for other in others)}) == 6


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"answers": "Zwingli"}, r"the answer 'Zwingli' is not in the context 'Zürich lies .{48}\.\.\.'; it must be"),
    (
        {"answers": {"text": ["Brun"], "answer_start": [3]}},
        "the answer 'Brun' is not in the context at answer_start 3, where 'ich ' is; correct answer_start",
    ),
    ({"answers": {"text": ["Brun"], "answer_start": [-3]}}, "is not in the context at answer_start -3"),
    ({"answers": {"text": ["Brun"], "answer_start": [9999]}}, "at answer_start 9999, where '' is"),
    ({"answers": {"text": ["Brun", "x"], "answer_start": [3]}}, "as many numbers in answer_start as texts"),
    ({"answers": {"text": ["Brun"], "answer_start": ["3"]}}, "answers: answer_start must be a whole number, not '3'"),
    ({"answers": [{"text": "Brun", "answer_start": True}]}, "answer_start must be a whole number"),
    ({"answers": {"text": [7]}}, "answers must be a text, not int"),
    ({"answers": 1798}, r"answers must be a text, texts, or as SQuAD has it .* not '1798'"),
    ({"answers": {"start": 3}}, r"answers must be a text, texts, or as SQuAD has it"),
    ({"answers": ["Brun", "\ud800"]}, "half of a surrogate pair"),
    ({"context": " \n"}, "context is empty; write it"),
    ({"context": None}, "context must be a text, not null"),
    ({"question": ""}, "question is empty; write it"),
]


@pytest.mark.parametrize(("changed", "message"), ERRORS)
def test_errors_say_where_and_what(changed: dict[str, Any], message: str) -> None:
    fields = {"context": CONTEXT, "question": QUESTION, "answers": "Brun", **changed}
    with pytest.raises(UserError, match=message) as caught:
        encoder().encode(Record("data.json[3]", fields))
    assert str(caught.value).startswith("data.json[3]")


@pytest.mark.parametrize("name", ["context", "question", "answers"])
def test_a_missing_column_is_named(name: str) -> None:
    fields = {key: value for key, value in record("Brun").fields.items() if key != name}
    with pytest.raises(UserError, match=rf"data.json\[3\] has no column '{name}'"):
        encoder().encode(Record("data.json[3]", fields))


def test_a_stride_that_could_not_move_on_is_refused() -> None:
    room = ROW - ROW // 2 - 3
    encoder(stride=room - 1).encode(record("1798"))
    encoder(stride=room - 1).encode(record("1798", question="unbelievably " * 60))
    with pytest.raises(
        UserError, match=rf"task.stride {room} is too large for data.row_tokens {ROW}: .* {room} tokens"
    ):
        encoder(stride=room)


def test_the_kind_makes_both_from_a_recipe() -> None:
    settings = QuestionAnswering(type="question-answering", stride=5, unanswerable=True)
    spec = question_answering.spec(settings, {"question": "q"})
    setting: Any = SimpleNamespace(
        recipe=SimpleNamespace(data=SimpleNamespace(row_tokens=50)), processor=lambda: tokenizer_of("bert")
    )
    assert spec.encoder(setting) == AnsweringEncoder(tokenizer_of("bert"), {"question": "q"}, 50, 5, True)
    assert isinstance(spec.build(setting, model_of("bert")), Answering)
    assert list(spec.texts(Record("x", {"context": "c", "q": "why?"}))) == ["c", "why?"]
    assert spec.labels is None
    assert AutoConfig.for_model("bert", **spec.model.head(())).num_labels == 2


# --- loss and predictions


def model_of(name: str, vocabulary: int = 400) -> Any:
    sizes = {
        "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "llama": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=vocabulary, pad_token_id=0, **sizes[name])
    made: Any = AutoModelForQuestionAnswering.from_config(config, dtype=torch.float32)
    for parameter in made.parameters():  # far from zero, so that every token matters
        parameter.data.mul_(4.0) if parameter.dim() > 1 else None
    return made.eval()


def task_of(model: Any, unanswerable: bool = False, longest: int = 30) -> Answering:
    settings = QuestionAnswering(type="question-answering", unanswerable=unanswerable, longest_answer=longest)
    return Answering(settings, Inputs(model, tokenizer_of("bert")))


def varied(name: str) -> list[Document]:
    """Windows of several lengths."""
    made = encoder(name, 64, 12, unanswerable=True)
    records = [record("1798"), record(context="The river is old."), record("old", context="The river is old, is it?")]
    return [document for r in records for document in made.encode(r).documents]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_loss_is_that_of_transformers_without_padding(name: str) -> None:
    model, documents = model_of(name), varied("bert" if name == "bert" else "gpt2")
    assert len({document.size for document in documents}) > 2
    task = task_of(model)
    batch = task.collate([[document] for document in documents], CPU)
    loss = task.loss(model, batch)[SPANS]
    expected = 0.0
    for document in documents:
        inputs = {"input_ids": torch.from_numpy(document["tokens"].astype(np.int64))[None]}
        if name == "bert":
            inputs["token_type_ids"] = torch.from_numpy(document["types"].astype(np.int64))[None]
        span = torch.from_numpy(document["span"].astype(np.int64))
        expected += model(**inputs, start_positions=span[:1], end_positions=span[1:]).loss.item()
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert task.counts(batch) == {SPANS: len(documents)}
    assert task.factors({SPANS: 4}) == {SPANS: 0.25}
    assert batch.useful_tokens == sum(document.size for document in documents)


def test_a_row_of_several_documents_is_worth_as_much() -> None:
    model, documents = model_of("bert"), varied("bert")
    task = task_of(model)
    losses = [
        task.loss(model, task.collate(rows, CPU))[SPANS].item()
        for rows in ([documents, []], [[document] for document in documents])
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_nothing_to_learn_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    model = model_of("bert").train()
    task = task_of(model)
    batch = task.collate([[], []], CPU)
    assert task.counts(batch) == {SPANS: 0}
    loss = task.loss(model, batch)[SPANS]
    assert loss.item() == 0.0
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    with torch.no_grad():
        assert task.predict(model, batch) == []
    assert task.score([]).scores == {}


def test_gradients_are_finite_with_padding() -> None:
    model = model_of("bert").train()
    task = task_of(model)
    task.loss(model, task.collate([varied("bert")], CPU))[SPANS].backward()  # type: ignore[no-untyped-call]
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)


@torch.no_grad()
def predicted(task: Answering, model: Any, rows: list[list[Document]]) -> list[Outcome]:
    outcomes = task.predict(model, task.collate(rows, CPU))
    return json.loads(json.dumps(outcomes, allow_nan=False))  # type: ignore[no-any-return]


@pytest.mark.parametrize("longest", [1, 3, 1000])
def test_predictions_are_the_best_of_all_spans_whatever_else_is_in_the_batch(longest: int) -> None:
    model, documents = model_of("bert"), varied("bert")
    task = task_of(model, longest=longest)
    for document, outcome in zip(documents, predicted(task, model, [documents]), strict=True):
        [alone] = predicted(task, model, [[document]])
        assert alone["about"] == outcome["about"] == unpack_json(document["about"])
        for key in ("best", "none", "loss"):
            assert alone[key] == pytest.approx(outcome[key], rel=1e-4)
        batch = task.collate([[document]], CPU)
        with torch.no_grad():
            out = model(input_ids=batch.input_ids, token_type_ids=batch.token_type_ids)
        start, end = out.start_logits[0].tolist(), out.end_logits[0].tolist()
        first, stop = document["context"].tolist()
        scores = {
            (offsets_of(document)[i - first][0], offsets_of(document)[j - first][1]): start[i] + end[j]
            for i in range(first, stop)
            for j in range(i, min(stop, i + longest))
        }
        none = start[0] + end[0]
        mass = math.fsum(map(math.exp, [*scores.values(), none]))
        best = max(scores, key=lambda place: scores[place])
        assert alone["best"] == pytest.approx([scores[best], math.exp(scores[best]) / mass, *best], rel=1e-4)
        assert alone["none"] == pytest.approx([none, math.exp(none) / mass], rel=1e-4)
        assert alone["targets"] == 1
        assert alone["loss"] == pytest.approx(task.loss(model, batch)[SPANS].item(), rel=1e-4)


class Forced(torch.nn.Module):
    """Says of each sequence that is known by its tokens what it was told, [2, T]: scores of the start and the end."""

    config = SimpleNamespace(pad_token_id=0, type_vocab_size=2)

    def __init__(self, documents: list[Document], logits: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = [(document["tokens"].tolist(), each) for document, each in zip(documents, logits, strict=True)]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        logits = torch.full((2, *input_ids.shape), 99.0)  # so much where there is padding
        for index, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            tokens = ids[mask.bool()].tolist()
            logits[:, index, : len(tokens)] = next(each for known, each in self.known if known == tokens)
        return SimpleNamespace(start_logits=logits[0].bfloat16(), end_logits=logits[1].bfloat16())


def forced(documents: list[Document], sure: float = 8.0) -> Forced:
    """A model that points at the right span of each window, with noise around."""
    chance = torch.Generator().manual_seed(0)
    logits = [torch.rand(2, document.size, generator=chance) for document in documents]
    for each, document in zip(logits, documents, strict=True):
        each[[0, 1], document["span"].tolist()] = sure
    return Forced(documents, logits)


def joined(task: Answering, model: Any, documents: list[Document]) -> Outcome:
    rows = [[document] for document in documents]
    return task.join([outcome for batch in (rows[:2], rows[2:]) for outcome in predicted(task, model, batch)])


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("unanswerable", [False, True])
def test_an_answer_in_the_third_window_is_given_to_the_letter(name: str, unanswerable: bool) -> None:
    made = encoder(name, 64, 6, unanswerable)
    tried = 0
    for text in ["1798", "🙂", "Rudolf Brun", "mayor", "French came", "北京", "430,000", "made himself"]:
        documents = made.encode(record(text)).documents
        if [index for index, document in enumerate(documents) if document["span"].any()] != [2]:
            continue
        tried += 1
        model = forced(documents)
        task = task_of(model, unanswerable)
        outcome = joined(task, model, documents)
        begin = CONTEXT.index(text)
        answer = task.answer(outcome)
        assert (answer["answer"], answer["start"], answer["end"]) == (text, begin, begin + len(text))
        assert 0.9 < answer["score"] <= 1.0
        assert outcome["targets"] == len(documents)
        assert task.loss(model, task.collate([documents], CPU))[SPANS].dtype == torch.float32
        assert outcome["loss"] == pytest.approx(task.loss(model, task.collate([documents], CPU))[SPANS].item(), rel=0.1)
        assert task.score([outcome, outcome]).scores == {"exact_match": 1.0, "f1": 1.0}
    assert tried


def test_no_answer_is_believed_only_where_some_have_none() -> None:
    documents = encoder(unanswerable=True).encode(record(None)).documents
    model = forced(documents)
    sceptic, credulous = task_of(model, unanswerable=True), task_of(model)
    outcome = joined(sceptic, model, documents)
    answer = sceptic.answer(outcome)
    assert answer == {"answer": "", "score": outcome["none"][1], "start": None, "end": None}
    assert 0.9 < answer["score"] <= 1.0
    assert sceptic.score([outcome]).scores == {"exact_match": 1.0, "f1": 1.0}
    assert credulous.answer(outcome)["answer"] != ""
    assert credulous.score([outcome]).scores["exact_match"] == 0.0


def test_one_doubtful_window_outweighs_all_that_see_no_answer() -> None:
    sure: Outcome = {"best": [1.0, 0.1, 0, 6], "none": [9.0, 0.9], "about": {"context": CONTEXT, "answers": None}}
    doubtful: Outcome = {"best": [4.0, 0.7, 20, 26], "none": [2.0, 0.2], "about": None}
    empty: Outcome = {"best": None, "none": [3.0, 1.0], "about": None}
    task = task_of(model_of("bert"), unanswerable=True)
    outcome = task.join([sure, doubtful, empty])
    assert outcome == {"best": [4.0, 0.7, 20, 26], "none": [2.0, 0.2], "about": sure["about"]}
    assert task.answer(outcome) == {"answer": CONTEXT[20:26], "score": 0.7, "start": 20, "end": 26}
    assert task.join([outcome]) == outcome
    assert task.answer(task.join([sure, empty]))["answer"] == ""


def test_blank_tokens_are_no_answer() -> None:
    context = "red \n\n\n blue"
    [document] = encoder("gpt2", 1024).encode(record("blue", context)).documents
    blank = [index for index, (begin, end) in enumerate(offsets_of(document)) if begin == end]
    assert blank
    logits = torch.zeros(2, document.size)
    logits[:, document["context"][0] + np.array(blank)] = 5.0
    logits[[0, 1], document["span"].tolist()] = 2.0
    model = Forced([document], [logits])
    [outcome] = predicted(task_of(model), model, [[document]])
    assert task_of(model).answer(outcome)["answer"] == "blue"


def test_a_context_of_which_no_token_is_left_has_no_best_span() -> None:
    fields = {"context": "\u0000\u200b", "question": QUESTION}
    [document] = encoder().encode(Record("x", fields), answered=False).documents
    assert document["context"].tolist() == [0, 0]
    model = model_of("bert")
    [outcome] = predicted(task_of(model), model, [[document]])
    assert outcome["best"] is None
    assert outcome["none"][1] == pytest.approx(1.0)
    assert "loss" not in outcome
    assert task_of(model).answer(outcome)["answer"] == ""
