"""The causal task: a packed row is worth exactly the documents in it, and so are pieces of a long one."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from distft.data.records import Document, Record
from distft.data.templates import Marked, Template
from distft.errors import UserError
from distft.recipe.schema import Data, Recipe
from distft.recipe.tasks import CausalLM
from distft.tasks import causal_lm
from distft.tasks.causal_lm import TOKENS, Causal, CausalEncoder, split_to_rows
from distft.tasks.protocol import Setting
from distft.tasks.shared.generation import Decoding, continued
from tests.unit.tasks.whole import check_cut

CPU = torch.device("cpu")
VOCABULARY = 64
SIZES = {
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
KINDS = list(SIZES)


def make(kind: str, training: bool = False, vocabulary: int = VOCABULARY) -> Any:
    sizes: dict[str, Any] = SIZES[kind] | ({} if kind == "gpt2" else {"intermediate_size": 48})
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, bos_token_id=None, eos_token_id=None, pad_token_id=None, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        for parameter in model.parameters():  # far from zero, so that every token matters to every other
            parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    return model.train(training)


def document(seed: int, size: int) -> Document:
    """Random tokens, most of them targets."""
    chance = np.random.default_rng(seed)
    targets = chance.random(size) < 0.7
    targets[0], targets[-1] = False, True
    return of_tokens(chance.integers(0, VOCABULARY, size), targets)


def of_tokens(tokens: Any, targets: Any) -> Document:
    columns = {"tokens": np.asarray(tokens, np.int32), "targets": np.asarray(targets, np.bool_)}
    return Document(columns, len(tokens), int(columns["targets"].sum()))


ROWS = [[document(1, 5), document(2, 2), document(3, 9)], [document(4, 7), document(5, 3)]]  # 16 and 10 tokens


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def through_task(model: Any, task: Causal, rows: list[list[Document]]) -> tuple[float, dict[str, torch.Tensor]]:
    loss = task.loss(model, task.collate(rows, CPU))[TOKENS]
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), gradients(model)


def one_by_one(model: Any, rows: list[list[Document]]) -> tuple[float, dict[str, torch.Tensor]]:
    """The same by the model's plain forward, a document at a time and without any packing."""
    total = 0.0
    for part in (part for row in rows for part in row):
        tokens = torch.from_numpy(part["tokens"].astype(np.int64))
        logits = model(input_ids=tokens[None]).logits[0, :-1]
        each = functional.cross_entropy(logits, tokens[1:], reduction="none")
        loss = each[torch.from_numpy(part["targets"][1:])].sum()
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def assert_equal(
    got: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]], within: float = 1e-5
) -> None:
    assert got[0] == pytest.approx(expected[0], abs=1e-4)
    assert got[1].keys() == expected[1].keys()
    scale = max(1.0, *(gradient.abs().max().item() for gradient in expected[1].values()))
    for name, gradient in expected[1].items():
        assert (got[1][name] - gradient).abs().max() <= within * scale, name


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_packed_rows_are_those_of_the_documents_alone(kind: str, training: bool, flatten: bool) -> None:
    model = make(kind, training)
    task = Causal(model.forward, flatten)
    for rows in (ROWS[:1], ROWS, [ROWS[1], ROWS[0]]):
        expected = one_by_one(model, rows)
        assert max(gradient.abs().max().item() for gradient in expected[1].values()) > 0.1
        assert_equal(through_task(model, task, rows), expected)


@pytest.mark.parametrize("flatten", [False, True])
def test_counts_and_shapes(flatten: bool) -> None:
    task = Causal(make("llama").forward, flatten)
    batch = task.collate(ROWS, CPU)
    assert task.counts(batch) == {TOKENS: sum(part.targets for row in ROWS for part in row)}
    assert batch.useful_tokens == 26
    assert batch.input_ids.shape == batch.position_ids.shape == ((1, 26) if flatten else (2, 16))
    first = batch.position_ids.flatten()[:16].tolist()
    assert first == [*range(5), *range(2), *range(9)]
    assert len(batch.keep) < batch.input_ids.numel()
    assert (batch.boundaries is not None) == flatten
    if batch.boundaries is not None:
        assert batch.boundaries.sizes == (5, 2, 9, 7, 3)
        assert batch.boundaries.begins.tolist() == [0, 5, 7, 16, 23, 26]


def test_a_single_row_for_a_gpu_ends_with_padding_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its width is one of a few; padding counts as a document, whose positions stay within any model's."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    batch = Causal(make("llama").forward, True, limit=16).collate(ROWS, CPU)
    assert batch.input_ids.shape == (1, 64)
    assert batch.boundaries is not None
    assert batch.boundaries.sizes == (5, 2, 9, 7, 3, 38)
    assert batch.position_ids[0, 16:].tolist() == [*range(7), *range(3), *[0] * 38]
    assert batch.real.tolist() == [True] * 26 + [False] * 38


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_row_adds_nothing_and_can_be_differentiated(kind: str, flatten: bool) -> None:
    model = make(kind, training=True)
    task = Causal(model.forward, flatten)
    for rows in ([[]], [[], []]):
        batch = task.collate(rows, CPU)
        assert (task.counts(batch), batch.useful_tokens) == ({TOKENS: 0}, 0)
        loss, found = through_task(model, task, rows)
        assert loss == 0.0
        assert set(found) == {name for name, _ in model.named_parameters()}  # every rank reduces every gradient
        assert all(not gradient.any() for gradient in found.values())
    assert_equal(through_task(model, task, [*ROWS, []]), one_by_one(model, ROWS))
    assert_equal(through_task(model, task, [[], *ROWS]), one_by_one(model, ROWS))


def test_a_row_without_targets_adds_nothing() -> None:
    model = make("llama")
    mute = of_tokens(range(6), [False] * 6)
    task = Causal(model.forward, flatten=False)
    loss, found = through_task(model, task, [[mute]])
    assert loss == 0.0
    assert not any(gradient.any() for gradient in found.values())
    assert task.counts(task.collate([[mute]], CPU)) == {TOKENS: 0}


@pytest.mark.parametrize("kind", KINDS)
def test_models_without_logits_to_keep(kind: str) -> None:
    model = make(kind)

    class Old(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    old = Old()
    got = through_task(old, Causal(old.forward, flatten=False), ROWS)
    loss, expected = one_by_one(model, ROWS)
    assert_equal(got, (loss, {f"inner.{name}": gradient for name, gradient in expected.items()}))


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_these_models_keep_documents_apart(kind: str, flatten: bool) -> None:
    model = make(kind)
    assert not Causal(model.forward, flatten).documents_leak(model, VOCABULARY, CPU)


JAMBA = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
JAMBA |= {"num_key_value_heads": 2, "attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 1}


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 2}),  # it takes no positions
        ("opt", {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}),
        ("jamba", {**JAMBA, "initializer_range": 0.015}),  # nearly nothing leaks through a new one's state
    ],
)
def test_models_that_mix_documents_are_found_out(architecture: str, sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, vocab_size=VOCABULARY, pad_token_id=0, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert Causal(model.forward, flatten=False).documents_leak(model, VOCABULARY, CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_does_not_see_positions_is_found_out(kind: str) -> None:
    model = make(kind)

    class Deaf(torch.nn.Module):
        def forward(
            self, input_ids: torch.Tensor, position_ids: torch.Tensor, logits_to_keep: Any, use_cache: bool
        ) -> SimpleNamespace:
            counted = torch.arange(position_ids.shape[1]).expand_as(position_ids)
            kept = model(
                input_ids=input_ids, position_ids=counted, logits_to_keep=logits_to_keep, use_cache=use_cache
            ).logits
            return SimpleNamespace(logits=kept)

    deaf = Deaf()
    assert Causal(deaf.forward, flatten=False).documents_leak(deaf, VOCABULARY, CPU)


# --- records to documents ---------------------------------------------------------------------------------------------


@cache
def tokenizer() -> Any:
    """A token for each byte."""
    letters = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def encoder(row: int = 16, drop: bool = False, **fields: str) -> CausalEncoder:
    return CausalEncoder(Template.load(tokenizer(), Data()), fields, row, drop)


def record(**fields: Any) -> Record:
    return Record("a.jsonl:3", fields)


@settings(deadline=None)
@given(targets=st.lists(st.booleans(), max_size=60), size=st.integers(1, 20))
def test_pieces_are_all_of_a_document_that_can_be_learned(targets: list[bool], size: int) -> None:
    marked = Marked(np.arange(len(targets), dtype=np.int32), np.array(targets, np.bool_))
    before = marked.targets.copy()
    found = split_to_rows(marked, size, drop=False)
    assert all(0 < document.size <= size for document in found.documents)
    assert all(document.targets == document["targets"].sum() > 0 for document in found.documents)
    learned = [t for document in found.documents for t in document["tokens"][document["targets"]].tolist()]
    assert learned == [t for t, wanted in enumerate(targets) if wanted and t % size]  # nothing comes before the first
    assert [d["tokens"][0] % size for d in found.documents] == [0] * len(found.documents)
    number = -(-len(targets) // size) or 1
    silent = number - len(found.documents)
    expected = {"longer than a row were split": 1} if len(targets) > size else {}
    assert found.notes == expected | ({"without anything to predict were dropped": silent} if silent else {})
    assert (marked.targets == before).all()


@pytest.mark.parametrize("length", [16, 17])
def test_a_long_document_is_dropped_whole(length: int) -> None:
    marked = Marked(np.arange(length, dtype=np.int32), np.arange(length) > 0)
    found = split_to_rows(marked, 16, drop=True)
    assert [document.size for document in found.documents] == ([16] if length == 16 else [])
    assert found.notes == ({} if length == 16 else {"longer than a row were dropped": 1})


def test_whole_documents_are_cut_as_the_encoder_cuts_them(tmp_path: Path) -> None:
    texts: list[dict[str, Any]] = [{"text": "x" * n} for n in range(0, 70, 3)]
    chats: list[dict[str, Any]] = [{"prompt": "p" * n, "completion": "c" * (n % 5)} for n in range(0, 70, 3)]
    several = [{"messages": [{"role": r, "content": "abc" * n} for r in ("user", "assistant") * 2]} for n in range(9)]
    silent = [{"messages": [{"role": "user", "content": "a" * 50}]}, {"prompt": "a", "completion": "b", "label": False}]
    folders, cut = set(), causal_lm.spec(CausalLM(type="causal-lm"), {}).cut
    assert cut is not None
    for row in (8, 16, 17, 64):
        for overlong in ("split", "drop"):
            data = Data(row_tokens=row, overlong=overlong)
            using = encoder(row, drop=overlong == "drop")
            folders.add(check_cut(tmp_path, texts + chats + several + silent, using, cut(data)))
    assert len(folders) == 1


def test_a_record_that_is_to_be_answered_is_its_prompt_alone() -> None:
    [document] = encoder(8).encode(record(prompt="Why is the sky blue?", completion=3), answered=False).documents
    assert tokenizer().decode(document["tokens"]) == "<|user|>\nWhy is the sky blue?\n<|assistant|>\n"
    assert (document.targets, document["targets"].any(), document.size) == (0, False, len(document["tokens"]))
    asked = (
        encoder(prompt="q", completion="a").encode(record(q="a?"), answered=False).documents[0]
    )  # the answer's is missing
    assert tokenizer().decode(asked["tokens"]) == "<|user|>\na?\n<|assistant|>\n"
    with pytest.raises(UserError, match=r"a\.jsonl:3 fits no format"):
        encoder().encode(record(other="x"), answered=False)


def test_digest_tells_encoders_apart() -> None:
    others = [encoder(), encoder(17), encoder(drop=True), encoder(text="body")]
    assert len({one.digest for one in others}) == 4
    assert encoder().digest == encoder().digest


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_outcomes_are_those_of_each_document_alone(kind: str, flatten: bool) -> None:
    model = make(kind)
    task = Causal(model.forward, flatten)
    with torch.no_grad():
        outcomes = task.predict(model, task.collate([*ROWS, []], CPU))
    documents = [part for row in ROWS for part in row]
    assert len(outcomes) == len(documents)
    for outcome, part in zip(outcomes, documents, strict=True):
        loss, _ = one_by_one(model, [[part]])
        logits = model(input_ids=torch.from_numpy(part["tokens"].astype(np.int64))[None]).logits[0, :-1]
        right = (logits.argmax(-1).numpy() == part["tokens"][1:])[part["targets"][1:]].sum()
        assert outcome["loss"] == pytest.approx(loss, abs=1e-4)
        assert (outcome["right"], outcome["targets"]) == (right, part.targets)
    with torch.no_grad():
        assert task.predict(model, task.collate([[], []], CPU)) == []


def test_scores_are_those_of_all_targets_and_pieces_are_joined() -> None:
    task = Causal(make("llama").forward, flatten=False)
    outcomes = [{"loss": 3.0, "right": 1, "targets": 2}, {"loss": 1.0, "right": 2, "targets": 6}]
    whole = task.join(outcomes)
    assert whole == {"loss": 4.0, "right": 3, "targets": 8}
    expected = {"perplexity": math.exp(0.5), "accuracy": 3 / 8}
    assert task.score(outcomes).scores == task.score([whole]).scores == expected
    assert task.score([]).scores == {}
    assert math.isfinite(task.score([{"loss": 1e9, "right": 0, "targets": 1}]).scores["perplexity"])
    assert task.join([{"answer": "x"}]) == {"answer": "x"}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_answer_does_not_depend_on_the_others(kind: str) -> None:
    model = make(kind, vocabulary=len(tokenizer()))
    recipe = Recipe.model_validate({"model": {"path": "/m"}, "data": {"train": "/d"}, "train": {"steps": 1}})
    setting = Setting(recipe, (), tokenizer, Decoding(max_tokens=5))
    task = causal_lm.spec(CausalLM(), {}).build(setting, model)
    prompts = [encoder().encode(record(prompt=text), answered=False).documents for text in ("a", "long one", "why?")]
    with torch.no_grad():
        together = task.predict(model, task.collate(prompts, CPU))
        alone = [task.predict(model, task.collate([prompt], CPU))[0] for prompt in prompts]
    assert together == alone
    assert all(set(outcome) == {"answer"} for outcome in together)
    by_hand = model.generate(
        input_ids=torch.from_numpy(prompts[1][0]["tokens"].astype(np.int64))[None],
        max_new_tokens=5,
        do_sample=False,
        eos_token_id=0,
        pad_token_id=0,
    )[0, prompts[1][0].size :]
    assert together[1]["answer"] == tokenizer().decode(by_hand, skip_special_tokens=True).strip()


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"prompt": "another", "messages": [USER, ASSISTANT]}, "q"),  # as in training, the first form that fits
        ({"prompt": "another", "instruction": "do", "output": "y"}, "do"),
        ({"instruction": "do", "input": "x"}, "do\n\nx"),
        ({"prompt": [USER]}, "q"),
        ({"prompt": "q", "completion": 3}, "q"),
        ({"text": "q"}, "q"),
    ],
)
def test_what_is_asked_has_the_form_of_what_was_learned(fields: dict[str, Any], wanted: str) -> None:
    [document] = encoder(64).encode(record(**fields), answered=False).documents
    assert tokenizer().decode(document["tokens"]) == f"<|user|>\n{wanted}\n<|assistant|>\n"


def test_a_model_of_plain_texts_goes_on_with_one() -> None:
    plain = replace(encoder(64), continues=True)
    [asked] = plain.encode(record(text="one two"), answered=False).documents
    [learned] = plain.encode(record(text="one two three")).documents
    assert asked["tokens"].tolist() == learned["tokens"][: asked.size].tolist()
    assert tokenizer().decode(asked["tokens"]) == "one two"
    [said] = plain.encode(record(prompt="one two"), answered=False).documents
    assert tokenizer().decode(said["tokens"]) == "<|user|>\none two\n<|assistant|>\n"


class Scripted(torch.nn.Linear):
    """Writes the same tokens behind every prompt, and keeps how it was asked."""

    def __init__(self, text: list[int]) -> None:
        super().__init__(1, 1)
        self.generation_config = SimpleNamespace(eos_token_id=[7])
        self._text, self.asked = text, {}

    def generate(self, input_ids: torch.Tensor, **asked: Any) -> torch.Tensor:
        self.asked = asked
        return torch.cat([input_ids, torch.tensor([self._text] * len(input_ids))], 1)


def test_a_turn_ends_where_its_template_ends_it() -> None:
    """At tokens that end it, like at the tokenizer's own end; of several tokens at their text."""
    several = tokenizer()
    model = Scripted(several("hi<|e|>more<|f|>")["input_ids"])
    assert continued(model, several, [[1, 2]], Decoding(), ["<|f|>", "<|e|>"]) == ["hi"]
    assert continued(model, several, [[1, 2]], Decoding()) == ["hi<|e|>more<|f|>"]
    assert "stop_strings" not in model.asked
    one = tokenizer()
    one.add_special_tokens({"additional_special_tokens": ["<|e|>", "<|g|>"]})
    continued(model, one, [[1, 2]], Decoding(), ["<|e|>", "<|f|>", "<|g|>"])
    assert model.asked["stop_strings"] == ["<|f|>"]
    ends = one.convert_tokens_to_ids(["<|e|>", "<|g|>"])
    assert model.asked["eos_token_id"] == sorted([7, one.eos_token_id, *ends])


def test_the_marks_of_a_call_are_in_an_answer() -> None:
    marks = tokenizer()
    marks.add_tokens(["<call>", "</call>"])
    model = Scripted([*marks("<call>hi</call>")["input_ids"], marks.eos_token_id])
    assert continued(model, marks, [[1, 2]], Decoding()) == ["<call>hi</call>"]


def test_a_prompt_that_fills_the_model_is_told_in_its_place() -> None:
    recipe = Recipe.model_validate({"model": {"path": "m"}, "data": {"train": "d"}, "train": {"steps": 1}})
    setting = Setting(recipe, (), tokenizer, Decoding(max_tokens=4))
    model = make("gpt2", vocabulary=len(tokenizer()))
    model.generation_config.eos_token_id = None
    task = Causal(model.forward, False, setting, limit=8)
    full, long, short = (of_tokens(range(size), [False] * size) for size in (8, 6, 3))
    written = []
    model.generate, generate = (
        lambda **asked: (written.append(asked["max_new_tokens"]), generate(**asked))[1],
        model.generate,
    )
    told = task.predict(model, task.collate([[full], [long], [short]], CPU))
    assert told[0] == {"error": "the prompt fills all 8 positions of the model; shorten it"}
    assert sorted(written) == [2, 4]  # a long prompt costs its neighbours nothing
    [alone] = task.predict(model, task.collate([[short]], CPU))
    assert told[2] == alone


def test_half_a_surrogate_pair_in_a_prompt_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"a.jsonl:3: the text contains half of a surrogate pair"):
        encoder().encode(record(prompt="say \ud83d"), answered=False)
