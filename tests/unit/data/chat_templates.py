"""Chat templates shaped like those of well-known models, and tokenizers to try them with."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from distft.data.templates import DEFAULT

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot_id|>", "[INST]", "[/INST]"]

CHATML = """\
{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """\
{{ bos_token }}{% for m in messages %}
{{- '<|head|>' + m['role'] + '<|/head|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}"""

MISTRAL = """\
{{ bos_token }}{% for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"""

# Like Qwen3 and DeepSeek-R1: the reasoning of earlier turns is not shown, the last turn's is always there.
REASONING = """\
{% for m in messages %}{% if m['role'] == 'assistant' %}
{%- set parts = m['content'].split('</think>') %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.last %}{{ (parts[0] if parts | length > 1 else '<think>') + '</think>' }}{% endif %}
{{- parts[-1] + '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

GENERATION = """\
{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}
{%- generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# No end-of-turn token at all: the line's end ends the turn.
TRANSCRIPT = """\
{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""

ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "default": "</s>",
    "generation": "<|im_end|>",
}
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "default": DEFAULT, "generation": GENERATION}

TEXT = [
    "the quick brown fox jumps over the lazy dog\n\nand says: hello world, how are you?",
    "user assistant system",
    "the end.\n\n",
]


def byte_level(trim_offsets=False):
    """Like GPT-2 and Llama-3; with `trim_offsets` its offsets leave out white space."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    backend.train_from_iterator(TEXT * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def sentencepiece(bos=True):
    """Like Llama-2: a dummy space in front, spaces as "▁", bytes for what is not in the vocabulary, bos added."""
    alphabet = sorted({"▁", *"".join(TEXT), *"[]/:|<>"})
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet, "▁t", "▁th", "▁the"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    if bos:
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


TOKENIZERS = {"bytes": byte_level(), "trimmed": byte_level(trim_offsets=True), "sentencepiece": sentencepiece()}
BYTES = TOKENIZERS["bytes"]
