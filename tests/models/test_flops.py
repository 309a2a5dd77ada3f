"""Counted FLOPs beside torch's own counter, which sees every matrix product that is really done.

Attention is eager here, so the counter sees both halves of causal scores, of which a model needs one: there
the expected value has attention twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from distft.data.records import Document
from distft.tasks.causal_lm import Causal
from distft.tasks.dpo import Pairs
from distft.tasks.masked_lm import MaskedBatch
from distft.tasks.multi_task import MultiBatch, join_models, models_of
from distft.tasks.shared.causal_rows import CausalBatch
from distft.tasks.shared.encoder_decoder import WritingBatch
from distft.tasks.shared.lengths import Lengths
from distft.tasks.shared.padding import Padded
from distft.tasks.token_classification.task import TaggingBatch
from distft.training.flops import Attention, Work, work_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT's, about names in transformers that are to change

SHORT, LONG = 16, 160
NEAR = 0.04  # of layers so small; that the first layer's keys need no gradients of activations is not counted
EAGER: Mapping[str, Any] = {"attn_implementation": "eager"}
DECODER = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 96}


def llama(**given: Any) -> Any:
    config = transformers.LlamaConfig(**DECODER, intermediate_size=160, num_key_value_heads=2, **given)
    return transformers.LlamaForCausalLM._from_config(config, **EAGER)


def wide_heads() -> Any:
    """Heads together wider than the model."""
    return llama(head_dim=32)


def tied() -> Any:
    return llama(tie_word_embeddings=True)


def gpt2() -> Any:
    config = transformers.GPT2Config(n_embd=64, n_layer=4, n_head=4, vocab_size=96, n_positions=LONG)
    return transformers.GPT2LMHeadModel._from_config(config, **EAGER)


def mixtral() -> Any:
    config = transformers.MixtralConfig(
        **DECODER, intermediate_size=96, num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2
    )
    return transformers.MixtralForCausalLM._from_config(config, **EAGER, experts_implementation="eager")


def bert() -> Any:
    config = transformers.BertConfig(**DECODER, intermediate_size=128, max_position_embeddings=LONG)
    return transformers.BertForMaskedLM._from_config(config, **EAGER)


def classifier() -> Any:
    config = transformers.BertConfig(**DECODER, intermediate_size=128, max_position_embeddings=LONG)
    return transformers.BertForSequenceClassification._from_config(config, **EAGER)


def t5() -> Any:
    config = transformers.T5Config(
        d_model=64, d_kv=16, d_ff=128, num_layers=4, num_heads=4, vocab_size=96, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration._from_config(config, **EAGER)


def bart() -> Any:
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 4), ("ffn_dim", 128))}
    config = transformers.BartConfig(
        d_model=64,
        vocab_size=96,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=LONG,
        **sizes,
    )
    return transformers.BartForConditionalGeneration._from_config(config, **EAGER)


def with_lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    # PEFT makes whole weights of its adapters of experts, and gradients of them: more than has to be computed
    targets = ["q_proj", "v_proj"] if model.config.model_type == "mixtral" else "all-linear"
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets))


def upper_half(model: Any) -> Any:
    """Only the last two of four layers are trained: backward goes no further down."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers.2." in name or ".layers.3." in name)
    return model


def whole(model: Any) -> Any:
    return model


def counted(model: Any, inputs: dict[str, Any]) -> float:
    model.train()
    with FlopCounterMode(display=False) as counter:
        output = model(**inputs, **({} if "bert" in model.config.model_type else {"use_cache": False}))
        output.logits.float().square().mean().backward()
    return float(counter.get_total_flops())


def as_counted(work: Work, lengths: Lengths) -> float:
    """What the counter sees of it: causal attention whole."""

    def seen(kinds: Any) -> list[Attention]:
        return [replace(kind, causal=False) for kind in kinds]

    return replace(work, reading=seen(work.reading), writing=seen(work.writing)).flops(lengths)


@pytest.mark.parametrize(("change", "length"), [(whole, LONG), (with_lora, SHORT)])
@pytest.mark.parametrize("make", [llama, wide_heads, tied, gpt2, mixtral, bert, classifier])
def test_one_stack(make: Any, change: Any, length: int) -> None:
    model = change(make())
    work = work_of(model)
    assert work is not None
    found = counted(model, {"input_ids": torch.randint(5, 90, (2, length))})
    assert as_counted(work, Lengths([length] * 2, 2 * length)) == pytest.approx(found, rel=NEAR)


@pytest.mark.parametrize(("change", "read", "written"), [(whole, 160, 120), (with_lora, 40, 8)])
@pytest.mark.parametrize("make", [t5, bart])
def test_encoder_and_decoder(make: Any, change: Any, read: int, written: int) -> None:
    model = change(make())
    work = work_of(model)
    assert work is not None
    inputs = {"input_ids": torch.randint(5, 90, (2, read)), "decoder_input_ids": torch.randint(5, 90, (2, written))}
    found = counted(model, inputs)
    assert as_counted(work, Lengths([read] * 2, 2 * written, [written] * 2)) == pytest.approx(found, rel=NEAR)


def test_logits_at_some_places_and_layers_that_are_frozen() -> None:
    keep = torch.arange(6)
    for change in (whole, with_lora, upper_half):
        model = change(llama())
        work = work_of(model)
        assert work is not None
        found = counted(model, {"input_ids": torch.randint(5, 90, (1, 64)), "logits_to_keep": keep})
        assert as_counted(work, Lengths([64], len(keep))) == pytest.approx(found, rel=NEAR)


def test_pairs_of_tokens_that_see_each_other() -> None:
    def pairs(length: int, causal: bool, window: int | None) -> float:
        return float(Attention(1.0, causal, window).flops([length]))

    def by_hand(length: int, causal: bool, window: int) -> int:
        at = torch.arange(length)
        apart = at.unsqueeze(1) - at
        near = apart.abs() < window
        return int((near & (apart >= 0) if causal else near).sum())

    for length in (3, 64, 300):
        for window in (64, 1000):
            for causal in (True, False):
                assert pairs(length, causal, window) == pytest.approx(by_hand(length, causal, window), abs=length)
    assert pairs(100, True, None) == 100 * 100 / 2
    assert pairs(100, False, None) == 100 * 100


def test_documents_that_share_a_row_do_not_see_each_other() -> None:
    work = work_of(llama())
    assert work is not None
    apart, one = work.flops(Lengths([256] * 4, 1024)), work.flops(Lengths([1024], 1024))
    attention = sum(kind.flops([1024]) for kind in work.reading)
    assert one - apart == pytest.approx(attention * 3 / 4)


def test_windows_come_from_the_configuration() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    config = transformers.Qwen2Config(
        **DECODER, num_key_value_heads=4, sliding_window=32, use_sliding_window=True, layer_types=kinds
    )
    work = work_of(transformers.Qwen2ForCausalLM(config))
    assert work is not None
    full = 3 * 4 * 64.0  # forward and backward of scores and values
    assert work.reading == [Attention(3 * full, True, 32), Attention(full, True, None)]
    mistral = transformers.MistralConfig(**DECODER, num_key_value_heads=4, intermediate_size=64, sliding_window=16)
    work = work_of(transformers.MistralForCausalLM(mistral))
    assert work is not None
    assert work.reading == [Attention(4 * full, True, 16)]


def test_a_layer_that_is_used_again_and_again_is_not_counted() -> None:
    config = transformers.AlbertConfig(
        hidden_size=32,
        embedding_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=96,
    )
    assert work_of(transformers.AlbertForMaskedLM(config)) is None


def test_weights_in_shards_or_in_4_bits_count_whole() -> None:
    """As ZeRO-3 and bitsandbytes leave them, neither of which runs here without a process group or a library."""
    model = llama()
    expected = work_of(model)
    for number, parameter in enumerate(model.parameters()):
        if parameter.dim() > 1 and number % 2:
            parameter.quant_state = SimpleNamespace(shape=parameter.shape)
        else:
            parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert work_of(model) == expected


def test_several_tasks_on_one_encoder_each_count_their_own_head() -> None:
    shared = join_models({"mask": bert(), "class": classifier()})
    works = {name: work_of(model) for name, model in models_of(shared, ("mask", "class")).items()}
    assert works["mask"] is not None
    assert works["class"] is not None
    assert (works["mask"].per_logits, works["class"].per_logits) == (6.0 * 64 * 96, 0.0)
    assert works["mask"].reading == works["class"].reading


def test_lengths_of_a_packed_batch_are_those_of_its_documents() -> None:
    def document(size: int, targets: int) -> Document:
        return Document({"tokens": np.arange(size), "targets": np.arange(size) >= size - targets}, size, targets)

    task = Causal(llama().forward, flatten=False)
    batch = task.collate([[document(5, 2), document(4, 1)], [document(7, 3)], []], torch.device("cpu"))
    assert batch.lengths == Lengths([5, 4, 7], 6)


@pytest.mark.parametrize("batch", [CausalBatch, Pairs, Padded, MaskedBatch, TaggingBatch, WritingBatch, MultiBatch])
def test_every_batch_of_texts_has_lengths(batch: type) -> None:
    assert isinstance(batch.lengths, property)  # type: ignore[attr-defined]
