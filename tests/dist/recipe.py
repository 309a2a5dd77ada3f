"""The recipe that tests of several processes vary."""

from __future__ import annotations

RECIPE = """
model:
  init:
    architecture: llama
    vocab_size: 512
    config: {{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
              num_key_value_heads: 2, max_position_embeddings: 256, tie_word_embeddings: true}}
data: {{train: {data}, row_tokens: 160, group_by_length: false, cache: {cache}}}
adapter: {{type: lora, r: 4}}
train: {{steps: 12, lr: 1.0e-3, global_batch: 16, micro_batch: 4, warmup: 2}}
engine: {{zero_stage: 2, dtype: fp32}}
"""
