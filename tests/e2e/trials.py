"""Every task: its recipe in configs/ made tiny, what to ask of the run, and what to expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONFIGS, SAMPLE = ROOT / "configs", ROOT / "distft" / "sample"
SHORT = (
    *("train.steps=6", "train.warmup=0", "train.global_batch=8", "train.micro_batch=4"),
    *("train.eval_every=3", "checkpoint.every=3"),
)
BYTES = "model.init.vocab_size=300"
ENCODER = (
    BYTES,
    "model.init.config={hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    "max_position_embeddings: 128}",
)
T5 = "model.init.config={d_model: 32, d_ff: 32, d_kv: 16, num_layers: 1, num_heads: 2}"
WAV2VEC2 = (
    "model.init.config={conv_dim: [8, 8, 8, 8, 8, 8, 8], hidden_size: 16, intermediate_size: 16, "
    "num_hidden_layers: 1, num_attention_heads: 2, num_conv_pos_embeddings: 8, num_conv_pos_embedding_groups: 2}"
)
WHISPER = (
    "model.init.config={d_model: 16, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
    "decoder_attention_heads: 2, encoder_ffn_dim: 16, decoder_ffn_dim: 16, num_mel_bins: 8, max_source_positions: 50, "
    "max_target_positions: 32}"
)
LLAMA = (
    "model.init.config={hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    "num_key_value_heads: 2, max_position_embeddings: 512}"
)


@dataclass(frozen=True)
class Trial:
    """
    Attributes:
        overrides: what makes the model tiny, or the task another.
        auto: transformers' class for what is exported.
        scores: of the held-out data.
        asked: three records to predict.
        keys: of a prediction.
        options: of `distft predict`.
        exported: the folder of the model in final/.
    """

    recipe: str
    overrides: Sequence[str]
    auto: str
    scores: set[str]
    asked: Sequence[dict[str, Any]]
    keys: set[str]
    options: Sequence[str] = ()
    exported: str = "."


def other_sample(name: str) -> str:
    """An override, as the comments of configs/sequence-classification.yaml have it."""
    stem, _, suffix = name.partition(".")
    return f"data={{train: {SAMPLE}/{name}, eval: {SAMPLE}/{stem}-heldout.{suffix}, row_tokens: 128}}"


TEXTS = [{"text": text} for text in ("The brakes are quiet and strong.", "It came late.", "Warum? Es kostet 5 €.")]
SOUNDS = [{"audio": f"{SAMPLE}/tones.tar.gz#speech-heldout-0{number}.wav"} for number in range(3)]
COSTS = "It costs 20 euros. " * 9
TAGGED = [{"tokens": ["Anna", "lives", "in", "Graz"]}, {"text": "Nobody at Ostwind knew ."}, {"tokens": ["Linz"]}]
SEQUENCES = "AutoModelForSequenceClassification"

TRIALS = {
    "sequence-classification": Trial(
        "sequence-classification",
        ENCODER,
        SEQUENCES,
        {"loss", "accuracy", "f1", "macro_f1", "auc"},
        TEXTS,
        {"label", "scores"},
    ),
    "pairs": Trial(
        "sequence-classification",
        (*ENCODER, other_sample("pairs.jsonl")),
        SEQUENCES,
        {"loss", "accuracy", "f1", "macro_f1", "auc"},
        [{**record, "text_pair": "The desk is closed."} for record in TEXTS],
        {"label", "scores"},
    ),
    "several labels": Trial(
        "sequence-classification",
        (*ENCODER, "task.kind=multi-label", other_sample("topics.jsonl")),
        SEQUENCES,
        {"loss", "accuracy", "f1", "macro_f1", "auc"},
        TEXTS,
        {"label", "scores"},
    ),
    "numbers": Trial(
        "sequence-classification",
        (*ENCODER, "task.kind=regression", "train.best=pearson", other_sample("stars.csv")),
        SEQUENCES,
        {"loss", "mse", "mae", "pearson", "spearman"},
        TEXTS,
        {"value"},
    ),
    "token-classification": Trial(
        "token-classification",
        ENCODER,
        "AutoModelForTokenClassification",
        {"loss", "precision", "recall", "f1", "macro_f1", "accuracy"},
        TAGGED,
        {"tags", "scores", "words", "entities"},
    ),
    "question-answering": Trial(
        "question-answering",
        ENCODER,
        "AutoModelForQuestionAnswering",
        {"loss", "exact_match", "f1"},
        [{"question": f"{word} does it cost?", "context": COSTS} for word in ("What", "Why", "How")],
        {"answer", "score", "start", "end"},
    ),
    "seq2seq-lm": Trial(
        "seq2seq-lm",
        (BYTES, T5),
        "AutoModelForSeq2SeqLM",
        {"loss", "bleu", "chrf", "rouge1", "rouge2", "rougeL"},
        [{"source": source} for source in ("The lamp is new.", "Where is the lock?", "")],
        {"text"},
    ),
    "ctc": Trial("ctc", (WAV2VEC2,), "AutoModelForCTC", {"loss", "wer", "cer"}, SOUNDS, {"text"}),
    "speech-seq2seq": Trial(
        "speech-seq2seq",
        ("model.init.vocab_size=380", WHISPER),
        "AutoModelForSpeechSeq2Seq",
        {"loss", "wer", "cer"},
        SOUNDS,
        {"text"},
    ),
    "dpo": Trial(
        "dpo",
        (BYTES, LLAMA, "data.row_tokens=512"),
        "AutoModelForCausalLM",
        {"loss", "reward_accuracy", "reward_accuracy_low", "reward_accuracy_high", "reward_margin"},
        [{"prompt": record["text"]} for record in TEXTS],
        {"answer"},
        ("--max-tokens", "4"),
    ),
    "masked-lm": Trial(
        "masked-lm",
        ENCODER,
        "AutoModelForMaskedLM",
        {"loss", "perplexity", "accuracy"},
        TEXTS,
        {"loss", "perplexity", "right", "targets"},
    ),
    "multi-task": Trial(
        "multi-task",
        ENCODER,
        SEQUENCES,
        {f"entities.{score}" for score in ("loss", "precision", "recall", "f1", "macro_f1", "accuracy")}
        | {f"sentiment.{score}" for score in ("loss", "accuracy", "f1", "macro_f1", "auc")},
        TEXTS,
        {"label", "scores"},
        ("--task", "sentiment"),
        "sentiment",
    ),
}
