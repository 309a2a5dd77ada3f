"""The trial of attention by document: what it finds of models that have it right, and of those that have not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers
from transformers import AttentionInterface, AutoConfig

from distft.errors import UserError
from distft.model.document_attention import document_attention, offer
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from distft.tasks.causal_lm import Causal
from distft.tasks.protocol import Setting
from distft.tasks.registry import specs_of
from distft.tasks.shared import flat_pairs
from distft.tasks.shared.boundaries import VARLEN
from distft.training import attention_trial

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "intermediate_size": 16}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODERS = ("sequence-classification", "token-classification", "question-answering", "masked-lm")
WINDOWS = {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"], "cls_token_id": 1}
WINDOWS |= {"sep_token_id": 2}
PAIRS = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 2, "decoder_start_token_id": 2}
PAIRS |= {"max_position_embeddings": 128}
PAIRS |= dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2)
PAIRS |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 16)
DEAF = "nemotron"  # does not hand on to attention where documents begin


class Nothing:
    """A tokenizer that finds no token."""

    eos_token_id = 2

    def __call__(self, *texts: Any, **rest: Any) -> dict[str, list[int]]:
        return {"input_ids": [], "token_type_ids": []}


class Trial:
    task: Any

    def __init__(
        self,
        folder: Path,
        architecture: str,
        wanted: str = "auto",
        row_tokens: int = 64,
        kind: str = "causal-lm",
        **more: Any,
    ) -> None:
        offer()
        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, **{**SIZES, **more})
        config.save_pretrained(folder / "base")
        sections = {"model": {"path": "/m", "attention": wanted}, "data": {"train": "/d", "row_tokens": row_tokens}}
        self.recipe = Recipe.model_validate({**sections, "task": {"type": kind}, "train": {"steps": 1}})
        auto = getattr(transformers, specs_of(self.recipe)[None].model.auto_class)
        self.model: Any = auto.from_config(config, dtype=torch.float32, attn_implementation=VARLEN)
        for parameter in self.model.parameters():  # far from zero, so that every token matters to every other
            parameter.data.mul_(4.0) if parameter.dim() > 1 else None
        self.run, self.said = RunDir(folder / "run"), list[str]()
        if kind == "causal-lm":
            self.task = Causal(self.model.forward, True)
        else:
            self.task = specs_of(self.recipe)[None].build(Setting(self.recipe, ("a", "b"), Nothing), self.model)
        self.run.path.mkdir(parents=True)
        self.base = folder / "base"

    @property
    def attention(self) -> str:
        return str(self.model.config._attn_implementation)

    def settle(self) -> None:
        spec = specs_of(self.recipe)[None].model
        context = SimpleNamespace(run=self.run, recipe=self.recipe, base=self.base, model_spec=spec)
        engine = SimpleNamespace(module=self.model, model=self.model)
        ranks = Ranks(0, 0, 1, torch.device("cpu"), cast(Any, None))
        console = SimpleNamespace(say=self.said.append)
        attention_trial.settle(cast(Any, context), self.task, cast(Any, engine), ranks, cast(Any, console))


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_trial.distributed, "on_rank_0", lambda ranks, key, work: work())
    monkeypatch.setattr(attention_trial.distributed, "sum_over_ranks", list)


def test_what_is_right_stays_and_is_remembered(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "mistral", sliding_window=16)
    trial.settle()
    assert (trial.attention, trial.task.rows.flatten, trial.said) == (VARLEN, True, [])
    assert json.loads(trial.run.attention.read_text()) == {"varlen": True}
    assert trial.model.training


def test_a_model_that_does_not_hand_on_where_documents_begin_gets_a_mask(tmp_path: Path) -> None:
    trial = Trial(tmp_path, DEAF)
    trial.settle()
    assert (trial.attention, trial.task.rows.flatten) == ("sdpa", False)
    assert trial.said == [
        "model.attention auto: varlen does not give this model what it makes of each document alone, so sdpa"
    ]
    assert json.loads(trial.run.attention.read_text()) == {"varlen": False}


def test_a_recipe_that_names_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="varlen does not give this model what it makes of each document alone; set"):
        Trial(tmp_path, DEAF, VARLEN).settle()


@pytest.mark.parametrize(("row_tokens", "found"), [(64, "sdpa"), (16, VARLEN)])
def test_a_window_counts_if_rows_are_longer(tmp_path: Path, row_tokens: int, found: str) -> None:
    """As of a model that does not tell its attention of a window."""
    trial = Trial(tmp_path, "mistral", row_tokens=row_tokens, sliding_window=16)

    def blind(*given: Any, sliding_window: int, **more: Any) -> Any:
        return document_attention(*given, **more)

    AttentionInterface.register(VARLEN, blind)
    trial.settle()
    assert trial.attention == found


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(("architecture", "more"), [("bert", {}), ("roberta", {}), ("modernbert", WINDOWS)])
def test_encoders_that_are_right_keep_it(tmp_path: Path, architecture: str, more: dict[str, Any], kind: str) -> None:
    trial = Trial(tmp_path, architecture, kind=kind, **more)
    trial.settle()
    assert (trial.attention, trial.task.inputs.flat, trial.said) == (VARLEN, True, [])
    leaves_out = kind == "sequence-classification" and architecture != "modernbert"  # which adds what was before
    more = {"leaves_out": True} if leaves_out else {}
    assert json.loads(trial.run.attention.read_text()) == {"varlen": True, **more}
    assert trial.task.inputs.leaves_out == leaves_out
    assert trial.model.training


def test_what_a_head_looks_at_is_not_left_out(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "bert", kind="sequence-classification")
    pooler = trial.model.bert.pooler

    def of_all(hidden: torch.Tensor) -> torch.Tensor:
        return torch.tanh(pooler.dense(hidden.sum(1)))

    pooler.forward = of_all
    trial.settle()
    assert (trial.attention, trial.task.inputs.flat, trial.task.inputs.leaves_out) == (VARLEN, True, False)
    assert json.loads(trial.run.attention.read_text()) == {"varlen": True}


def wrong(how: str) -> Any:
    """Attention that is not what a class asks for."""

    def leaking(*given: Any, document_sizes: Any = None, **more: Any) -> Any:
        return document_attention(*given, **more)

    def blind(*given: Any, sliding_window: int | None = None, **more: Any) -> Any:
        return document_attention(*given, **more)

    def narrow(*given: Any, sliding_window: int | None = None, **more: Any) -> Any:
        window = None if sliding_window is None else sliding_window - 1
        return document_attention(*given, sliding_window=window, **more)

    return {"leaking": leaking, "blind": blind, "narrow": narrow}[how]


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("how", ["leaking", "blind", "narrow"])
def test_encoders_with_wrong_attention_get_padded_rows(tmp_path: Path, how: str, kind: str) -> None:
    trial = Trial(tmp_path, "modernbert", kind=kind, **WINDOWS)
    AttentionInterface.register(VARLEN, wrong(how))
    trial.settle()
    assert (trial.attention, trial.task.inputs.flat) == ("sdpa", False)
    assert trial.said == [
        "model.attention auto: varlen does not give this model what it makes of each document alone, so sdpa"
    ]
    assert json.loads(trial.run.attention.read_text()) == {"varlen": False}


@pytest.mark.parametrize("architecture", ["bart", "marian", "m2m_100", "t5"])
def test_encoder_decoders_that_are_right_keep_it(tmp_path: Path, architecture: str) -> None:
    trial = Trial(tmp_path, architecture, kind="seq2seq-lm", **PAIRS)
    trial.settle()
    assert (trial.attention, trial.task.flat, trial.said) == (VARLEN, True, [])
    assert json.loads(trial.run.attention.read_text()) == {"varlen": True}
    assert trial.model.training


def wrong_pairs(how: str) -> Any:
    """Attention that does not do what is told of pairs."""

    def leaking(*given: Any, source_sizes: Any = None, document_sizes: Any = None, **more: Any) -> Any:
        return document_attention(*given, document_sizes=document_sizes, **more)

    def reading(*given: Any, source_sizes: Any = None, document_sizes: Any = None, **more: Any) -> Any:
        if source_sizes is None:
            document_sizes = [given[1].shape[2]]
        return document_attention(*given, document_sizes=document_sizes, source_sizes=source_sizes, **more)

    def writing(*given: Any, source_sizes: Any = None, document_sizes: Any = None, **more: Any) -> Any:
        if source_sizes is not None and given[0].is_causal:
            document_sizes = source_sizes = [given[1].shape[2]]
        return document_attention(*given, document_sizes=document_sizes, source_sizes=source_sizes, **more)

    def swapped(*given: Any, source_sizes: Any = None, **more: Any) -> Any:
        sizes = source_sizes and (source_sizes[-1], *source_sizes[:-1])
        return document_attention(*given, source_sizes=sizes, **more)

    return {"leaking": leaking, "reading": reading, "writing": writing, "swapped": swapped}[how]


@pytest.mark.parametrize("how", ["leaking", "reading", "writing", "swapped"])
def test_encoder_decoders_with_wrong_attention_get_padded_rows(tmp_path: Path, how: str) -> None:
    trial = Trial(tmp_path, "bart", kind="seq2seq-lm", **PAIRS)
    AttentionInterface.register(VARLEN, wrong_pairs(how))
    trial.settle()
    assert (trial.attention, trial.task.flat) == ("sdpa", False)
    assert json.loads(trial.run.attention.read_text()) == {"varlen": False}


@pytest.mark.parametrize("architecture", ["bart", "m2m_100"])
def test_encoder_decoders_that_do_not_count_anew_get_padded_rows(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat_pairs, "_counting", lambda half: ())
    trial = Trial(tmp_path, architecture, kind="seq2seq-lm", **PAIRS)
    trial.settle()
    assert (trial.attention, trial.task.flat) == ("sdpa", False)


@pytest.mark.parametrize(("architecture", "other"), [("umt5", "sdpa"), ("pegasus_x", "eager")])
def test_encoder_decoders_that_cannot_be_told_get_padded_rows(tmp_path: Path, architecture: str, other: str) -> None:
    """Of UMT5 each layer makes scores by distance for the whole row; PEGASUS-X attends by blocks."""
    trial = Trial(tmp_path, architecture, kind="seq2seq-lm", **PAIRS)
    trial.settle()
    assert (trial.attention, trial.task.flat) == (other, False)
    with pytest.raises(UserError, match="varlen does not give this model"):
        Trial(tmp_path / "other", architecture, VARLEN, kind="seq2seq-lm", **PAIRS).settle()


def test_wrong_positions_are_found(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "roberta", kind="sequence-classification")
    trial.task.inputs._filler_position = None  # as if they were counted from 0
    trial.settle()
    assert not trial.task.inputs.flat


def test_an_encoder_whose_code_wants_documents_as_rows_gets_them(tmp_path: Path) -> None:
    """It scales embeddings by its mask."""
    more = {"position_embedding_type": "absolute", "mask_token_id": 3, "token_dropout": True}
    trial = Trial(tmp_path, "esm", kind="sequence-classification", **more)
    trial.settle()
    assert (trial.attention, trial.task.inputs.flat) == ("sdpa", False)
    with pytest.raises(UserError, match="varlen does not give this model"):
        Trial(tmp_path / "other", "esm", VARLEN, kind="sequence-classification", **more).settle()


def test_a_run_that_goes_on_is_not_tried_again(tmp_path: Path) -> None:
    trial = Trial(tmp_path, DEAF)
    (trial.run.checkpoints / "step-00000001").mkdir(parents=True)
    trial.run.attention.write_text('{"varlen": true}')
    trial.settle()
    assert trial.attention == VARLEN
