"""`model.attention`: which implementation of attention a model class supports, and which of them a run uses."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from distft.errors import UserError
from distft.recipe.schema import Engine, Recipe
from distft.recipe.tasks import TaskName
from distft.run.files import write_atomically
from distft.run.folder import RunDir
from distft.tasks.protocol import ModelSpec, TaskSpec
from distft.tasks.shared.boundaries import VARLEN

SDPA, FLASH, EAGER = "sdpa", "flash_attention_2", "eager"
LEAVES_OUT = "leaves_out"  # in what is kept of a trial
_NEXT_TOKEN, _PAIRS = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "dropout_rate")  # how configurations name attention's
_BIASES = ("relative_attention_num_buckets",)  # of scores by distance


def choose(folder: Path, recipe: Recipe, spec: ModelSpec, by_document: bool = True) -> str:
    """The implementation that the recipe names, or else the best that the model's class supports and the machine has.

    Args:
        by_document: auto may take attention by document (`takes_documents`).

    Raises:
        UserError: the recipe names one that the class has not.
    """
    wanted = recipe.model.attention
    if wanted == EAGER:
        return EAGER
    name, supported = support(folder, recipe.model.trust_remote_code, spec.auto_class)
    if wanted == "auto":
        if FLASH in supported and flash_fits(recipe.engine):
            return FLASH
        if VARLEN in supported and by_document and _pays(folder, recipe, spec):
            return VARLEN
        return _masked(supported)
    if wanted == VARLEN and not _can_be_told(folder, recipe, spec):
        raise UserError(
            "model.attention: varlen is for task.type causal-lm, dpo and seq2seq-lm, and for encoders; set it to auto"
            if spec.tells_documents
            else f"model.attention: varlen is not for task.type {recipe.task.type}; set it to auto"
        )
    if wanted not in supported:
        raise UserError(
            f"model.attention: {name} does not support {wanted}, only {' and '.join(supported)}; "
            "set model.attention to auto, which takes the best that fits"
        )
    return wanted


def offered(folder: Path, recipe: Recipe, spec: ModelSpec, by_document: bool) -> str:
    """What `choose` finds, made known to transformers if it is our own."""
    chosen = choose(folder, recipe, spec, by_document)
    if chosen == VARLEN:
        from distft.model.document_attention import offer

        offer()
    return chosen


def masked(folder: Path, recipe: Recipe, spec: ModelSpec) -> str:
    """What takes the place of attention by document where that does not fit the model."""
    return _masked(support(folder, recipe.model.trust_remote_code, spec.auto_class)[1])


def _masked(supported: Sequence[str]) -> str:
    return SDPA if SDPA in supported else EAGER


def takes_documents(run: RunDir, starts: bool) -> bool:
    """Whether `auto` may take attention by document: a run that begins tries it, and keeps what it has found
    (`keep_trial`). One that began before there was such a trial keeps the attention that it began with."""
    return (starts and run.newest_commit() == 0) or _kept(run, VARLEN)


def leaves_out(run: RunDir) -> bool:
    """Whether a run's encoder leaves out, behind its last attention, what no head looks at."""
    return _kept(run, LEAVES_OUT)


def _kept(run: RunDir, name: str) -> bool:
    try:
        found = json.loads(run.attention.read_text(encoding="utf-8"))
        return bool(found[VARLEN] and found.get(name, False))
    except FileNotFoundError:
        return False
    except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run.attention} cannot be read ({error}); set model.attention to sdpa or varlen") from None


def keep_trial(run: RunDir, right: bool, leaves_out: bool = False) -> None:
    found = {VARLEN: right, **({LEAVES_OUT: True} if leaves_out else {})}
    write_atomically(run.attention, json.dumps(found) + "\n")


def check(folder: Path, recipe: Recipe, specs: Mapping[TaskName, TaskSpec]) -> None:
    """Raises UserError if the recipe names an implementation that the model has not for one of its tasks."""
    for spec in specs.values():
        choose(folder, recipe, spec.model)


def flash_fits(engine: Engine) -> bool:
    """Whether flash attention is installed, there is a GPU for it, and the dtype is one that it takes."""
    installed = importlib.util.find_spec("flash_attn") is not None
    return installed and torch.cuda.is_available() and engine.dtype == "bf16"


def _can_be_told(folder: Path, recipe: Recipe, spec: ModelSpec) -> bool:
    """Whether a model can be told where documents begin: one that predicts the next token, an encoder-decoder, or an
    encoder, of which transformers has a class for masked tokens too."""
    if not spec.tells_documents or spec.auto_class in (_NEXT_TOKEN, _PAIRS):
        return spec.tells_documents
    settings = _settings_of(folder, recipe.model.trust_remote_code)
    return type(settings) in _masked_models() and not getattr(settings, "is_encoder_decoder", False)


def _pays(folder: Path, recipe: Recipe, spec: ModelSpec) -> bool:
    """On a GPU attention by document pays by torch's kernel, which takes no fp32, drops nothing out and adds nothing to
    scores."""
    if not _can_be_told(folder, recipe, spec):
        return False
    if not torch.cuda.is_available():
        return True
    settings = None if spec.auto_class == _NEXT_TOKEN else _settings_of(folder, recipe.model.trust_remote_code)
    return recipe.engine.dtype == "bf16" and not any(getattr(settings, key, 0.0) for key in (*_DROPOUTS, *_BIASES))


def _settings_of(folder: Path, trusted: bool) -> Any:
    """What a model is built from; None if it cannot be read, which is said where it is loaded."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, StrictDataclassError):
        return None


def _masked_models() -> Any:
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM._model_mapping


def support(folder: Path, trusted: bool, auto_class: str) -> tuple[str, list[str]]:
    """The name of the class that transformers takes for a model folder, and the implementations which it and the
    models inside it all support, best last. A class that cannot be found counts as one that supports all: what is
    wrong is said where the model is loaded."""
    from transformers import AutoConfig

    everything = [EAGER, SDPA, VARLEN, FLASH]
    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
        found = model_class(folder, settings, trusted, auto_class)
        classes = [] if found is None else [found, *_inner_classes(_own_settings(found, settings))]
    except (OSError, ValueError, KeyError, ImportError, AttributeError, StrictDataclassError):
        classes = []
    if not classes:
        return auto_class, everything
    fits = [name for name in everything if all(_supports(one, name, auto_class) for one in classes)]
    return str(found.__name__), fits


def model_class(folder: Path, settings: Any, trusted: bool, auto_class: str) -> Any:
    """The class that `auto_class` of transformers takes for a configuration; None if it knows none."""
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    code = (getattr(settings, "auto_map", None) or {}).get(auto_class)
    if code is not None and trusted:  # comes with the model
        return get_class_from_dynamic_module(code, folder)
    known = getattr(transformers, auto_class)._model_mapping.get(type(settings), None)
    if not isinstance(known, list | tuple):
        return known
    named = [one for one in known if one.__name__ in (settings.architectures or ())]
    return (named or known)[0]


def _own_settings(found: Any, settings: Any) -> Any:
    """What the class is built from: of a model for texts and images it may be the text's part alone."""
    text = settings.get_text_config()
    return text if getattr(found, "config_class", None) is type(text) else settings


def _inner_classes(settings: Any) -> Iterator[Any]:
    """Classes of the models inside a composite one, such as an encoder and a decoder that are models of their own."""
    from transformers import MODEL_MAPPING

    for key in getattr(settings, "sub_configs", None) or {}:
        inner = getattr(settings, key, None)
        if inner is None:
            continue
        known = MODEL_MAPPING.get(type(inner), None)
        if known is not None:
            yield known[0] if isinstance(known, list | tuple) else known
        yield from _inner_classes(inner)


def _supports(found: Any, name: str, auto_class: str = "") -> bool:
    if name == EAGER:
        return True
    if name == SDPA:
        return bool(getattr(found, "_supports_sdpa", False))
    if name == VARLEN:
        asks = auto_class == _PAIRS and getattr(found, "_supports_flex_attn", False)  # by name, though it says less
        return bool(asks or getattr(found, "_supports_attention_backend", False))
    kernels = getattr(found, "_compatible_flash_implementations", None)  # others need kernels of their own
    return bool(getattr(found, "_supports_flash_attn", False)) and (kernels is None or FLASH in kernels)


def cost(model: Any, recipe: Recipe) -> str | None:
    """What the log says of a loaded model for which `auto` has found nothing that saves memory."""
    if recipe.model.attention != "auto" or getattr(model.config, "_attn_implementation", None) != EAGER:
        return None
    found = next((type(module) for module in model.modules() if hasattr(module, "_supports_sdpa")), type(model))
    hint = "; it would support flash attention on a GPU with bf16" if _supports(found, FLASH) else ""
    return (
        f"model.attention auto: {found.__name__} does not support sdpa, so attention is eager{hint}. "
        "Each layer then holds its scores, which grow with the square of data.row_tokens"
    )
