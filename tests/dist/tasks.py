"""Ranks that compare every task with plain loops, and broken runs with unbroken ones.

    python -m tests.dist.tasks equal|resume FOLDER [--half] [--only NAME ...]

`make tasks` runs all of it; the tests a half, in which every task, adapter, stage and dtype still comes.

The plain loops feed one document at a time to transformers' own model and take the loss from the model itself, which
the product never does. Of the product they use which documents a step has, and where masks and masters are; the CRF's
likelihood (checked against enumeration in tests/unit/tasks/test_crf.py) and DPO's formula are written out here.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import distft.sample
from distft.process import distributed
from distft.model.adapters import attach
from distft.recipe.schema import Recipe
from distft.data.records import Document
from distft.process.distributed import Ranks
from distft.model.base_model import load
from distft.recipe.load import load as load_recipe
from distft.training import loop
from distft.training.session import Session
from distft.tasks.token_classification import crf
from distft.tasks.registry import specs_of
from distft.tasks.masked_lm import hidden
from distft.tasks.multi_task import shared_of, whole
from tests.dist import scenario

SAMPLE = Path(distft.sample.__file__).parent
STEPS, LR = 4, 1.0e-3
BERT = "{architecture: bert, vocab_size: 400, config: {hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, \
num_attention_heads: 2, max_position_embeddings: 128, hidden_dropout_prob: %s, attention_probs_dropout_prob: %s}}"
LLAMA = "{architecture: llama, vocab_size: 400, config: {hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, \
num_attention_heads: 2, num_key_value_heads: 1, max_position_embeddings: 512, attention_dropout: %s}}"
T5 = "{architecture: t5, vocab_size: 400, config: {d_model: 32, d_ff: 48, d_kv: 16, num_layers: 2, num_heads: 2, \
dropout_rate: %s}}"
BART = "{architecture: bart, vocab_size: 400, config: {d_model: 32, encoder_ffn_dim: 48, decoder_ffn_dim: 48, \
encoder_layers: 2, decoder_layers: 2, encoder_attention_heads: 2, decoder_attention_heads: 2, \
max_position_embeddings: 128, attention_dropout: %s, dropout: %s}}"
WAV2VEC2 = "{architecture: wav2vec2, vocab_size: 300, config: {hidden_size: 32, intermediate_size: 48, \
num_hidden_layers: 2, num_attention_heads: 2, num_feat_extract_layers: 7, num_conv_pos_embeddings: 16, \
num_conv_pos_embedding_groups: 2, feat_extract_norm: layer, do_stable_layer_norm: true, hidden_dropout: %s, \
attention_dropout: 0.0, activation_dropout: 0.0, feat_proj_dropout: 0.0, final_dropout: 0.0, layerdrop: 0.0, \
mask_time_prob: 0.0, apply_spec_augment: false}}"
WHISPER = "{architecture: whisper, vocab_size: 400, config: {d_model: 32, encoder_ffn_dim: 48, decoder_ffn_dim: 48, \
encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, decoder_attention_heads: 2, dropout: %s}}"

TASKS = {  # name: (model, the task section and the data sections)
    "masked": (BERT, "task: {type: masked-lm}\ndata: {train: %s/handbook.jsonl, row_tokens: 32, cache: %s}"),
    "single": (
        BERT,
        "task: {type: sequence-classification}\n"
        "data: {train: %s/reviews.tsv, columns: [text, label], row_tokens: 64, cache: %s}",
    ),
    "pair": (
        BERT,
        "task: {type: sequence-classification}\n"
        "data: {train: %s/pairs.jsonl, row_tokens: 96, packing: true, cache: %s}",
    ),
    "several": (
        BERT,
        "task: {type: sequence-classification, kind: multi-label}\n"
        "data: {train: %s/topics.jsonl, row_tokens: 64, cache: %s}",
    ),
    "number": (
        BERT,
        "task: {type: sequence-classification, kind: regression}\n"
        "data: {train: %s/stars.csv, row_tokens: 64, cache: %s}",
    ),
    "tags": (
        BERT,
        "task: {type: token-classification}\ndata: {train: %s/entities.conll, row_tokens: 64, cache: %s}",
    ),
    "crf": (
        BERT,
        "task: {type: token-classification, crf: true}\ndata: {train: %s/entities.conll, row_tokens: 64, cache: %s}",
    ),
    "spans": (
        BERT,
        "task: {type: question-answering, unanswerable: true, stride: 16}\n"
        "data: {train: %s/passages.json, row_tokens: 96, cache: %s}",
    ),
    "translation": (
        T5,
        "task: {type: seq2seq-lm}\n"
        "data: {train: {source: %s/sentences.en, target: SAMPLE/sentences.de}, row_tokens: 64, cache: %s}",
    ),
    "rendering": (
        BART,
        "task: {type: seq2seq-lm}\n"
        "data: {train: {source: %s/sentences.de, target: SAMPLE/sentences.en}, row_tokens: 64, cache: %s}",
    ),
    "ctc": (WAV2VEC2, "task: {type: ctc}\ndata: {train: %s/speech.jsonl, row_tokens: 4000, cache: %s}"),
    "whisper": (
        WHISPER,
        "task: {type: speech-seq2seq, longest_target: 32}\n"
        "data: {train: %s/speech.jsonl, row_tokens: 30000, cache: %s}",
    ),
    "dpo": (LLAMA, "task: {type: dpo, beta: 0.5}\ndata: {train: %s/preferences.jsonl, row_tokens: 512, cache: %s}"),
    "multi": (
        BERT,
        "task:\n  type: multi-task\n  tasks:\n"
        "    tags: {task: {type: token-classification, crf: true}, train: %s/entities.conll}\n"
        "    single: {task: {type: sequence-classification}, train: SAMPLE/reviews.tsv, columns: [text, label]}\n"
        "data: {row_tokens: 64, cache: %s}",
    ),
}
WITHOUT_PADDING = (BERT, LLAMA, T5, BART)
OF_HEADS = {"crf": 1.0e-2, "multi": 4.0e-3}  # learning rates of their own
ADAPTERS = {"full": "{type: none}", "lora": "{type: lora, r: 4, alpha: 8}"}


def config_of(folder: Path, name: str, dropout: float, ranks: Ranks) -> Path:
    """The recipe of a task, with a tiny random model."""
    model, sections = TASKS[name]
    path = folder / f"{name}-{dropout}.yaml"
    lines = [
        (sections % (SAMPLE, folder / "cache")).replace("SAMPLE", str(SAMPLE)),
        f"model: {{init: {model.replace('%s', str(dropout))}}}",
        f"train: {{steps: {STEPS}, lr: {LR}, global_batch: 8, micro_batch: 2, clip: 1.0, "
        f"head_lr: {OF_HEADS.get(name, 'null')}}}",
        "engine: {dtype: fp32}",
        "track: {samples: true}",
    ]
    if ranks.first:
        path.write_text("\n".join(lines) + "\n")
    distributed.barrier()
    return path


# --- plain loops ----------------------------------------------------------------------------------------------------

Loss = Callable[[Any, Document], tuple[torch.Tensor, int]]  # the sum over a document's targets, and their number


def ids(document: Document, column: str = "tokens") -> torch.Tensor:
    return torch.from_numpy(np.asarray(document[column]).astype(np.int64))[None]


def encoded(document: Document) -> dict[str, torch.Tensor]:
    return {"input_ids": ids(document), "token_type_ids": ids(document, "types")}


def masked(model: Any, document: Document) -> tuple[torch.Tensor, int]:
    chosen, seen = hidden(document, 0.15)
    tokens, labels = ids(document).clone(), torch.full_like(ids(document), -100)
    labels[0, chosen] = tokens[0, chosen]
    tokens[0, chosen] = torch.from_numpy(seen)
    mean = model(input_ids=tokens, token_type_ids=ids(document, "types"), labels=labels).loss
    return mean * len(chosen), len(chosen)


def single(model: Any, document: Document) -> tuple[torch.Tensor, int]:
    return model(**encoded(document), labels=ids(document, "label")[0]).loss, 1


def graded(model: Any, document: Document) -> tuple[torch.Tensor, int]:
    return model(**encoded(document), labels=torch.from_numpy(np.array(document["label"], np.float32))[None]).loss, 1


def tags(model: Any, document: Document) -> tuple[torch.Tensor, int]:
    labels = torch.full_like(ids(document), -100)
    labels[0, document["starts"]] = ids(document, "tags")[0]
    return model(**encoded(document), labels=labels).loss * document.targets, document.targets


def chained(labels: Sequence[str]) -> Loss:
    allowed = crf.allowed_transitions(labels)

    def loss(model: Any, document: Document) -> tuple[torch.Tensor, int]:
        emissions = model(**encoded(document)).logits[:, document["starts"]]
        scores = crf.constrained(model.crf(), allowed)
        whole = torch.ones(1, len(document["starts"]), dtype=torch.bool)
        return -crf.log_likelihood(scores, emissions, ids(document, "tags"), whole).sum(), document.targets

    return loss


def spans(model: Any, document: Document) -> tuple[torch.Tensor, int]:
    start, end = ids(document, "span")[0]
    return model(**encoded(document), start_positions=start[None], end_positions=end[None]).loss, 1


def translation(model: Any, document: Document) -> tuple[torch.Tensor, int]:
    labels = ids(document, "labels")
    return model(input_ids=ids(document), labels=labels).loss * labels.numel(), labels.numel()


def heard(processor: Any, document: Document) -> torch.Tensor:
    samples = np.asarray(document["samples"]).astype(np.float32) / 32768.0
    rate = processor.feature_extractor.sampling_rate
    features = processor.feature_extractor(samples, sampling_rate=rate, return_tensors="pt")
    found: torch.Tensor = features[processor.feature_extractor.model_input_names[0]]
    return found


def ctc(processor: Any) -> Loss:
    def loss(model: Any, document: Document) -> tuple[torch.Tensor, int]:
        model.config.ctc_loss_reduction = "sum"
        return model(heard(processor, document), labels=ids(document, "labels")).loss, 1

    return loss


def whisper(processor: Any) -> Loss:
    def loss(model: Any, document: Document) -> tuple[torch.Tensor, int]:
        labels = ids(document, "labels")
        return model(heard(processor, document), labels=labels).loss * labels.numel(), labels.numel()

    return loss


def dpo(start: Any) -> Loss:
    """Args: start: the model as it was; it is never trained."""

    def logp(model: Any, document: Document, side: str) -> torch.Tensor:
        tokens, wanted = ids(document, side), torch.from_numpy(np.array(document[f"{side}_targets"]))
        logps = model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
        return logps.gather(-1, tokens[0, 1:, None])[:, 0][wanted[1:]].sum()

    def loss(model: Any, document: Document) -> tuple[torch.Tensor, int]:
        with torch.no_grad():
            gap = logp(start, document, "chosen") - logp(start, document, "rejected")
        margin = logp(model, document, "chosen") - logp(model, document, "rejected") - gap
        return -functional.logsigmoid(0.5 * margin), 1

    return loss


def losses_of(name: str, session: Session, start: Any) -> Mapping[str | None, Loss]:
    """The plain loss of a task, or of each of several."""
    labels = json.loads(session.run.labels.read_text()) if session.run.labels.exists() else {}
    if name == "multi":
        return {"tags": chained(labels["tags"]), "single": single}
    if name in ("ctc", "whisper"):
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(session.run.base)
        return {None: (ctc if name == "ctc" else whisper)(processor)}
    found: dict[str, Loss] = {
        "masked": masked,
        "single": single,
        "pair": single,
        "several": graded,
        "number": graded,
        "tags": tags,
        "crf": chained(labels.get("label", [])),
        "spans": spans,
        "translation": translation,
        "rendering": translation,
        "dpo": dpo(start),
    }
    return {None: found[name]}


def plain_loop(name: str, session: Session, recipe: Recipe) -> list[float]:
    """The loss of each step. One optimizer, no accumulation but of gradients, no engine."""
    specs = specs_of(recipe)
    labels = json.loads(session.run.labels.read_text()) if session.run.labels.exists() else {}
    fresh = [load(session.run.base, recipe, specs, labels, by_document=False) for _ in range(2)]
    model, start = attach(fresh[0], recipe.adapter, whole(specs), None, STEPS), fresh[1].eval()
    loss_of = losses_of(name, session, start)
    model.train()
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = any(f"{part}." in key for part in ("classifier", "crf"))
            groups.setdefault(OF_HEADS.get(name, LR) if head else LR, []).append(parameter)
    optimizer = torch.optim.AdamW([{"params": p, "lr": rate} for rate, p in groups.items()], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    history = []
    for number in range(STEPS):
        total = 0.0
        documents = list(documents_of(session, number))
        for part, loss in loss_of.items():
            mine = [document for document in documents if document.part == part]
            bare = model if recipe.adapter.type == "none" else model.get_base_model()
            inner = bare if part is None else shared_of(bare).parts[part]
            parts = [loss(inner, document) for document in mine]
            count = sum(targets for _, targets in parts)
            for value, _ in parts:
                scaled = value * (len(mine) / len(documents) / max(1, count))
                scaled.backward(retain_graph=False)
                total += scaled.item()
        torch.nn.utils.clip_grad_norm_(itertools.chain(*groups.values()), recipe.train.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        history.append(total)
    return history


def documents_of(session: Session, step: int) -> Iterator[Document]:
    """All documents of a step; the session's ranks see a part each, so it is asked as if it were alone."""
    for micro in session.loader.step(step):
        for row in session.loader.documents(micro):
            yield from row


# --- ours -------------------------------------------------------------------------------------------------------------


def equal(folder: Path, names: Sequence[str], half: bool, ranks: Ranks) -> None:
    """Every task, full and LoRA, beside the plain loop: under ZeRO 0 to 3, or one of them in turn."""
    rows = []
    for index, (name, adapter) in enumerate(itertools.product(names, ADAPTERS)):
        config = config_of(folder, name, 0.0, ranks)
        alone = [f"adapter={ADAPTERS[adapter]}", "train.micro_batch=8"]
        turn = index + index // 2  # over all tasks every stage meets both
        stages = [turn % 4] if half else range(4)
        for stage in stages:
            run = folder / f"{name}-{adapter}-zero{stage}-{ranks.world}"
            overrides = [f"adapter={ADAPTERS[adapter]}", f"engine.zero_stage={stage}"]
            opened = scenario.open_run(run, config, ranks, *overrides)
            check_feed(name, opened.session)
            opened.advance(STEPS)
            opened.close()
            tried = json.loads(opened.session.run.attention.read_text()) if TASKS[name][0] in WITHOUT_PADDING else None
            assert tried is None or tried["varlen"], f"{name} is not trained without padding"
            ours = [scenario.losses(run)[step][0] for step in range(1, STEPS + 1)] if ranks.first else []
            rows.append({"task": name, "adapter": adapter, "stage": stage, "ours": ours})
        if ranks.first:
            plain = plain_loop(name, single_view(opened.session), load_recipe(config, alone))
            for row in rows[-len(stages) :]:
                row["gap"] = max(abs(a - b) for a, b in zip(row["ours"], plain, strict=True))
                row["plain"] = plain
    if ranks.first:
        (folder / f"equal-{ranks.world}.json").write_text(json.dumps(rows))


FORESEEN = TASKS.keys() - {"masked", "ctc"}  # their targets are not in the index of the token cache


def check_feed(name: str, session: Session) -> None:
    """Counts that are foreseen are those of the batches; a batch is made without a draw of a shared generator."""
    for step in range(STEPS):
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        totals, fed = session.feed.step(step)
        foreseen = totals.counts
        counts = distributed.sum_by_name(loop.sum_of_counts(session.task, fed))
        assert (foreseen is not None) == (name in FORESEEN), name
        assert foreseen is None or foreseen == counts, f"{name}: {foreseen} in place of {counts}"
        after = torch.get_rng_state(), np.random.get_state()[1]
        assert torch.equal(before[0], after[0]), name
        assert (before[1] == after[1]).all(), name


def single_view(session: Session) -> Session:
    """The session with a loader that sees the whole of each step."""
    from dataclasses import replace

    slots = replace(session.loader._slots, rank=0, world=1)  # type: ignore[attr-defined]
    session.loader._slots = slots  # type: ignore[attr-defined]
    return session


def resume(folder: Path, names: Sequence[str], half: bool, ranks: Ranks) -> None:
    """With dropout: two steps, a save, a fresh start, two more; beside four at once. Bit for bit."""
    every = [(name, adapter) for name in names for adapter in ADAPTERS]
    chosen = [pair for index, pair in enumerate(every) if not half or (index // 2 + index) % 2 == 0]
    for index, (name, adapter) in enumerate(chosen):  # of a half: full fine-tuning of one task, LoRA of the next
        config = config_of(folder, name, 0.1, ranks)
        dtype = ("fp32", "bf16")[index // 4 % 2]
        overrides = [f"adapter={ADAPTERS[adapter]}", f"engine.zero_stage={index % 4}", f"engine.dtype={dtype}"]
        whole = scenario.open_run(folder / f"whole-{name}-{adapter}", config, ranks, *overrides)
        whole.advance(STEPS)
        state = whole.state()
        whole.close()
        run = folder / f"broken-{name}-{adapter}"
        broken = scenario.open_run(run, config, ranks, *overrides)
        broken.advance(2)
        broken.save()
        broken.close()
        broken = scenario.open_run(run, config, ranks, *overrides)
        assert broken.step == 2
        broken.advance(STEPS - 2)
        scenario.same(state, broken.state())
        broken.close()
        if ranks.first:
            assert scenario.losses(run) == scenario.losses(folder / f"whole-{name}-{adapter}"), name
            assert scenario.samples(run) == scenario.samples(folder / f"whole-{name}-{adapter}"), name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["equal", "resume"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(TASKS))
    options = parser.parse_args()
    ranks = scenario.join()
    {"equal": equal, "resume": resume}[options.what](options.folder, options.only, options.half, ranks)


if __name__ == "__main__":
    main()
    scenario.leave()
