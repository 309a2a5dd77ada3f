"""Speech by encoder and decoder: Whisper's own loss, its prompt, and its fixed window."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, AutoProcessor

from distft.data.processors import character_processor, speech_processor
from distft.data.records import Document, Record
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.recipe.tasks import SpeechSeq2Seq
from distft.tasks import speech_seq2seq
from distft.tasks.protocol import Setting, TaskSpec
from distft.tasks.shared.chunked_head import ChunkedHead, find
from distft.tasks.shared.encoder_decoder import TOKENS, EncoderDecoder
from distft.tasks.speech_seq2seq import WINDOW_DROPPED, WINDOW_TRUNCATED, SpeechEncoder
from tests.unit.tasks.recordings import check_changed_recording

CPU = torch.device("cpu")
RATE = 16000
SECONDS = 1  # that the tiny model hears at once
SIZES: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 16,
    "max_source_positions": 50 * SECONDS,
    "max_target_positions": 32,
    "dropout": 0.0,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
SPOKEN_TEXTS = [("one", 0.2), ("two three", 0.5), ("a", 0.9)]  # and seconds


@cache
def processor() -> Any:
    return speech_processor(iter(["one two three"] * 3), 380, SECONDS, mels=16)


def setting(known: Any = None, **data: Any) -> Setting:
    data = {"train": "d.jsonl", "row_tokens": 1000 * SECONDS, **data}
    recipe = Recipe.model_validate({"model": {"path": "m"}, "data": data, "train": {"steps": 1}})
    return Setting(recipe, (), lambda: known or processor())


def spec(**others: Any) -> TaskSpec:
    return speech_seq2seq.spec(SpeechSeq2Seq(type="speech-seq2seq", **{"beams": 2, "longest_target": 16, **others}), {})


def make(**others: Any) -> Any:
    tokenizer = processor().tokenizer
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "decoder_start_token_id": 1}
    config = AutoConfig.for_model("whisper", **{**SIZES, **special, "vocab_size": len(tokenizer), **others})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForSpeechSeq2Seq.from_config(config, dtype=torch.float32).eval()


def record(text: Any = "one", seconds: float = 0.5, seed: int = 0) -> Record:
    samples = np.random.default_rng(seed).normal(0.0, 0.1, int(seconds * RATE)).clip(-1, 1).tolist()
    return Record("d.jsonl:1", {"audio": {"array": samples, "sampling_rate": RATE}, "text": text})


def documents(encoder: SpeechEncoder) -> list[Document]:
    encoded = [encoder.encode(record(text, seconds, seed)) for seed, (text, seconds) in enumerate(SPOKEN_TEXTS)]
    return [document for one in encoded for document in one.documents]


def parts(**others: Any) -> tuple[Any, EncoderDecoder, list[Document]]:
    model = make(**others)
    return model, spec().build(setting(), model), documents(spec().encoder(setting()))


def test_processor_loads_back(tmp_path: Path) -> None:
    made = speech_processor(iter(["one two", "drei"] * 2), 300)
    made.save_pretrained(tmp_path)
    files = {"processor_config.json", "tokenizer_config.json", "tokenizer.json"}
    assert {path.name for path in tmp_path.iterdir()} == files
    loaded = AutoProcessor.from_pretrained(tmp_path)
    ids = loaded.tokenizer("one two")["input_ids"]
    assert ids == made.tokenizer("one two")["input_ids"]
    assert loaded.tokenizer.decode(ids) == "<|startoftranscript|><|notimestamps|>one two<|endoftext|>"
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == "one two"
    assert loaded.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>", "<|en|>"]) == [0, 1, 2]
    assert (loaded.feature_extractor.nb_max_frames, loaded.feature_extractor.feature_size) == (3000, 80)


def test_loss_is_that_of_transformers() -> None:
    model, task, found = parts()
    batch = task.collate([found[:1], [], found[1:]], CPU)
    count = task.counts(batch)[TOKENS]
    loss = task.loss(model, batch)[TOKENS]
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    torch.testing.assert_close(loss, model(**batch.inputs, labels=batch.labels).loss * count)
    own = [processor().tokenizer(text)["input_ids"][1:] for text, _ in SPOKEN_TEXTS]  # the start is given
    assert [document["labels"].tolist() for document in found] == own
    assert count == sum(map(len, own))
    assert batch.decoder_input_ids[:, 0].tolist() == [1, 1, 1]
    assert batch.useful_tokens == 1600
    assert [document.size for document in found] == [1000] * 3


def test_a_head_that_is_told_the_targets_has_the_same_losses() -> None:
    model, task, found = parts()
    batch = task.collate([found], CPU)
    whole = task.loss(model, batch)[TOKENS]
    outcomes = task.predict(model, batch)
    head = find(model, 2, lambda vocabulary: task.few(model, vocabulary, CPU))
    assert isinstance(head, ChunkedHead), head
    task.head = head
    torch.testing.assert_close(task.loss(model, batch)[TOKENS], whole)
    with torch.no_grad():
        for one, other in zip(task.predict(model, batch), outcomes, strict=True):
            assert one == {**other, "loss": pytest.approx(other["loss"], rel=1e-5)}


def test_padding_and_neighbours_do_not_matter() -> None:
    model, task, found = parts()
    together = task.predict(model, task.collate([found], CPU))
    for document, outcome, (text, _) in zip(found, together, SPOKEN_TEXTS, strict=True):
        [alone] = task.predict(model, task.collate([[document]], CPU))
        assert alone["text"] == outcome["text"]
        assert alone["loss"] == pytest.approx(outcome["loss"], rel=1e-5)
        assert (outcome["reference"], outcome["targets"]) == (text, len(document["labels"]))


def test_a_batch_of_padding_runs_the_same_graph() -> None:
    model, task, found = parts()
    reached = []
    batches: list[list[list[Document]]] = [[found], [[], []]]
    for rows in batches:
        batch = task.collate(rows, CPU)
        loss = task.loss(model, batch)[TOKENS]
        loss.backward()  # type: ignore[no-untyped-call]
        reached.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})
        gradients = [parameter.grad.abs().max() for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
    assert reached[0] == reached[1]
    assert (loss.item(), max(gradients)) == (0.0, 0.0)
    assert task.counts(batch) == {TOKENS: 0}
    assert task.predict(model, batch) == []


def test_it_writes_as_whisper_does() -> None:
    model, task, found = parts()
    batch = task.collate([found], CPU)
    model.generation_config.no_timestamps_token_id = processor().tokenizer.prefix_tokens[-1]
    written = model.generate(**batch.inputs, num_beams=2, max_new_tokens=15, do_sample=False)
    expected = [text.strip() for text in processor().tokenizer.batch_decode(written, skip_special_tokens=True)]
    assert [outcome["text"] for outcome in task.predict(model, batch)] == expected


def test_it_learns_and_scores() -> None:
    model, task, found = parts()
    batch = task.collate([found], CPU)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(100):
        loss = task.loss(model, batch)[TOKENS] * task.factors(task.counts(batch))[TOKENS]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    outcomes = task.predict(model, batch)
    assert [outcome["text"] for outcome in outcomes] == [text for text, _ in SPOKEN_TEXTS]
    assert task.score(outcomes).scores == {"wer": 0.0, "cer": 0.0}
    assert task.answer(task.join(outcomes[:1])) == {"text": "one"}


def test_masks_start_from_the_documents() -> None:
    model, task, found = parts(apply_spec_augment=True, mask_time_prob=0.5)
    model.train()

    def loss(draw: int) -> float:
        np.random.seed(draw)  # must not matter
        rows = [[replace(document, draw=draw + index) for index, document in enumerate(found)]]
        return task.loss(model, task.collate(rows, CPU))[TOKENS].item()

    first = loss(5)
    np.random.random(100)
    assert loss(5) == first
    assert loss(6) != first


def test_what_does_not_fit_is_told() -> None:
    cutting, dropping = spec().encoder(setting()), spec().encoder(setting(overlong="drop"))
    cut = cutting.encode(record(seconds=1.5))
    assert (cut.notes, len(cut.documents[0]["samples"])) == ({WINDOW_TRUNCATED: 1}, RATE)
    assert dropping.encode(record(seconds=1.5)).notes == {WINDOW_DROPPED: 1}
    assert len(cutting.encode(record(" ")).documents[0]["labels"]) == 2  # silence ends at once
    assert cutting.digest != dropping.digest
    with pytest.raises(UserError, match=r"^d.jsonl:1: text must be a text, not null"):
        cutting.encode(record(None))
    [document] = cutting.encode(record()).documents
    assert {name: str(document[name].dtype) for name in cutting.columns} == dict(cutting.columns)


def test_long_texts_keep_their_end() -> None:
    encoder = spec(longest_target=4).encoder(setting())
    [document] = encoder.encode(record("zebra")).documents
    assert processor().tokenizer.decode(document["labels"].tolist()) == "<|notimestamps|>ze<|endoftext|>"


def test_predictions_need_no_text() -> None:
    model, task, _ = parts()
    asked = Record("d.jsonl:1", {"audio": record(seconds=2.0).fields["audio"]})
    encoded = spec().encoder(setting(overlong="drop")).encode(asked, answered=False)
    [document] = encoded.documents
    assert (document.targets, len(document["labels"]), encoded.notes) == (0, 0, {WINDOW_TRUNCATED: 1})
    [outcome] = task.predict(model, task.collate([[document]], CPU))
    assert outcome.keys() == {"text"}


def test_languages() -> None:
    with pytest.raises(UserError, match=r"task.language: the tokenizer does not know 'Klingon'"):
        spec(language="Klingon").encoder(setting())
    known = speech_processor(iter(["one"]), 370, SECONDS, mels=16)
    encoder = spec(language="German").encoder(setting(known))
    [document] = encoder.encode(record("x")).documents
    told = "<|de|><|transcribe|><|notimestamps|>x<|endoftext|>"
    assert known.tokenizer.decode(document["labels"].tolist()) == told
    task = spec(language="de").build(setting(known), make(vocab_size=len(known.tokenizer)))
    assert known.tokenizer.decode(task._prompt) == f"<|startoftranscript|>{told[: told.index('x')]}"
    assert encoder.digest != spec().encoder(setting()).digest


def test_models_and_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"data.row_tokens 999 milliseconds do not fit this model, .* set data.row_tokens to 1000"
    ):
        spec().encoder(setting(row_tokens=999))
    with pytest.raises(UserError, match="produces 100 frames of 16 numbers, but the model needs 200 of 16"):
        spec().build(setting(), make(max_source_positions=100))
    with pytest.raises(UserError, match=r"task.longest_target 33 is more than the decoder's 32 positions"):
        spec(longest_target=33).build(setting(), make())
    with pytest.raises(
        UserError, match="supports only Whisper models; Wav2Vec2FeatureExtractor belongs to another family"
    ):
        spec().encoder(setting(character_processor(iter(["a"]))))


def test_bf16_models_have_a_loss_of_fp32() -> None:
    model, task, found = parts()
    batch = task.collate([found], CPU)
    exact = task.loss(model, batch)[TOKENS].item()
    loss = task.loss(model.to(torch.bfloat16), batch)[TOKENS]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert len(task.predict(model, batch)) == 3


def test_a_changed_recording_is_heard(tmp_path: Path) -> None:
    check_changed_recording(tmp_path, spec().encoder(setting()), ("one", "two three"))
