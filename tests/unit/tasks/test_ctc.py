"""CTC: the loss is transformers' own, padding changes nothing, and masks depend on the documents alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCTC, AutoProcessor

from distft.data.processors import character_processor, digest_of_files
from distft.data.records import Document, Record
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.recipe.tasks import CTC
from distft.run.digest import of_parts
from distft.tasks import ctc
from distft.tasks.ctc import FAST, UNKNOWN_CHARACTERS, UNSPELLABLE, USUAL, UTTERANCES, CTCEncoder, CTCTask, needed
from distft.tasks.protocol import Setting
from tests.unit.tasks.recordings import check_changed_recording

CPU = torch.device("cpu")
RATE = 16000
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "ctc_zero_infinity": True,
} | {f"{where}_dropout": 0.0 for where in ("hidden", "attention", "activation", "feat_proj", "final")}
SPOKEN = [("ab", 0.5), ("aab c", 0.9), ("c", 0.3), ("", 0.2)]  # and seconds


@cache
def processor(letters: str = "abc") -> Any:
    return character_processor(iter([letters]))


def setting(known: Any = None, **data: Any) -> Setting:
    data = {"train": "d.jsonl", "row_tokens": 2000, **data}
    recipe = Recipe.model_validate({"model": {"path": "m"}, "data": data, "train": {"steps": 1}})
    return Setting(recipe, (), lambda: known or processor())


def make(architecture: str = "wav2vec2", **others: Any) -> Any:
    sizes = {**SIZES, "vocab_size": len(processor().tokenizer), "pad_token_id": 0, **others}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCTC.from_config(AutoConfig.for_model(architecture, **sizes), dtype=torch.float32)
    SPEC.model.extend(model, ())
    return model.eval()


SPEC = ctc.spec(CTC(type="ctc"), {})


def sound(seconds: float, seed: int = 0) -> list[float]:
    samples: list[float] = np.random.default_rng(seed).normal(0.0, 0.1, int(seconds * RATE)).clip(-1, 1).tolist()
    return samples


def record(text: Any, seconds: float = 0.5, seed: int = 0) -> Record:
    return Record("d.jsonl:1", {"audio": {"array": sound(seconds, seed), "sampling_rate": RATE}, "text": text})


def documents(encoder: CTCEncoder) -> list[Document]:
    found = []
    for seed, (text, seconds) in enumerate(SPOKEN):
        [one] = encoder.encode(record(text, seconds, seed)).documents
        found.append(replace(one, draw=seed << 40))
    return found


def parts(**others: Any) -> tuple[Any, CTCTask, list[Document]]:
    model = make(**others)
    return model, SPEC.build(setting(), model), documents(SPEC.encoder(setting()))


def test_processor_loads_back(tmp_path: Path) -> None:
    made = character_processor(iter(["Büro|", "a b"]))
    made.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "processor_config.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    tokens = ["<pad>", "<unk>", "|", "B", "a", "b", "o", "r", "ü"]
    assert loaded.tokenizer.convert_ids_to_tokens(list(range(len(loaded.tokenizer)))) == tokens
    assert loaded.tokenizer("a ro")["input_ids"] == [4, 2, 7, 6]
    assert (loaded.feature_extractor.sampling_rate, loaded.feature_extractor.return_attention_mask) == (RATE, True)
    assert digest_of_files(loaded.tokenizer) == digest_of_files(made.tokenizer)
    assert digest_of_files(processor().tokenizer) != digest_of_files(made.tokenizer)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own
@pytest.mark.parametrize("architecture", ["wav2vec2", "hubert", "wavlm"])
def test_loss_is_that_of_transformers(architecture: str) -> None:
    model, task, found = parts(architecture=architecture)
    batch = task.collate([found[:1], [], found[1:]], CPU)
    labels = torch.full((4, 5), -100)
    for index, document in enumerate(found):
        labels[index, : len(document["labels"])] = torch.from_numpy(document["labels"])
    model.config.ctc_loss_reduction = "sum"
    loss = task.loss(model, batch)[UTTERANCES]
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    torch.testing.assert_close(loss, model(**batch.inputs, labels=labels).loss)
    assert task.counts(batch) == {UTTERANCES: 4}
    assert batch.useful_tokens == 1900


def test_samples_are_as_from_the_feature_extractor() -> None:
    _, task, found = parts()
    own = processor().feature_extractor(
        [document["samples"] / np.float32(32768) for document in found],
        sampling_rate=RATE,
        padding=True,
        return_tensors="pt",
    )
    inputs = task.collate([found], CPU).inputs
    assert inputs.keys() == own.keys()
    for name, values in inputs.items():
        torch.testing.assert_close(values, own[name].to(values.dtype))


def test_padding_and_neighbours_do_not_matter() -> None:
    model, task, found = parts()
    together = task.predict(model, task.collate([found], CPU))
    for document, outcome, (text, _) in zip(found, together, SPOKEN, strict=True):
        [alone] = task.predict(model, task.collate([[document]], CPU))
        assert alone["text"] == outcome["text"]
        assert alone["loss"] == pytest.approx(outcome["loss"], rel=1e-4)
        assert (outcome["reference"], outcome["targets"]) == (text, 1)
    whole = task.loss(model, task.collate([found], CPU))[UTTERANCES]
    assert sum(outcome["loss"] for outcome in together) == pytest.approx(whole.item(), rel=1e-5)


def test_a_batch_of_padding_runs_the_same_graph() -> None:
    model, task, found = parts()
    model.train()
    reached = []
    batches: list[list[list[Document]]] = [[found], [[], []]]
    for rows in batches:
        batch = task.collate(rows, CPU)
        loss = task.loss(model, batch)[UTTERANCES]
        loss.backward()  # type: ignore[no-untyped-call]
        reached.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})
        gradients = [parameter.grad.abs().max() for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
    assert reached[0] == reached[1] == {name for name, _ in model.named_parameters()}
    assert (loss.item(), max(gradients)) == (0.0, 0.0)
    assert task.counts(batch) == {UTTERANCES: 0}
    assert task.predict(model, batch) == []


def test_what_cannot_be_written_is_not_counted() -> None:
    model, task, found = parts()
    frames = int(task.collate([found[2:3]], CPU).frames[0])
    hopeless = replace(found[2], columns={**found[2].columns, "labels": np.full(frames, 3, np.int32)})
    assert needed(hopeless["labels"]) == 2 * frames - 1
    batch, without = task.collate([[found[0], hopeless]], CPU), task.collate([[found[0]]], CPU)
    assert task.counts(batch) == task.counts(without)
    torch.testing.assert_close(task.loss(model, batch)[UTTERANCES], task.loss(model, without)[UTTERANCES])
    outcome = task.predict(model, batch)[1]
    assert (outcome["loss"], outcome["targets"]) == (0.0, 0)


def test_masks_start_from_the_documents() -> None:
    model, task, found = parts(mask_time_prob=0.5, mask_feature_prob=0.5, mask_feature_length=2)
    model.train()

    def loss(draw: int) -> float:
        np.random.seed(draw)  # must not matter
        rows = [[replace(document, draw=draw + index) for index, document in enumerate(found)]]
        before = np.random.get_state()[1].tolist()  # type: ignore[index]
        value = task.loss(model, task.collate(rows, CPU))[UTTERANCES].item()
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
        return value

    first = loss(5)
    np.random.random(100)
    assert loss(5) == first
    assert loss(6) != first


def test_recordings_shorter_than_a_mask() -> None:
    model, task, _ = parts(mask_time_prob=0.5)
    encoder = SPEC.encoder(setting())
    short = [encoder.encode(record("a", seconds)).documents[0] for seconds in (0.001, 0.1)]
    batch = task.collate([short], CPU)
    assert batch.frames.tolist() == [1, 4]
    loss = task.loss(model.train(), batch)[UTTERANCES]
    assert np.isfinite(loss.item())
    assert len(task.predict(model.eval(), task.collate([short[:1]], CPU))) == 1


def test_a_changed_recording_is_heard(tmp_path: Path) -> None:
    check_changed_recording(tmp_path, SPEC.encoder(setting()), ("ab", "c"))


def test_repeats_are_one_and_blanks_nothing() -> None:
    _, task, _ = parts()
    spoken = [0, 3, 3, 0, 3, 2, 2, 4, 1, 0, 0, 5, 2]
    assert task._text(torch.eye(6)[spoken]) == "aa bc"
    assert task._text(torch.eye(6)[[0, 0]]) == ""


def test_it_learns_and_scores() -> None:
    model, task, _ = parts(apply_spec_augment=False)
    model.lm_head.bias.data[0] = -3.0  # else it learns for long to say nothing
    encoder = SPEC.encoder(setting())
    found = [encoder.encode(Record("d.jsonl:1", said)).documents[0] for said in map(melody, ("ab", "c"))]
    batch = task.collate([found], CPU)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(40):
        loss = task.loss(model, batch)[UTTERANCES] * task.factors(task.counts(batch))[UTTERANCES]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    outcomes = task.predict(model, batch)
    assert [outcome["text"] for outcome in outcomes] == ["ab", "c"]
    assert task.score(outcomes).scores == {"wer": 0.0, "cer": 0.0}
    assert task.answer(task.join(outcomes[:1])) == {"text": "ab"}


def melody(text: str) -> dict[str, Any]:
    """A tone for each letter."""
    time, silence = np.arange(2000) / RATE, np.zeros(800)
    tones = [0.3 * np.sin(2 * np.pi * {"a": 300, "b": 1000, "c": 3000}[letter] * time) for letter in text]
    noise = np.random.default_rng(0).normal(0.0, 0.003, 800 + 2800 * len(text))
    samples = np.concatenate([silence, *(part for tone in tones for part in (tone, silence))]) + noise
    return {"audio": {"array": samples.tolist(), "sampling_rate": RATE}, "text": text}


@pytest.mark.parametrize(
    ("letters", "text", "spelt", "notes"),
    [
        ("ABC", "ab\tC ", "AB C", {}),
        ("abc", "AB C", "ab c", {}),
        ("aBc", "aB c", "aB c", {}),
        ("abc", "axb", "axb", {UNKNOWN_CHARACTERS: 1}),
        ("abc", "", "", {}),
    ],
)
def test_spelling(letters: str, text: str, spelt: str, notes: dict[str, int]) -> None:
    known = processor(letters)
    encoder = SPEC.encoder(setting(known))
    encoded = encoder.encode(record(text))
    [document] = encoded.documents
    assert bytes(document["about"]).decode() == f'"{spelt}"'
    assert known.tokenizer.decode(document["labels"].tolist(), group_tokens=False) == spelt.replace("x", "<unk>")
    assert encoded.notes == notes
    assert (document.size, len(document["samples"]), document.targets) == (500, 8000, 1)
    assert {name: str(document[name].dtype) for name in encoder.columns} == dict(encoder.columns)


def test_what_does_not_fit_is_told() -> None:
    encoder = SPEC.encoder(setting(row_tokens=500))
    assert encoder.encode(record("xyz")).notes == {UNSPELLABLE: 1}
    assert encoder.encode(record("ab", 0.6)).notes == {"longer than a row were dropped": 1}
    assert encoder.encode(record("ab" * 12, 0.5)).notes == {}  # 24 frames
    assert encoder.encode(record("ab" * 12 + "a", 0.5)).notes == {FAST: 1}
    assert encoder.encode(record("aa" * 7, 0.5)).notes == {FAST: 1}
    with pytest.raises(UserError, match=r"^d.jsonl:1: text must be a text, not null"):
        encoder.encode(record(None))
    with pytest.raises(UserError, match=r"^d.jsonl:1 has no column 'audio'"):
        encoder.encode(Record("d.jsonl:1", {"text": "a"}))


def test_frames_are_as_the_encoder_counts_them() -> None:
    model = make()
    for count in (400, 719, 720, 16000, 12345):
        assert int(model._get_feat_extract_output_lengths(torch.tensor([count]))[0]) == (count - 400) // 320 + 1


STRIDES = {"conv_stride": [5, 2, 2, 2, 2, 1, 1]}
KERNELS = {"conv_dim": [16] * 4, "conv_kernel": [80, 8, 4, 2], "conv_stride": [10, 4, 4, 2]}


@pytest.mark.parametrize("sizes", [{}, STRIDES, KERNELS])
def test_what_fits_is_by_the_frames_of_the_model(tmp_path: Path, sizes: dict[str, Any]) -> None:
    model = make(**sizes)
    model.config.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    encoder = SPEC.encoder(setting(AutoProcessor.from_pretrained(tmp_path)))
    for count in (8000, 8400, 9999):
        frames = int(model._get_feat_extract_output_lengths(torch.tensor([count]))[0])
        audio = {"array": sound(1.0)[:count], "sampling_rate": RATE}
        for text, notes in (("ab" * frames)[:frames], {}), (("ab" * frames)[: frames + 1], {FAST: 1}):
            assert encoder.encode(Record("d.jsonl:1", {"audio": audio, "text": text})).notes == notes


def test_the_digest_tells_of_frames_that_are_not_the_usual() -> None:
    encoder = SPEC.encoder(setting())
    assert (encoder.width, encoder.stride) == USUAL
    # as the version before frames were asked for had it
    assert encoder.digest == of_parts("ctc", digest_of_files(processor().tokenizer), RATE, [], 2000)
    assert len({encoder.digest, replace(encoder, width=401).digest, replace(encoder, stride=80).digest}) == 3


def test_predictions_need_no_text() -> None:
    model, task, _ = parts()
    encoder = SPEC.encoder(setting(row_tokens=500))
    encoded = encoder.encode(Record("d.jsonl:1", {"audio": {"array": sound(0.6), "sampling_rate": RATE}}), False)
    [document] = encoded.documents
    assert (document.size, len(document["samples"]), document.targets) == (500, 8000, 0)
    assert encoded.notes == {"longer than a row were truncated": 1}
    [outcome] = task.predict(model, task.collate([[document]], CPU))
    assert outcome.keys() == {"text"}


def test_no_mask_where_the_model_was_trained_without() -> None:
    known = character_processor(iter(["abc"]))
    known.feature_extractor.return_attention_mask = False
    known.feature_extractor.do_normalize = False
    model, found = make(), documents(SPEC.encoder(setting()))
    batch = SPEC.build(setting(known), model).collate([found], CPU)
    assert batch.inputs.keys() == {"input_values"}
    assert batch.inputs["input_values"][0, :8000].tolist() == (found[0]["samples"] / 32768).tolist()


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="tokenizer has 6 characters, but the model predicts 5"):
        SPEC.build(setting(), make(vocab_size=5))
    spectra = AutoConfig.for_model("wav2vec2-bert", vocab_size=6, hidden_size=16, num_hidden_layers=1)
    spectra.update({"num_attention_heads": 2, "intermediate_size": 16, "output_hidden_size": 16})
    with pytest.raises(UserError, match="wav2vec2-bert does not"):
        SPEC.build(setting(), AutoModelForCTC.from_config(spectra))
    with pytest.raises(UserError, match="needs a feature extractor"):
        SPEC.encoder(setting(processor().tokenizer))


def test_layers_are_never_dropped() -> None:
    assert make(layerdrop=0.5).config.layerdrop == 0.0


def test_bf16_models_have_a_loss_of_fp32() -> None:
    model, task, found = parts()
    batch = task.collate([found], CPU)
    exact = task.loss(model, batch)[UTTERANCES].item()
    loss = task.loss(model.to(torch.bfloat16), batch)[UTTERANCES]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.02)
