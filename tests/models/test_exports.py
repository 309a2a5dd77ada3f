"""Exports a tensor at a time against those of the whole model: every file, byte for byte."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from distft.checkpoint.best import choose_checkpoint
from distft.errors import UserError
from distft.model import export, export_pieces
from distft.model.bare import NeedsWhole
from distft.model.context import RunContext
from distft.model.export_plan import plan_export
from distft.process import environment
from tests.dist.tasks import LLAMA
from tests.models.trained_runs import trained_run, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers warn about is theirs

TIED = LLAMA.replace("config: {", "config: {tie_word_embeddings: true, ")
GPT2 = "{architecture: gpt2, vocab_size: 400, config: {n_embd: 32, n_layer: 2, n_head: 2, n_positions: 128}}"
QWEN3 = LLAMA.replace("llama", "qwen3")
EXPERTS = "{architecture: qwen2_moe, vocab_size: 400, config: {hidden_size: 32, intermediate_size: 48, \
num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, num_experts: 4, num_experts_per_tok: 2, \
moe_intermediate_size: 16, shared_expert_intermediate_size: 16}}"
LORA = "{type: lora, r: 4, alpha: 8}"
FULL = "{type: none}"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def both(context: RunContext, merged: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, ranks: int = 1) -> list[str]:
    """Have both ways write, and compare. Returns why the first one was not taken."""

    def refuse(*_: object) -> None:
        raise NeedsWhole("a test asks for it")

    reasons: list[str] = []
    export.write(RunContext(context.run, context.recipe), folder / "apart", merged, ranks=ranks, say=reasons.append)
    with monkeypatch.context() as patched:
        patched.setattr(export, "apart", refuse)
        export.write(RunContext(context.run, context.recipe), folder / "whole", merged, say=lambda _: None)
    apart, whole = files(folder / "apart"), files(folder / "whole")
    assert apart.keys() == whole.keys()
    assert [name for name in whole if apart[name] != whole[name]] == []
    assert any(name.endswith(".safetensors") for name in whole)
    return reasons


def test_tied_weights_that_lie_in_the_files_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers ties them if they are equal, and not if they differ."""
    context = trained_run(tmp_path, "causal", LORA, "bf16", TIED)
    path = context.base / "model.safetensors"
    tensors = load_file(path)
    for number, difference in enumerate((0.0, 1.0)):
        twice = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + difference}
        save_file(twice, path, metadata={"format": "pt"})
        write_checkpoint(context, seed=number)
        reasons = both(context, True, tmp_path / str(number), monkeypatch)
        assert len(reasons) == number
    assert (tmp_path / "1" / "whole" / "model.safetensors").stat().st_size > path.stat().st_size // 2


@pytest.mark.parametrize("how", ["a pickled base", "several tasks", "experts"])
def test_what_has_to_be_loaded_whole(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "several tasks":
        context = trained_run(tmp_path, "multi", LORA, "fp32")
    else:
        context = trained_run(tmp_path, "causal", FULL, "fp32", LLAMA if how == "a pickled base" else EXPERTS)
    if how == "a pickled base":
        torch.save(load_file(context.base / "model.safetensors"), context.base / "pytorch_model.bin")
        (context.base / "model.safetensors").unlink()
        write_checkpoint(context, seed=0)
    assert both(context, False, tmp_path, monkeypatch)
    monkeypatch.setattr(export, "memory_given", lambda: 1000)
    with pytest.raises(UserError, match=r"needs .* GB of host memory"):
        export.write(context, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_several_files_and_ranks(ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real model has several files from 50 GB on."""
    monkeypatch.setattr(export_pieces, "PIECE_BYTES", 4096)
    context = trained_run(tmp_path, "causal", LORA, "bf16", TIED)
    stored = choose_checkpoint(context.run, context.recipe)
    export.whole(context, stored, merged=True).model.save_pretrained(tmp_path / "whole", max_shard_size="20KB")
    plan = plan_export(context, stored, merged=True, max_file="20KB")
    assert len(plan.layouts) > 2
    plan.model.save_pretrained(tmp_path / "apart", state_dict={})
    export_pieces.write_weights(tmp_path / "apart", plan, ranks)
    export_pieces.drop_notes(tmp_path / "apart")
    assert files(tmp_path / "apart") == files(tmp_path / "whole")


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_continued(ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written whole is not written again, unless it has changed since."""
    monkeypatch.setattr(export_pieces, "PIECE_BYTES", 1024)
    context = trained_run(tmp_path, "causal", LORA, "bf16", LLAMA)
    export.write(context, tmp_path / "undisturbed", merged=True)
    plan = plan_export(context, choose_checkpoint(context.run, context.recipe), merged=True)
    left, written = list(range(len(export_pieces.pieces_of(plan.layouts)))), set[int]()
    while len(left) > 4:
        monkeypatch.setenv(environment.FAILPOINT, f"*:piece {left[2]} is written")
        killed = os.fork()
        if killed == 0:
            with suppress(BaseException):  # RunFailed: one of its own children was killed
                export.write(context, tmp_path / "out", merged=True, ranks=ranks)
            os._exit(3)
        os.waitpid(killed, 0)
        assert not (tmp_path / "out").exists()
        [staged] = tmp_path.glob(".out.staged-*")
        noted = {int(path.name) for path in (staged / export_pieces.NOTES).glob("0*")}
        assert noted > written
        left, written = [number for number in left if number not in noted], noted
    monkeypatch.delenv(environment.FAILPOINT)
    again: list[int] = []
    blocks = export_pieces.blocks
    monkeypatch.setattr(
        export_pieces, "blocks", lambda piece, values: again.append(piece.number) or blocks(piece, values)
    )
    damaged = staged / "model.safetensors"
    with open(damaged, "r+b") as file:  # in the first piece
        file.write(bytes(8))
    export.write(context, tmp_path / "out", merged=True)
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    assert again[0] == 0
    assert not written & set(again[1:])
    assert not list(tmp_path.glob(".out*"))


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = trained_run(tmp_path, "causal", FULL, "bf16", LLAMA)
    monkeypatch.setattr(export_pieces.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="no space left for the export"):
        export.write(context, tmp_path / "out")
    assert not (tmp_path / "out").exists()


CASES = {
    "full-tied-bf16": ("causal", FULL, "bf16", TIED, False),
    "full-qwen3": ("causal", FULL, "fp32", QWEN3, False),
    "full-encoder-decoder": ("translation", FULL, "bf16", "", False),
    "full-bart": ("rendering", FULL, "fp32", "", False),
    "full-speech": ("ctc", FULL, "fp32", "", False),
    "full-whisper": ("whisper", FULL, "bf16", "", False),
    "full-head": ("single", FULL, "bf16", "", False),
    "full-crf": ("crf", FULL, "bf16", "", False),
    "partial": ("causal", "{type: partial, train: ['*.layers.1.*', lm_head.weight]}", "bf16", LLAMA, False),
    "partial-gpt2": ("causal", "{type: partial, train: ['*.h.1.*']}", "fp32", GPT2, False),
    "adapter": ("causal", LORA, "bf16", LLAMA, False),
    "adapter-embeddings": ("causal", "{type: lora, r: 4, targets: [embed_tokens, q_proj]}", "bf16", LLAMA, False),
    "adapter-saved": ("causal", "{type: lora, r: 4, modules_to_save: [lm_head, embed_tokens]}", "fp32", LLAMA, False),
    "adapter-head": ("crf", LORA, "bf16", "", False),
    "adapter-experts": ("causal", "{type: lora, r: 4, targets: [q_proj]}", "bf16", EXPERTS, False),
    "adapter-tied": ("causal", LORA, "fp32", TIED, False),
    "adalora": ("causal", "{type: adalora, init_r: 6, target_r: 3}", "bf16", LLAMA, False),
    "merged": ("causal", LORA, "bf16", LLAMA, True),
    "merged-tied": ("causal", LORA, "bf16", TIED, True),
    "merged-fp32": ("causal", LORA, "fp32", LLAMA, True),
    "merged-rslora": ("causal", "{type: lora, r: 4, rslora: true}", "bf16", LLAMA, True),
    "merged-dora": ("causal", "{type: lora, r: 4, dora: true}", "bf16", LLAMA, True),
    "merged-adalora": ("causal", "{type: adalora, init_r: 6, target_r: 3}", "bf16", LLAMA, True),
    "merged-saved": ("causal", "{type: lora, r: 4, modules_to_save: [lm_head]}", "bf16", LLAMA, True),
    "merged-embeddings": ("causal", "{type: lora, r: 4, targets: [embed_tokens, q_proj]}", "bf16", LLAMA, True),
    "merged-conv1d": ("causal", "{type: lora, r: 4, targets: [c_attn, c_proj]}", "fp32", GPT2, True),
    "merged-head": ("single", LORA, "bf16", "", True),
    "merged-crf": ("crf", LORA, "fp32", "", True),
    "merged-encoder-decoder": ("translation", LORA, "bf16", "", True),
    "merged-speech": ("ctc", LORA, "fp32", "", True),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, adapter, dtype, model, merged = CASES[name]
    assert both(trained_run(tmp_path, task, adapter, dtype, model), merged, tmp_path, monkeypatch) == []
