"""Small random models: their tokenizers have the special tokens of their kind, and lose no text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from distft.data.processors import END_OF_TEXT, ROLES
from distft.data.sources import Source
from distft.errors import UserError
from distft.model.random_init import create, texts
from distft.recipe.schema import ModelInit
from distft.recipe.tasks import CausalLM, MaskedLM, Seq2SeqLM, SequenceClassification, SpeechSeq2Seq
from distft.tasks import causal_lm, masked_lm, seq2seq_lm, sequence_classification, speech_seq2seq
from distft.tasks.multi_task import whole
from distft.tasks.protocol import TaskSpec

TEXTS = ["the old cat met the other cat", "Über die Brücke, 7 🙂\n", "  two  spaces ", "no, no, no"]
UNSEEN = ["a line\nand another\t", " lead", "日本語", "<|user|", "[mask]", ""]
CLASSES = sequence_classification.spec(SequenceClassification(type="sequence-classification"), {})
SPECS = {
    "decoder": causal_lm.spec(CausalLM(), {}),
    "encoder": masked_lm.spec(MaskedLM(type="masked-lm"), {}),
    "seq2seq": seq2seq_lm.spec(Seq2SeqLM(type="seq2seq-lm"), {}),
    "speech": speech_seq2seq.spec(SpeechSeq2Seq(type="speech-seq2seq"), {}),
}
NAMES = ["decoder", "encoder", "seq2seq"]


@cache
def tokenizer_of(vocabulary: str, size: int = 320) -> Any:
    return SPECS[vocabulary].model.family.make(iter(TEXTS), size, None)


@pytest.mark.parametrize("text", [*TEXTS, *UNSEEN])
@pytest.mark.parametrize("vocabulary", NAMES)
def test_any_text_comes_back(vocabulary: str, text: str) -> None:
    made = tokenizer_of(vocabulary)
    ids = made(text)["input_ids"]
    back = made.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # an encoder's words begin with a blank wherever they stand
    assert back == (f" {text}" if vocabulary == "encoder" and text and not text[0].isspace() else text)
    assert made.unk_token_id is None
    assert max(ids, default=0) < len(made)


@pytest.mark.parametrize("vocabulary", NAMES)
def test_it_is_as_large_as_wanted_or_as_the_data_allow(vocabulary: str) -> None:
    assert len(tokenizer_of(vocabulary, 262)) == 262
    assert 262 < len(tokenizer_of(vocabulary, 5000)) < 400
    first, again = (SPECS[vocabulary].model.family.make(iter(TEXTS), 300, None) for _ in range(2))
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()


def test_a_decoder_has_an_end_and_roles_and_adds_nothing() -> None:
    made = tokenizer_of("decoder")
    assert (made.eos_token, made.pad_token, made.bos_token) == (END_OF_TEXT, END_OF_TEXT, None)
    for token in (END_OF_TEXT, *ROLES):
        assert made(token)["input_ids"] == [made.convert_tokens_to_ids(token)]
    ids = made(f"{ROLES[1]}hello{END_OF_TEXT}")["input_ids"]
    assert (ids[0], ids[-1]) == (made.convert_tokens_to_ids(ROLES[1]), made.eos_token_id)
    assert made("hello")["input_ids"] == ids[1:-1]


def test_an_encoder_has_what_bert_has_around_texts_and_pairs() -> None:
    made = tokenizer_of("encoder")
    special = [made.cls_token, made.sep_token, made.pad_token, made.mask_token]
    assert special == ["[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    assert len(set(made.convert_tokens_to_ids(special))) == 4
    one = made("the cat", return_token_type_ids=True)
    pair = made("the cat", "no", return_token_type_ids=True)
    inner = [made(text, add_special_tokens=False)["input_ids"] for text in ("the cat", "no")]
    cls, sep = made.cls_token_id, made.sep_token_id
    assert one["input_ids"] == [cls, *inner[0], sep]
    assert set(one["token_type_ids"]) == {0}
    assert pair["input_ids"] == [cls, *inner[0], sep, *inner[1], sep]
    assert pair["token_type_ids"] == [0] * (len(inner[0]) + 2) + [1] * (len(inner[1]) + 1)
    cut = made("the cat " * 20, "no", truncation="longest_first", max_length=16)["input_ids"]
    assert len(cut) == 16
    assert cut[-1 - len(inner[1]) :] == [*inner[1], sep]
    assert made("a [MASK] b", add_special_tokens=False)["input_ids"].count(made.mask_token_id) == 1


def test_words_of_an_encoder_are_the_same_wherever_they_stand() -> None:
    """So that words that come one by one become the tokens that they are in a text."""
    made = tokenizer_of("encoder")
    text = made("the old cat", add_special_tokens=False)["input_ids"]
    assert made(["the", "old", "cat"], is_split_into_words=True, add_special_tokens=False)["input_ids"] == text
    words = made("the old cat", add_special_tokens=False)
    assert [words.word_ids().count(word) > 0 for word in range(3)] == [True] * 3


def test_a_seq2seq_ends_its_texts_and_fills_with_something_else() -> None:
    made = tokenizer_of("seq2seq")
    assert made.eos_token == END_OF_TEXT
    assert made.pad_token_id != made.eos_token_id
    inner = made("the cat", add_special_tokens=False)["input_ids"]
    assert made("the cat")["input_ids"] == made(text_target="the cat")["input_ids"] == [*inner, made.eos_token_id]
    assert made.pad_token_id not in inner
    assert made("the cat " * 20, truncation=True, max_length=8)["input_ids"][-1] == made.eos_token_id


@pytest.mark.parametrize("vocabulary", NAMES)
def test_it_is_read_back_as_it_was(tmp_path: Path, vocabulary: str) -> None:
    made = tokenizer_of(vocabulary)
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, *UNSEEN):
        assert again(text)["input_ids"] == made(text)["input_ids"]
    assert again("a", "b")["input_ids"] == made("a", "b")["input_ids"]
    assert again.special_tokens_map == made.special_tokens_map


# --- models -----------------------------------------------------------------------------------------------------------

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def made(folder: Path, spec: TaskSpec, architecture: str, labels: Sequence[str] = (), **config: Any) -> Path:
    data = folder / "data.jsonl"
    data.write_text('{"text": "the cat", "source": "the cat", "target": "die Katze", "label": "a"}\n')
    init = ModelInit(architecture=architecture, vocab_size=300, config=config, seed=3)
    create(init, spec.model, labels, [(spec, Source(str(data)))], folder / "base")
    return folder / "base"


def test_what_models_know_of_special_tokens() -> None:
    ids = {name: SPECS[name].model.family.special_ids(tokenizer_of(name)) for name in NAMES}
    ends = tokenizer_of("decoder").eos_token_id
    assert ids["decoder"] == {"bos_token_id": None, "eos_token_id": ends, "pad_token_id": ends}
    pad = tokenizer_of("encoder").pad_token_id
    assert ids["encoder"] == {"bos_token_id": None, "eos_token_id": None, "pad_token_id": pad}
    assert ids["seq2seq"]["decoder_start_token_id"] == ids["seq2seq"]["pad_token_id"] != ids["seq2seq"]["eos_token_id"]


def test_a_causal_model(tmp_path: Path) -> None:
    folder = made(tmp_path, SPECS["decoder"], "llama", **BERT)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    ends = {tokenizer.decode([token]) for token in (model.config.eos_token_id, model.config.pad_token_id)}
    assert ends == {END_OF_TEXT}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_tokenizer_learns_from_the_records_that_can_be_read(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "the cat"}\n{broken\n{"text": 3}\n{"text": "no"}\n')
    given = [(SPECS["encoder"], Source(str(data), bad_budget=0.5))]
    assert list(texts(given)) == ["the cat", "no"]
    with pytest.raises(UserError, match=r"data.jsonl:2 is not valid JSON"):
        list(texts([(spec, replace(source, bad_budget=None)) for spec, source in given]))


def test_an_encoder_model_can_be_that_of_any_task(tmp_path: Path) -> None:
    folder = made(tmp_path, SPECS["encoder"], "bert", **BERT)
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    with torch.no_grad():
        assert model(**tokenizer("the [MASK]", return_tensors="pt")).logits.shape[-1] == len(tokenizer)


def test_a_classifier_knows_its_labels(tmp_path: Path) -> None:
    folder = made(tmp_path, CLASSES, "bert", ["b", "a", "c"], **BERT)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "b", 1: "a", 2: "c"}
    assert model.classifier.out_features == 3


def test_a_seq2seq_model_begins_with_its_filler(tmp_path: Path) -> None:
    folder = made(tmp_path, SPECS["seq2seq"], "t5", **T5)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.decoder_start_token_id == tokenizer.pad_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer(" die Katze")["input_ids"][-1] == tokenizer.eos_token_id


def test_one_encoder_for_several_tasks(tmp_path: Path) -> None:
    specs = {"lm": SPECS["encoder"], "mood": CLASSES}
    (tmp_path / "data.jsonl").write_text('{"text": "the cat", "label": "a"}\n')
    data = [(spec, Source(str(tmp_path / "data.jsonl"))) for spec in specs.values()]
    create(ModelInit(architecture="bert", vocab_size=300, config=BERT), whole(specs), (), data, tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "base"))


def test_the_seed_alone_decides_the_weights(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    weights = []
    for number, folder in enumerate(folders):
        folder.mkdir()
        torch.manual_seed(number)
        before = torch.get_rng_state()
        weights.append((made(folder, SPECS["encoder"], "bert", **BERT) / "model.safetensors").read_bytes())
        assert torch.equal(before, torch.get_rng_state())
    assert weights[0] == weights[1]


def test_a_model_has_the_tokens_of_its_tokenizer_as_it_is_read(tmp_path: Path) -> None:
    """transformers reads another tokenizer beside a Qwen2, with a token more."""
    folder = made(tmp_path, SPECS["decoder"], "qwen2", hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert config.vocab_size >= len(tokenizer)


def test_a_setting_that_only_the_code_of_a_model_knows(tmp_path: Path) -> None:
    """DeBERTa-v3 is a DeBERTa-v2 with some that its configuration does not list."""
    sizes = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True}
    folder = made(tmp_path, SPECS["encoder"], "deberta-v2", **BERT, **sizes)
    layer = AutoModelForMaskedLM.from_pretrained(folder).deberta.encoder.layer[0].attention.self
    assert layer.position_buckets == 8
    with pytest.raises(UserError, match="position_bucket: deberta-v2 has no such setting"):
        made(tmp_path, SPECS["encoder"], "deberta-v2", **BERT, position_bucket=8)


@pytest.mark.parametrize(
    ("architecture", "config", "said"),
    [
        ("lama", {}, "model.init.architecture: transformers does not know 'lama'"),
        ("bert", {"n_embd": 3}, "model.init.config.n_embd: bert has no such setting"),
        ("bert", {"hidden_size": 15}, "model.init: bert cannot be built with these sizes"),
        ("llama", {"hidden_size": 16}, "model.init: llama cannot be built with these sizes"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(tmp_path: Path, architecture: str, config: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        made(tmp_path, SPECS["encoder"], architecture, **config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base").exists()


LLAMA = {**BERT, "num_key_value_heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2}
VOCABULARY = "the tokenizer decides this; leave it out, and set model.init.vocab_size"
HEARD = "model.init.config: give max_source_positions of 50 or more, and num_mel_bins of 1 or more"


@pytest.mark.parametrize(
    ("vocabulary", "architecture", "config", "said"),
    [
        ("decoder", "llama", {**LLAMA, "hidden_act": "nonsense"}, "with these sizes (it knows no 'nonsense')"),
        ("decoder", "gpt2", {**GPT2, "activation_function": "nonsense"}, "with these sizes (it knows no 'nonsense')"),
        ("seq2seq", "t5", {**T5, "feed_forward_proj": "nonsense"}, "with these sizes (it knows no 'nonsense')"),
        ("decoder", "llama", {**LLAMA, "num_attention_heads": 0}, "with these sizes (integer division or modulo by"),
        ("speech", "whisper", {"max_source_positions": "a"}, "Validation error for field 'max_source_positions': Type"),
        ("speech", "whisper", {"num_mel_bins": None}, "with these sizes (Validation error for field 'num_mel_bins'"),
        ("speech", "whisper", {"max_source_positions": 49}, HEARD),
        ("speech", "whisper", {"num_mel_bins": -1}, HEARD),
        ("decoder", "llama", {**LLAMA, "vocab_size": 10}, f"model.init.config.vocab_size: {VOCABULARY}"),
        ("encoder", "xlm", {"n_words": 10}, f"model.init.config.n_words: {VOCABULARY}"),
    ],
)
def test_settings_that_no_model_takes(
    tmp_path: Path, vocabulary: str, architecture: str, config: Any, said: str
) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        made(tmp_path, SPECS[vocabulary], architecture, **config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base").exists()
