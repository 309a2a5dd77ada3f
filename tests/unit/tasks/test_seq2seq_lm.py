"""Sequence to sequence: the loss is transformers' own, and what is written depends on nothing but the source."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerFast,
)

from distft.data.records import Document, Record
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.recipe.tasks import Seq2SeqLM
from distft.tasks import seq2seq_lm
from distft.tasks.protocol import Setting
from distft.tasks.seq2seq_lm import EMPTY_SIDE, Seq2SeqEncoder
from distft.tasks.shared.decoder_targets import TARGET_CUT, Targets
from distft.tasks.shared.encoder_decoder import TOKENS, EncoderDecoder
from distft.tasks.shared.position_limits import check_positions, check_source, source_positions

CPU = torch.device("cpu")
END, FILLER = "</s>", "<pad>"
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
SIZES: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "bart": BART,
    "marian": BART,
    "mbart": BART,
}
PAIRS = [("one two", "eins zwei"), ("three", "drei"), ("four five six seven", "vier"), ("eight", "acht neun zehn")]


@cache
def tokenizer(ends: bool = True) -> Any:
    """A token for each byte."""
    letters = [FILLER, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if ends:
        backend.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=FILLER)


def setting(processor: Any, **data: Any) -> Setting:
    recipe = {"model": {"path": "m"}, "data": {"train": "d.jsonl", "row_tokens": 64, **data}, "train": {"steps": 1}}
    return Setting(Recipe.model_validate(recipe), (), lambda: processor)


def settings(**others: Any) -> Seq2SeqLM:
    return Seq2SeqLM(type="seq2seq-lm", **{"beams": 2, "longest_target": 16, **others})


def make(architecture: str, vocabulary: int, **others: Any) -> Any:
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    sizes = {**SIZES[architecture], "vocab_size": vocabulary, **special, "dropout_rate": 0.0, "dropout": 0.0, **others}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(architecture, **sizes), dtype=torch.float32)


def record(source: Any = "one", target: Any = "eins", place: int = 1) -> Record:
    return Record(f"d.jsonl:{place}", {"source": source, "target": target})


def documents(encoder: Seq2SeqEncoder, answered: bool = True) -> list[Document]:
    encoded = [encoder.encode(record(*pair), answered) for pair in PAIRS]
    return [document for one in encoded for document in one.documents]


def parts(architecture: str = "t5", **others: Any) -> tuple[Any, EncoderDecoder, list[Document]]:
    spec, where = seq2seq_lm.spec(settings(**others), {}), setting(tokenizer())
    model = make(architecture, len(tokenizer()))
    spec.model.extend(model, ())
    return model.eval(), spec.build(where, model), documents(spec.encoder(where))


@pytest.mark.parametrize("architecture", ["t5", "bart", "marian"])
def test_loss_is_that_of_transformers(architecture: str) -> None:
    model, task, found = parts(architecture)
    batch = task.collate([found[:2], [], found[2:]], CPU)
    own = model(**batch.inputs, labels=batch.labels).loss
    loss = task.loss(model, batch)[TOKENS]
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    count = task.counts(batch)[TOKENS]
    assert count == sum(len(tokenizer()(target)["input_ids"]) for _, target in PAIRS)
    torch.testing.assert_close(loss, own * count)
    assert batch.useful_tokens == sum(len(tokenizer()(source)["input_ids"]) for source, _ in PAIRS)


@pytest.mark.parametrize("of", [MBartTokenizer, MBart50Tokenizer])
def test_languages_stand_where_the_model_has_them(of: Any) -> None:
    known = of()
    spec = seq2seq_lm.spec(settings(source_language="en_XX", target_language="de_DE"), {})
    where = setting(known)
    model = make("mbart", len(known), decoder_start_token_id=2, pad_token_id=1, eos_token_id=2).eval()
    encoder, task = spec.encoder(where), spec.build(where, model)
    batch = task.collate([documents(encoder)], CPU)
    german = known.convert_tokens_to_ids("de_DE")
    assert german in batch.labels
    assert german in batch.decoder_input_ids[0]
    torch.testing.assert_close(  # transformers wraps the last token of the labels around
        task.loss(model, batch)[TOKENS], model(**batch.inputs, labels=batch.labels).loss * task.counts(batch)[TOKENS]
    )
    assert len(task.predict(model, batch)) == len(PAIRS)
    assert task._prompt[-1] == german


def test_languages_are_asked_for_and_checked() -> None:
    with pytest.raises(UserError, match=r"knows several languages: set task.source_language"):
        seq2seq_lm.spec(settings(), {}).encoder(setting(NllbTokenizer()))
    unknown = settings(source_language="eng_Latn", target_language="German")
    with pytest.raises(UserError, match="does not know eng_Latn and German"):
        seq2seq_lm.spec(unknown, {}).encoder(setting(NllbTokenizer()))
    with pytest.raises(UserError, match="tokenizer has no languages"):
        seq2seq_lm.spec(settings(target_language="de"), {}).encoder(setting(tokenizer()))
    known = settings(source_language="eng_Latn", target_language="deu_Latn")
    other = settings(source_language="eng_Latn", target_language="fra_Latn")
    digests = {seq2seq_lm.spec(one, {}).encoder(setting(NllbTokenizer())).digest for one in (known, other)}
    assert len(digests) == 2


def test_padding_and_neighbours_do_not_matter() -> None:
    model, task, found = parts()
    together = task.predict(model, task.collate([found], CPU))
    alone = [task.predict(model, task.collate([[one]], CPU))[0] for one in found]
    for left, right, (_, target) in zip(together, alone, PAIRS, strict=True):
        assert left["text"] == right["text"]
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert left["reference"] == target
        assert left["targets"] == len(target.encode()) + 1
    whole = task.loss(model, task.collate([found], CPU))[TOKENS]
    assert sum(outcome["loss"] for outcome in together) == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_a_batch_of_padding_runs_the_same_graph(architecture: str) -> None:
    model, task, found = parts(architecture)
    reached = []
    batches: list[list[list[Document]]] = [[found], [[], []]]
    for rows in batches:
        batch = task.collate(rows, CPU)
        loss = task.loss(model, batch)[TOKENS]
        loss.backward()  # type: ignore[no-untyped-call]
        reached.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})
        gradients = [parameter.grad.abs().max() for parameter in model.parameters()]
        model.zero_grad()
    assert reached[0] == reached[1]
    assert loss.item() == 0.0
    assert max(gradients) == 0.0
    assert task.counts(batch) == {TOKENS: 0}
    assert task.predict(model, batch) == []


def test_what_is_written_is_what_the_model_generates() -> None:
    model, task, found = parts(beams=3)
    batch = task.collate([found], CPU)
    written = model.generate(**batch.inputs, num_beams=3, max_new_tokens=16, do_sample=False)
    expected = [text.strip() for text in tokenizer().batch_decode(written, skip_special_tokens=True)]
    assert [outcome["text"] for outcome in task.predict(model, batch)] == expected


def test_it_learns_and_scores() -> None:
    model, task, found = parts(beams=1)
    batch = task.collate([found], CPU)
    optimizer = torch.optim.AdamW(model.parameters(), 0.03)
    for _ in range(60):
        loss = task.loss(model, batch)[TOKENS] * task.factors(task.counts(batch))[TOKENS]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    outcomes = task.predict(model, batch)
    assert [outcome["text"] for outcome in outcomes] == [target for _, target in PAIRS]
    assert task.score(outcomes).scores["chrf"] == pytest.approx(100.0)
    assert task.answer(task.join(outcomes[:1])) == {"text": "eins zwei"}


def test_predictions_need_no_target() -> None:
    model, task, _ = parts()
    encoder = seq2seq_lm.spec(settings(), {}).encoder(setting(tokenizer(), row_tokens=8))
    encoded = encoder.encode(Record("d.jsonl:1", {"source": "much too long"}), answered=False)
    [asked] = encoded.documents
    assert (asked.size, asked.targets, len(asked["labels"]), len(asked["about"])) == (8, 0, 0, 0)
    assert encoded.notes == {"longer than a row were truncated": 1}
    [outcome] = task.predict(model, task.collate([[asked]], CPU))
    assert outcome.keys() == {"text"}


def test_targets_are_cut_before_their_end() -> None:
    encoder = seq2seq_lm.spec(settings(longest_target=4, prefix="say: "), {}).encoder(setting(tokenizer()))
    encoded = encoder.encode(record("a", "abcdef"))
    [document] = encoded.documents
    assert encoded.notes == {TARGET_CUT: 1}
    assert tokenizer().decode(document["labels"]) == f"abc{END}"
    assert tokenizer().decode(document["tokens"]) == f"say: a{END}"
    assert document["types"].tolist() == [0] * document.size
    assert {name: str(document[name].dtype) for name in encoder.columns} == dict(encoder.columns)


def test_an_end_is_added_where_the_tokenizer_puts_none() -> None:
    targets = Targets(tokenizer(ends=False), 4)
    assert tokenizer().decode(targets("ab")) == f"ab{END}"
    assert tokenizer().decode(targets.columns("abcdef")[0]["labels"]) == f"abc{END}"


def test_what_does_not_fit_is_told() -> None:
    spec = seq2seq_lm.spec(settings(), {"source": "en"})
    encoder = spec.encoder(setting(tokenizer(), row_tokens=8, overlong="drop"))
    whole = Record("d.jsonl:3", {"en": "one", "target": "eins"})
    assert len(encoder.encode(whole).documents) == 1
    assert encoder.encode(Record("d.jsonl:3", {"en": "one", "target": " "})).notes == {EMPTY_SIDE: 1}
    long = encoder.encode(Record("d.jsonl:3", {"en": "much too long", "target": "eins"}))
    assert (long.documents, long.notes) == ([], {"longer than a row were dropped": 1})
    with pytest.raises(UserError, match=r"^d.jsonl:3 has no column 'target'"):
        encoder.encode(Record("d.jsonl:3", {"en": "one"}))
    with pytest.raises(UserError, match=r"^d.jsonl:3: target must be a text, not int"):
        encoder.encode(Record("d.jsonl:3", {"en": "one", "target": 1}))


def test_the_digest_tells_settings_apart() -> None:
    def digest(data: dict[str, Any], **others: Any) -> str:
        return seq2seq_lm.spec(settings(**others), {}).encoder(setting(tokenizer(), **data)).digest

    assert digest({}) == digest({}, beams=5)
    others = [digest({}), digest({}, prefix="x"), digest({}, longest_target=5), digest({"row_tokens": 9})]
    assert len({*others, digest({"overlong": "drop"})}) == 5


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"task.longest_target 65 is more than the decoder's 64 positions"):
        check_positions(make("bart", 300), settings(longest_target=65))
    check_source(source_positions(make("bart", 300)), 64)
    with pytest.raises(UserError, match=r"a source has 65 tokens, but the encoder 64 positions"):
        check_source(source_positions(make("bart", 300)), 65)
    assert source_positions(make("t5", 300)) is None
    grows = torch.nn.Module()
    grows.make_weights, grows.config = len, make("bart", 300).config
    assert source_positions(grows) is None
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer)
    with pytest.raises(UserError, match="end-of-sequence"):
        seq2seq_lm.spec(settings(), {}).encoder(setting(without))


def test_layers_are_never_dropped() -> None:
    model = make("bart", 300, encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    seq2seq_lm.spec(settings(), {}).model.extend(model, ())
    assert (model.config.encoder_layerdrop, model.model.decoder.layerdrop) == (0.0, 0.0)


def test_bf16_models_have_a_loss_of_fp32() -> None:
    model, task, found = parts()
    batch = task.collate([found], CPU)
    exact = task.loss(model, batch)[TOKENS].item()
    loss = task.loss(model.to(torch.bfloat16), batch)[TOKENS]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert np.isfinite(task.predict(model, batch)[0]["loss"])
