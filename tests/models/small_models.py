"""Small configurations of every model type that the plan knows."""

from __future__ import annotations

from typing import Any

Sizes = dict[str, Any]

ENCODER: Sizes = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
DECODER: Sizes = ENCODER | {"num_key_value_heads": 2}
LATENT: Sizes = ENCODER | {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "moe_intermediate_size": 8,
}
GEMMA4: Sizes = DECODER | {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "head_dim": 8,
    "global_head_dim": 12,
    "vocab_size_per_layer_input": 90,
    "hidden_size_per_layer_input": 6,
}
GEMMA4_EXPERTS: Sizes = {
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 8,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "hidden_size_per_layer_input": 0,
}
FALCON: Sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT: Sizes = FALCON | {"ffn_dim": 48, "pad_token_id": 0}
DISTILBERT: Sizes = {"vocab_size": 100, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
DEBERTA: Sizes = ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
BOTH: Sizes = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
T5: Sizes = {
    "vocab_size": 100,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
}
HEARS: Sizes = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16, 16],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}

DECODERS: dict[str, list[Sizes]] = {
    "llama": [
        DECODER,
        DECODER | {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True},
    ],
    "mistral": [DECODER | {"sliding_window": 8}],
    "qwen2": [DECODER, DECODER | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}],
    "qwen3": [DECODER],
    "phi": [DECODER, DECODER | {"qk_layernorm": True}],
    "phi3": [DECODER],
    "smollm3": [DECODER],
    "granite": [DECODER],
    "olmo": [DECODER],
    "olmo2": [DECODER],
    "olmo3": [DECODER],
    "exaone4": [DECODER],
    "starcoder2": [DECODER],
    "cohere": [DECODER, DECODER | {"use_qk_norm": True}],
    "cohere2": [DECODER],
    "stablelm": [DECODER, DECODER | {"use_qkv_bias": True}],
    "glm": [DECODER],
    "glm4": [DECODER],
    "nemotron": [DECODER],
    "arcee": [DECODER],
    "seed_oss": [DECODER | {"attention_out_bias": True}],
    "ernie4_5": [DECODER | {"use_bias": True}],
    "gemma": [DECODER | {"head_dim": 12}],
    "gemma2": [DECODER],
    "gemma3_text": [DECODER | {"num_hidden_layers": 7}],
    "gemma4_text": [GEMMA4, GEMMA4 | GEMMA4_EXPERTS, GEMMA4 | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True}],
    "mixtral": [DECODER],
    "qwen2_moe": [
        DECODER | {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12},
        DECODER | {"num_experts": 4, "decoder_sparse_step": 2, "mlp_only_layers": [1], "qkv_bias": False},
    ],
    "qwen3_moe": [DECODER | {"num_experts": 4, "moe_intermediate_size": 8}],
    "olmoe": [DECODER | {"num_experts": 4}],
    "gpt_oss": [DECODER | {"num_local_experts": 4, "head_dim": 8}],
    "granitemoe": [DECODER],
    "phimoe": [DECODER],
    "deepseek_v2": [LATENT, LATENT | {"q_lora_rank": None}],
    "deepseek_v3": [LATENT],
    "gpt2": [{"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}],
    "gpt_neox": [ENCODER, ENCODER | {"attention_bias": False, "tie_word_embeddings": True}],
    "bloom": [{"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4}],
    "falcon": [
        FALCON,
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        FALCON | {"multi_query": False, "bias": True, "parallel_attn": False},
    ],
    "opt": [OPT, OPT | {"word_embed_proj_dim": 16}, OPT | {"do_layer_norm_before": False, "enable_bias": False}],
}
ENCODERS: dict[str, list[Sizes]] = {
    "bert": [ENCODER],
    "ernie": [ENCODER],
    "roberta": [ENCODER],
    "xlm-roberta": [ENCODER],
    "camembert": [ENCODER],
    "mpnet": [ENCODER],
    "distilbert": [DISTILBERT, DISTILBERT | {"sinusoidal_pos_embds": True}],
    "electra": [ENCODER | {"embedding_size": 16}, ENCODER | {"embedding_size": 32}],
    "deberta-v2": [
        ENCODER,
        DEBERTA | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "position_biased_input": False},
        DEBERTA | {"pos_att_type": "c2p|p2c", "share_att_key": True, "conv_kernel_size": 3, "conv_act": "gelu"},
        DEBERTA | {"pos_att_type": ["c2p"], "max_relative_positions": 20, "type_vocab_size": 2},
    ],
    "albert": [
        ENCODER | {"embedding_size": 16},
        ENCODER | {"embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
    ],
    "modernbert": [
        ENCODER,
        ENCODER | {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
        ENCODER | {"decoder_bias": False},
    ],
}
TRANSLATORS: dict[str, list[Sizes]] = {
    "t5": [T5, T5 | {"feed_forward_proj": "gated-gelu"}],
    "mt5": [T5],
    "umt5": [T5],
    "bart": [BOTH],
    "mbart": [BOTH],
    "marian": [BOTH, BOTH | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 90}],
    "pegasus": [BOTH],
    "m2m_100": [BOTH],
}
LISTENERS: dict[str, list[Sizes]] = {
    "wav2vec2": [
        HEARS,
        HEARS | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
        HEARS | {"do_stable_layer_norm": True, "adapter_attn_dim": 5},
    ],
    "hubert": [HEARS],
}
WRITERS: dict[str, list[Sizes]] = {
    "whisper": [
        BOTH
        | {
            "num_mel_bins": 20,
            "max_source_positions": 50,
            "max_target_positions": 30,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    ]
}
