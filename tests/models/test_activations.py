"""Formulas by hand, and a few peaks beside those of the product's own loss; `test_activations_large` has more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from distft.plan.activations import activations
from distft.plan.architecture import Architecture, Attention, FeedForward, Layers, Stack, Weight
from distft.plan.loss import Batch, Computing
from distft.plan.operations import Implementation, Numbers, Update
from tests.models import shapes
from tests.models.real_models import How, architecture_of, built, of_causal_lm, of_masked_lm, of_seq2seq

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers warn about is theirs

H, F, HEADS, KEYS, SIZE, DEPTH, VOCABULARY = 64, 256, 4, 2, 16, 3, 1000
BATCH = Batch(2, 50, logits=98, targets=98)
TOKENS = 100


def model(depth: int = DEPTH) -> Architecture:
    q, k = HEADS * SIZE, KEYS * SIZE
    shapes_ = {
        "self_attn.q_proj": (q, H),
        "self_attn.k_proj": (k, H),
        "self_attn.v_proj": (k, H),
        "self_attn.o_proj": (H, q),
        "mlp.gate_proj": (F, H),
        "mlp.up_proj": (F, H),
        "mlp.down_proj": (H, F),
    }
    weights = [Weight(f"{name}.weight", shape) for name, shape in shapes_.items()]
    norms = [Weight(f"{name}.weight", (H,), "vector") for name in ("input_layernorm", "post_attention_layernorm")]
    layers = Layers(
        depth,
        "model.layers",
        (*weights, *norms),
        Attention(HEADS, KEYS, SIZE, SIZE, True),
        FeedForward(F, True, "silu"),
        2,
    )
    other = (
        Weight("model.embed_tokens.weight", (VOCABULARY, H), "embedding"),
        Weight("model.norm.weight", (H,), "vector"),
    )
    return Architecture("llama", (Stack("only", H, (layers,), other),), (), VOCABULARY, True)


def whole(name: str, weight: Weight) -> Update:
    return Update(whole=True)


def adapter(name: str, weight: Weight) -> Update:
    return Update(rank=8) if weight.kind == "matrix" else Update()


def last_layers(name: str, weight: Weight) -> Update:
    return Update(whole=name.startswith("model.layers.2."))


def computing(update: Callable[[str, Weight], Update] = whole, *, width: int = 2, **settings: bool) -> Computing:
    return Computing(Numbers(width, "cpu"), "sdpa", update, **settings)


PER_TOKEN = (  # of a layer in bf16 that is trained whole
    2 * (4 * H + 2 * H + 2 * H + 4)  # norms: input in fp32, normed, result, and a number
    + 2 * (2 * HEADS * SIZE + 2 * KEYS * SIZE)  # queries, result, keys, values
    + 4 * HEADS  # logarithms of sums
    + 2 * 4 * F  # gate, its activation, up, product
)


def test_layers_keep_what_the_formula_says() -> None:
    assert activations(model(), BATCH, computing()).terms["layers"] == DEPTH * TOKENS * PER_TOKEN


def test_frozen_norms_keep_less_and_adapters_a_little_more() -> None:
    """What a norm's weight would multiply is not kept; of each adapter's first half the result is."""
    found = activations(model(), BATCH, computing(adapter)).terms["layers"]
    first = 2 * 4 * H + 2 * 4  # the first layer's input has no gradient: its norm keeps the result alone
    expected = DEPTH * TOKENS * (PER_TOKEN - 2 * 2 * H + 7 * 2 * 8) - TOKENS * (4 * H + 4)
    assert first > 0
    assert found == expected


def directed(name: str, weight: Weight) -> Update:
    return replace(adapter(name, weight), magnitude=weight.kind == "matrix")


def test_dora_keeps_both_products_and_its_lengths() -> None:
    columns = HEADS * SIZE + 2 * KEYS * SIZE + H + 2 * F + H  # that the seven matrices make
    found, plain = (activations(model(), BATCH, computing(update)).terms["layers"] for update in (directed, adapter))
    assert found - plain == DEPTH * 2 * columns * (2 * TOKENS + 3)


def test_dora_lends_what_the_largest_matrix_takes_several_times() -> None:
    """An identity matrix of its inputs, A B, s A B and the sum with W; of few tokens that is most of all."""
    found = activations(model(), replace(BATCH, rows=1, tokens=2, logits=1, targets=1), computing(directed))
    shared = sum(found.terms[name] for name in ("batch", "masks", "positions", "embeddings", "layers"))
    assert found.peak == shared + 2 * (F * F + F * 8 + 3 * F * H)
    assert found.moments[0].size == found.peak


def test_layers_below_what_is_trained_keep_nothing() -> None:
    found = activations(model(), BATCH, computing(last_layers)).terms["layers"]
    assert found == TOKENS * (PER_TOKEN - 4 * H - 4)


def test_checkpointing_keeps_inputs_of_layers_and_one_layer() -> None:
    found = activations(model(), BATCH, computing(checkpointing=True))
    assert found.terms["layers"] == DEPTH * TOKENS * 2 * H
    assert found.terms["one layer"] > TOKENS * PER_TOKEN
    more = activations(model(DEPTH + 1), BATCH, computing(checkpointing=True))
    assert more.peak - found.peak == TOKENS * 2 * H


def test_logits_take_twelve_bytes_each_in_both_widths() -> None:
    large = replace(model(), vocabulary=10**6)
    for width in (2, 4):
        found = activations(large, BATCH, computing(width=width))
        assert found.peak == found.moments[0].size
        assert found.terms["logits and loss"] == pytest.approx(12 * 98 * 10**6, rel=0.001)


def test_a_packed_row_gets_a_mask_and_each_layer_a_copy_in_its_numbers() -> None:
    packed = activations(model(), replace(BATCH, mask=True), computing())
    apart = activations(model(), BATCH, computing())
    assert packed.terms["masks"] == 2 * 50 * 50
    repeated = 2 * 2 * (HEADS - KEYS) * SIZE  # keys and values, once for each head
    assert packed.terms["layers"] - apart.terms["layers"] == DEPTH * (2 * 2 * 50 * 50 + TOKENS * repeated)


@pytest.mark.parametrize("attention", ["flash_attention_2", "varlen"])
def test_attention_that_is_told_of_documents_gets_no_mask(attention: Implementation) -> None:
    told = replace(computing(), attention=attention)
    packed, apart = (activations(model(), batch, told) for batch in (replace(BATCH, mask=True), BATCH))
    assert packed.terms == apart.terms


def test_on_a_gpu_attention_by_document_keeps_what_flash_attention_keeps() -> None:
    """Only in bf16, and without dropout and soft caps: else documents are put together again."""

    def layers(attention: Implementation, width: int, **more: object) -> int:
        how = replace(computing(), numbers=Numbers(width, "cuda"), attention=attention)
        [stack] = model().stacks
        [alike] = stack.layers
        assert alike.attention is not None
        stack = replace(stack, layers=(replace(alike, attention=replace(alike.attention, **more)),))  # type: ignore[arg-type]
        return activations(replace(model(), stacks=(stack,)), BATCH, how).terms["layers"]

    assert layers("varlen", 2) == layers("flash_attention_2", 2)
    again = DEPTH * TOKENS * HEADS * SIZE
    assert layers("varlen", 4) == layers("flash_attention_2", 4) + 4 * again
    assert layers("varlen", 2, dropout=0.1) == layers("flash_attention_2", 2, dropout=0.1) + 2 * again
    assert layers("varlen", 2, soft_cap=True) > layers("flash_attention_2", 2) + 2 * again


def test_peak_is_the_largest_moment_and_not_their_sum() -> None:
    found = activations(model(), BATCH, computing())
    assert found.peak == max(moment.size for moment in found.moments)
    assert [moment.name for moment in found.moments] == ["loss", "a layer", "first layer", "optimizer"]
    assert [moment.backward for moment in found.moments] == [0.0, 0.0, 2 / 3, 1.0]


@pytest.mark.parametrize("update", [whole, adapter])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_more_rows_and_longer_ones_never_take_less(
    update: Callable[[str, Weight], Update], checkpointing: bool
) -> None:
    how = computing(update, checkpointing=checkpointing)
    peaks = [
        activations(model(), Batch(rows, tokens, rows * tokens, rows * tokens), how).peak
        for rows, tokens in ((1, 10), (1, 11), (2, 11), (3, 11), (3, 64))
    ]
    assert peaks == sorted(set(peaks))


LLAMA = shapes.llama(256, 1024, 8, 2, 32, layers=2, vocabulary=500)
WINDOWED = shapes.mistral(256, 1024, 8, 2, window=64, layers=2, vocabulary=500)
WIDE = shapes.llama(64, 256, 4, 2, 16, layers=1, vocabulary=5000)  # logits are what its peak is made of


@pytest.mark.parametrize(
    ("made", "how"),
    [
        (LLAMA, How()),
        (LLAMA, How(rank=8, checkpointing=True, packed=True)),
        (LLAMA, How(attention="varlen", packed=True)),
        (LLAMA, How(attention="varlen", rank=8, checkpointing=True)),
        (WINDOWED, How(attention="varlen", packed=True)),
        (LLAMA, How(rank=8, dora=True)),
        (shapes.gpt2(256, 4, layers=2, vocabulary=500), How()),
        (shapes.gpt2(256, 4, layers=2, vocabulary=500), How(attention="varlen")),  # with dropout
        (LLAMA, How(rank=8, checkpointing=True, chunk=64)),
        (WIDE, How(chunk=64)),
        (WIDE, How(dtype=torch.float32, chunk=64)),
        (WIDE, How(rank=8, chunk=64)),
        (shapes.gpt2(64, 4, layers=1, vocabulary=5000), How(chunk=64)),
    ],
)
def test_peak_is_that_of_the_products_loss(made: shapes.Made, how: How, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, counted = of_causal_lm(made, how, 2, 320, monkeypatch)
    assert expected == pytest.approx(counted, rel=0.005)


def test_peak_of_masked_lm(monkeypatch: pytest.MonkeyPatch) -> None:
    made = shapes.bert(256, 4, layers=2, vocabulary=500)
    for how in (How(), How(chunk=32)):
        expected, counted = of_masked_lm(made, how, 2, 320, monkeypatch)
        assert expected == pytest.approx(counted, rel=0.005)
    expected, counted = of_masked_lm(made, How(attention="varlen"), 2, 320, monkeypatch)
    assert expected == pytest.approx(counted, rel=0.01)  # what is laid out behind the encoder is not counted
    wide, how = shapes.bert(64, 4, layers=1, vocabulary=5000), How(chunk=32)
    expected, counted = of_masked_lm(wide, how, 2, 320, monkeypatch)
    assert expected == pytest.approx(counted, rel=0.005)


def test_peak_of_an_encoder_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    for how in (How(), How(chunk=64), How(chunk=64, rank=8)):
        expected, counted = of_seq2seq(shapes.t5(256, 1024, 4, 64, layers=2), how, 2, 320, 160, monkeypatch)
        assert expected == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("rows", [1, 3])
def test_peak_of_an_encoder_decoder_without_padding(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shapes.t5(256, 1024, 4, 64, layers=2)
    expected, counted = of_seq2seq(made, How(attention="varlen"), rows, 320, 160, monkeypatch)
    assert expected == pytest.approx(counted, rel=0.01)


def test_a_real_layer_keeps_as_many_bytes() -> None:
    """Of a real model on the CPU, by the hooks through which autograd keeps tensors."""

    def kept(depth: int) -> int:
        made = shapes.llama(64, 256, 4, 2, 16, layers=depth, vocabulary=100)
        real = type(built(made, How()))(made.config).to(torch.bfloat16).train()
        weights = {p.untyped_storage().data_ptr() for p in (*real.parameters(), *real.buffers())}
        found: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = real(torch.zeros(2, 50, dtype=torch.long), use_cache=False).logits
        assert logits.requires_grad
        return sum(storage.nbytes() for storage in found.values())

    made = shapes.llama(64, 256, 4, 2, 16, layers=2, vocabulary=100)
    terms = activations(architecture_of(built(made, How()), made), BATCH, computing()).terms
    assert kept(3) - kept(2) == terms["layers"] // 2
