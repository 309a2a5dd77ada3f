"""Shapes of well-known models, by their size."""

from __future__ import annotations

from dataclasses import replace

from transformers import (
    BertConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen3Config,
    T5Config,
    WhisperConfig,
)

from distft.plan.architecture import Attention, FeedForward
from tests.models.real_models import Made


def llama(hidden: int, width: int, heads: int, keys: int, size: int, layers: int, vocabulary: int = 128256) -> Made:
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=width,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=size,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        tie_word_embeddings=hidden < 4096,
    )
    return _made(config, "model.layers", Attention(heads, keys, size, size, True), FeedForward(width, True, "silu"))


def qwen(hidden: int, width: int, heads: int, keys: int, layers: int, vocabulary: int = 151936) -> Made:
    config = Qwen3Config(
        hidden_size=hidden,
        intermediate_size=width,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=128,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        tie_word_embeddings=hidden < 4096,
    )
    return _made(config, "model.layers", Attention(heads, keys, 128, 128, True), FeedForward(width, True, "silu"))


def mistral(hidden: int, width: int, heads: int, keys: int, window: int, layers: int, vocabulary: int = 32000) -> Made:
    config = MistralConfig(
        hidden_size=hidden,
        intermediate_size=width,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        sliding_window=window,
    )
    shape = Attention(heads, keys, hidden // heads, hidden // heads, True, window)
    return _made(config, "model.layers", shape, FeedForward(width, True, "silu"))


def gemma(hidden: int, width: int, heads: int, keys: int, layers: int, vocabulary: int = 262144) -> Made:
    """Its windows are wider than any text here."""
    config = Gemma3TextConfig(
        hidden_size=hidden,
        intermediate_size=width,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=256,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        sliding_window=1 << 20,
        max_position_embeddings=1 << 20,
    )
    shape = Attention(heads, keys, 256, 256, True)
    return _made(config, "model.layers", shape, FeedForward(width, True, "gelu_pytorch_tanh"))


def mixtral(hidden: int, width: int, heads: int, keys: int, layers: int, vocabulary: int = 32000) -> Made:
    config = MixtralConfig(
        hidden_size=hidden,
        intermediate_size=width,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=hidden // heads,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    size = hidden // heads
    return _made(
        config, "model.layers", Attention(heads, keys, size, size, True), FeedForward(width, True, "silu", 8, 2)
    )


def gpt2(hidden: int, heads: int, layers: int, vocabulary: int = 50257, dropout: float = 0.1) -> Made:
    config = GPT2Config(
        n_embd=hidden,
        n_head=heads,
        n_layer=layers,
        vocab_size=vocabulary,
        n_positions=4096,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
    )
    shape = Attention(heads, heads, hidden // heads, hidden // heads, True, dropout=dropout)
    made = _made(config, "transformer.h", shape, FeedForward(4 * hidden, False, "gelu_new"))
    return replace(made, dropout=dropout)


def neox(hidden: int, heads: int, layers: int, vocabulary: int = 50432) -> Made:
    config = GPTNeoXConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
    )
    size = hidden // heads
    shape = Attention(heads, heads, size, size, True)
    return _made(config, "gpt_neox.layers", shape, FeedForward(4 * hidden, False, "gelu"))


def bert(hidden: int, heads: int, layers: int, vocabulary: int = 30522, dropout: float = 0.1) -> Made:
    config = BertConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=4 * hidden,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    path, size = "bert.encoder.layer", hidden // heads
    shape = Attention(heads, heads, size, size, False, dropout=dropout)
    ahead = FeedForward(4 * hidden, False, "gelu")
    return Made("AutoModelForMaskedLM", config, {path: shape}, {path: ahead}, dropout)


def t5(hidden: int, width: int, heads: int, size: int, layers: int, gated: bool = False, dropout: float = 0.1) -> Made:
    config = T5Config(
        d_model=hidden,
        d_ff=width,
        num_heads=heads,
        d_kv=size,
        num_layers=layers,
        num_decoder_layers=layers,
        vocab_size=32128,
        dropout_rate=dropout,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
    )
    shape = Attention(heads, heads, size, size, False, bias=True, dropout=dropout)
    ahead = FeedForward(width, gated, "gelu_new" if gated else "relu", dropout=dropout)
    stacks = {"encoder.block": shape, "decoder.block": replace(shape, causal=True, over_encoder=True)}
    return Made("AutoModelForSeq2SeqLM", config, stacks, dict.fromkeys(stacks, ahead), dropout)


def whisper(hidden: int, heads: int, layers: int, mels: int = 80) -> Made:
    config = WhisperConfig(
        d_model=hidden,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_ffn_dim=4 * hidden,
        decoder_ffn_dim=4 * hidden,
        num_mel_bins=mels,
    )
    size = hidden // heads
    shape = Attention(heads, heads, size, size, False)
    stacks = {"model.encoder.layers": shape, "model.decoder.layers": replace(shape, causal=True, over_encoder=True)}
    ahead = FeedForward(4 * hidden, False, "gelu")
    return Made("AutoModelForSpeechSeq2Seq", config, stacks, dict.fromkeys(stacks, ahead))


def _made(config: object, path: str, attention: Attention, feed_forward: FeedForward) -> Made:
    return Made("AutoModelForCausalLM", config, {path: attention}, {path: feed_forward})
