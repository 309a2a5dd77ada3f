"""Adapters as a user has them: trained under ZeRO by the command, looked at, exported, loaded by plain PEFT."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from tests.e2e.command import Workplace, records, shards
from tests.e2e.conftest import Made
from tests.e2e.models import here, logits, of_base, ours, tensors, with_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers warn about is theirs

ADALORA = "adapter={type: adalora, init_r: 6, target_r: 1, alpha: 12, delta_t: 1}"


def trained(place: Workplace, name: str, *overrides: str, nproc: str = "2") -> Made:
    run = place.folder / name
    ended = place.run("train", "recipe.yaml", *overrides, "--run-dir", run, "--nproc", nproc)
    assert ended.code == 0, ended.err
    assert "engine.zero_stage=3" not in overrides or shards(ended.err)
    return Made(place, run, ended)


@pytest.fixture(scope="module")
def adalora(place: Workplace) -> Made:
    return trained(place, "adalora", ADALORA, "train.steps=20", "engine.zero_stage=3", "checkpoint.every=7")


def test_adalora_in_plain_peft(adalora: Made) -> None:
    """The pruned shapes load, and compute what was trained; a weight without ranks is there with one that is zero."""
    run = adalora.run
    assert (with_adapter(run, run / "final") - ours(run)).abs().max() < 1e-5
    assert (logits(of_base(run, torch.float32)) - ours(run)).abs().max() > 1e-4
    ranks = [record["ranks"] for record in records(run) if "ranks" in record][-1]
    shapes = {name: tensor.shape for name, tensor in tensors(run / "final").items()}
    written = {name.partition(".lora_A")[0]: shape[0] for name, shape in shapes.items() if ".lora_A" in name}
    assert written == {name: max(1, rank) for name, rank in ranks.items()}
    assert len(set(ranks.values())) > 1
    assert sum(ranks.values()) == len(ranks)  # target_r 1
    assert 0 in ranks.values()
    assert all(tensor.numel() for tensor in tensors(run / "final").values())
    left = rf"AdaLoRA: {len(ranks)} of {6 * len(ranks)} ranks are left, 0 to \d per weight"
    assert re.search(left, adalora.ended.err)


def test_adalora_merged(adalora: Made, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ended = adalora.place.run("export", adalora.run, tmp_path / "merged", "--merged")
    assert ended.code == 0, ended.err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (logits(merged) - ours(adalora.run)).abs().max() < 1e-5


def test_ranks_are_shown(adalora: Made, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    ended = here(monkeypatch, capfd, "ranks", adalora.run)
    assert ended.code == 0, ended.err
    assert "self_attn.q_proj" in ended.out
    assert "14 of 84 ranks are left" in ended.out
    picture = adalora.run / "ranks.png"
    assert str(picture) in ended.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = [json.loads(line) for line in (adalora.run / "metrics.jsonl").read_text().splitlines()]
    budgets = [record["rank_budget"] for record in shown if "loss" in record]
    assert budgets[:2] == [84, 84]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-6:] == [14] * 6


def test_ranks_of_another_adapter(
    unbroken: Made, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = here(monkeypatch, capfd, "ranks", unbroken.run)
    assert ended.code == 2
    assert "adapter.type lora, not adalora" in ended.sentence


@pytest.fixture(scope="module")
def dora(place: Workplace) -> Made:
    adapter = "adapter={type: lora, r: 4, dora: true, modules_to_save: [embed_tokens], targets: [q_proj, up_proj]}"
    untied = "model.init.config.tie_word_embeddings=false"
    return trained(place, "dora", adapter, untied, "train.steps=6", "engine.zero_stage=3")


def test_dora_with_whole_modules_in_plain_peft(dora: Made) -> None:
    final = tensors(dora.run / "final")
    assert (with_adapter(dora.run, dora.run / "final") - ours(dora.run)).abs().max() < 1e-5
    assert any("magnitude" in name for name in final)
    [embeddings] = [tensor for name, tensor in final.items() if "embed_tokens" in name]
    assert not torch.equal(embeddings, of_base(dora.run, torch.float32).get_input_embeddings().weight)


def test_another_run_begins_with_an_adapter(dora: Made) -> None:
    """Its first loss is that of the adapter, and its weights go on from there."""
    place, adapter = dora.place, "adapter={type: lora, r: 4, dora: true, targets: [q_proj, up_proj]"
    whole = "modules_to_save: [embed_tokens]"
    base = f"model={{path: {dora.run / 'base'}}}"
    begun = [f"{adapter}, {whole}, from: {dora.run / 'final'}}}", f"{adapter}, {whole}}}"]
    first = []
    for number, given in enumerate(begun):
        run = trained(place, f"begun-{number}", given, base, "train.steps=1", nproc="1").run
        first.append(next(record["loss"] for record in records(run) if "loss" in record))
    assert first[0] < first[1] - 0.1


def test_an_adapter_of_another_shape(dora: Made, tmp_path: Path) -> None:
    given = f"adapter={{type: lora, r: 8, dora: true, targets: [q_proj, up_proj], from: {dora.run / 'final'}}}"
    base = f"model={{path: {dora.run / 'base'}}}"
    ended = dora.place.run("train", "recipe.yaml", given, base, "--run-dir", tmp_path / "run")
    assert ended.code == 2
    assert ended.sentence.startswith("adapter.from: ")
    assert "\n" not in ended.sentence
    assert list((tmp_path / "run").glob("checkpoints/*")) == []


SEQ2SEQ = """\
task: {type: seq2seq-lm, beams: 1}
model:
  init: {architecture: t5, vocab_size: 300, config: {d_model: 16, d_kv: 8, d_ff: 32, num_layers: 1, num_heads: 2}}
data: {train: train.jsonl, fields: {source: prompt, target: completion}, row_tokens: 64}
adapter: {type: lora, r: 2, targets: [q, v], modules_to_save: [shared]}
train: {steps: 3, global_batch: 4, micro_batch: 2}
engine: {zero_stage: 3, dtype: fp32}
"""


@pytest.mark.long
def test_a_module_that_no_forward_pass_uses(place: Workplace) -> None:
    (place.folder / "shared.yaml").write_text(SEQ2SEQ)
    what = ("train", "shared.yaml", "--run-dir", place.folder / "shared", "--nproc", "2")
    ended = place.run(*what)
    assert ended.code == 2
    assert ended.sentence == (
        "adapter.modules_to_save: no forward pass of this model uses 'shared', so it would never change; its weight is "
        "that of encoder.embed_tokens, decoder.embed_tokens, lm_head: name those modules"
    )
    ended = place.run(*what, "adapter.modules_to_save=[embed_tokens, lm_head]")
    assert ended.code == 0, ended.err
