"""Exports a tensor at a time against those of the whole model: every file, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from distft.checkpoint.best import choose_checkpoint
from distft.model import export
from distft.model.bare import NeedsWhole
from distft.model.context import RunContext
from tests.dist.tasks import LLAMA
from tests.models.trained_runs import trained_run

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


def both(context: RunContext, merged: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, ranks: int = 1) -> None:
    """Have both ways write, and compare."""

    def refuse(*_: object) -> None:
        raise NeedsWhole("a test asks for it")

    said: list[str] = []
    export.write(RunContext(context.run, context.recipe), folder / "apart", merged, ranks=ranks, say=said.append)
    assert said == []
    with monkeypatch.context() as patched:
        patched.setattr(export, "apart", refuse)
        export.write(RunContext(context.run, context.recipe), folder / "whole", merged, say=said.append)
    assert len(said) == 1
    apart, whole = files(folder / "apart"), files(folder / "whole")
    assert apart.keys() == whole.keys()
    assert [name for name in whole if apart[name] != whole[name]] == []
    assert any(name.endswith(".safetensors") for name in whole)


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
    both(trained_run(tmp_path, task, adapter, dtype, model), merged, tmp_path, monkeypatch)
