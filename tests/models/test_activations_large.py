"""Predicted bytes of activations beside counted ones for models of 1 to 72 B parameters; prints a table with -s."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distft.plan.operations import Implementation
from tests.models import shapes
from tests.models.real_models import How, of_causal_lm, of_masked_lm, of_seq2seq

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # what peft and transformers warn about is theirs

BATCHES = [(1, 32768), (4, 4096), (16, 512)]
WAYS = {
    "full": How(),
    "full, checkpointing": How(checkpointing=True),
    "full, every second layer": How(checkpointing=2),
    "LoRA": How(rank=16),
    "LoRA, checkpointing": How(rank=16, checkpointing=True),
    "LoRA, every second layer": How(rank=16, checkpointing=2),
}
CHUNKED = WAYS | {
    "full, checkpointing, chunks": How(checkpointing=True, chunk=1024),
    "LoRA, checkpointing, chunks": How(rank=16, checkpointing=True, chunk=1024),
}
WHOLE = {  # with all their layers
    "Llama 1 B": shapes.llama(2048, 8192, 32, 8, 64, layers=16),
    "Llama 8 B": shapes.llama(4096, 14336, 32, 8, 128, layers=32),
    "Llama 70 B": shapes.llama(8192, 28672, 64, 8, 128, layers=80),
}
SHORT = {  # with four
    "Qwen 1.7 B": shapes.qwen(2048, 6144, 16, 8, layers=4),
    "Qwen 8 B": shapes.qwen(4096, 12288, 32, 8, layers=4),
    "Qwen 72 B": shapes.qwen(8192, 29568, 64, 8, layers=4),
    "Gemma 1 B": shapes.gemma(1152, 6912, 4, 1, layers=4),
    "Gemma 12 B": shapes.gemma(3840, 15360, 16, 8, layers=4),
    "Mixtral 8 x 7 B": shapes.mixtral(4096, 14336, 32, 8, layers=4),
    "GPT-2 1.5 B": shapes.gpt2(1600, 25, layers=4),
    "NeoX 20 B": shapes.neox(6144, 64, layers=4),
}


def check(name: str, way: str, batch: str, found: tuple[int, int]) -> None:
    expected, counted = found
    print(
        f"\n| {name} | {way} | {batch} | {expected / 1e9:.2f} | {counted / 1e9:.2f} | {expected / counted - 1:+.2%} |"
    )
    assert expected == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize(("rows", "tokens"), BATCHES)
@pytest.mark.parametrize("way", CHUNKED)
@pytest.mark.parametrize("name", WHOLE)
def test_whole(name: str, way: str, rows: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(name, way, f"{rows} x {tokens}", of_causal_lm(WHOLE[name], CHUNKED[way], rows, tokens, monkeypatch))


def test_chunks_take_the_logits_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 B with LoRA and a row of 32,768 tokens: beside the inputs of layers, 12 bytes for each of 128,256 x 32,767
    logits. With chunks the peak is in the backward pass of a layer, so it does not depend on the size of a chunk."""
    how = WAYS["LoRA, checkpointing"]
    (_, whole), (_, chunked), (_, smaller) = (
        of_causal_lm(WHOLE["Llama 8 B"], one, 1, 32768, monkeypatch)
        for one in (how, replace(how, chunk=1024), replace(how, chunk=512))
    )
    print(f"\n{whole / 1e9:.2f} GB, {chunked / 1e9:.2f} GB with chunks")
    inputs, logits = 2 * 32 * 32768 * 4096, 128256 * 32767
    assert whole - inputs == pytest.approx(12 * logits, rel=0.02)
    assert smaller == chunked < 20e9
    assert chunked - inputs < 2 * logits  # less than the logits alone in bf16


@pytest.mark.parametrize(("rows", "tokens"), BATCHES)
@pytest.mark.parametrize("way", CHUNKED)
@pytest.mark.parametrize("name", SHORT)
def test_four_layers(name: str, way: str, rows: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = min(tokens, 4096) if name.startswith("GPT-2") else tokens
    check(name, way, f"{rows} x {tokens}", of_causal_lm(SHORT[name], CHUNKED[way], rows, tokens, monkeypatch))


DIRECTED = {
    "DoRA": How(rank=16, dora=True),
    "DoRA, checkpointing": How(rank=16, dora=True, checkpointing=True),
    "DoRA with dropout": How(rank=16, dora=True, adapter_dropout=0.1),
    "DoRA in fp32": How(rank=16, dora=True, exact=True),
    "LoRA in fp32": How(rank=16, exact=True),
}


@pytest.mark.parametrize(("rows", "tokens"), [(1, 64), (4, 768), (4, 4096)])
@pytest.mark.parametrize("way", DIRECTED)
@pytest.mark.parametrize("name", ["Llama 1 B", "Llama 8 B"])
def test_directed(name: str, way: str, rows: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of short rows sums of W and A B are the most that a layer has alive."""
    check(name, way, f"{rows} x {tokens}", of_causal_lm(WHOLE[name], DIRECTED[way], rows, tokens, monkeypatch))


OTHER_WAYS = {
    "LoRA with dropout": How(rank=8, adapter_dropout=0.1),
    "full, eager": How(attention="eager"),
    "full, eager, checkpointing": How(attention="eager", checkpointing=True),
    "LoRA, packed": How(rank=8, packed=True),
    "full, fp32": How(dtype=torch.float32),
}
SMALL = {
    "Llama, small": shapes.llama(256, 1024, 8, 2, 32, layers=3, vocabulary=500),
    "Qwen, small": shapes.qwen(256, 768, 4, 2, layers=3, vocabulary=500),
    "Gemma, small": shapes.gemma(256, 1536, 4, 1, layers=3, vocabulary=500),
    "Mixtral, small": shapes.mixtral(256, 512, 8, 2, layers=3, vocabulary=500),
    "GPT-2, small": shapes.gpt2(256, 4, layers=3, vocabulary=500),
    "NeoX, small": shapes.neox(256, 4, layers=3, vocabulary=500),
}
NOT_COUNTED = {
    ("Mixtral, small", "full, fp32"),  # fake tensors have grouped products in bf16 only
    ("Mixtral, small", "LoRA with dropout"),  # PEFT refuses it for experts
}


@pytest.mark.parametrize(
    ("name", "way"), [(name, way) for name in SMALL for way in OTHER_WAYS if (name, way) not in NOT_COUNTED]
)
def test_other_ways(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(name, way, "2 x 320", of_causal_lm(SMALL[name], OTHER_WAYS[way], 2, 320, monkeypatch))


@pytest.mark.parametrize("way", [*CHUNKED, "eager"])
@pytest.mark.parametrize("hidden", [768, 1024])
def test_bert(hidden: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shapes.bert(hidden, hidden // 64, layers=12 * hidden // 768)
    how = CHUNKED.get(way, How(attention="eager"))
    check(f"BERT {hidden}", way, "32 x 512", of_masked_lm(made, how, 32, 512, monkeypatch))


@pytest.mark.parametrize("way", [*WAYS, "eager"])
@pytest.mark.parametrize("gated", [False, True])
def test_t5(gated: bool, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shapes.t5(1024, 2816 if gated else 4096, 16, 64, layers=24, gated=gated)
    how = WAYS.get(way, How(attention="eager"))
    name = "Flan-T5 large" if gated else "T5 large"
    check(name, way, "8 x 512, 128", of_seq2seq(made, how, 8, 512, 128, monkeypatch))


@pytest.mark.parametrize("way", [*WAYS, "eager"])
def test_whisper(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, how = shapes.whisper(1280, 20, layers=32, mels=128), WAYS.get(way, How(attention="eager"))
    check("Whisper large", way, "4 x 1500, 128", of_seq2seq(made, how, 4, 1500, 128, monkeypatch, mels=128))


@pytest.mark.parametrize(("rows", "tokens"), BATCHES)
@pytest.mark.parametrize("way", ["full, checkpointing", "LoRA"])
@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_packed(attention: Implementation, way: str, rows: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shapes.llama(4096, 14336, 32, 8, 128, layers=4)
    how, name = replace(WAYS[way], packed=True, attention=attention), f"{way}, packed, {attention}"
    check("Llama 8 B", name, f"{rows} x {tokens}", of_causal_lm(made, how, rows, tokens, monkeypatch))
