"""Base models and tokenizers: find, load and identify them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from distft.data import hub
from distft.engine.deepspeed import fill
from distft.errors import UserError, first_line
from distft.model import attention, skeleton, whole_loading
from distft.model.recomputation import recompute
from distft.model.skeleton import WHOLE, Places
from distft.recipe.schema import Model, ModelInit, Recipe
from distft.recipe.tasks import TaskName
from distft.run.commits import Repository
from distft.run.folder import RunDir
from distft.tasks.labels import key_of
from distft.tasks.multi_task import join_models, whole
from distft.tasks.protocol import Labels, ModelSpec, TaskSpec
from distft.tasks.shared.tokenizer_family import TokenizerFamily

WEIGHTS = ("safetensors", "bin", "pt", "pth", "h5", "msgpack", "onnx", "gguf", "ot")  # suffixes of large files
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def locate(model: Model, run: RunDir, make: Callable[[ModelInit, Path], None]) -> Path:
    """The local folder of the base model: as given, fetched from the hub, or made from `model.init`. One rank calls it.

    Args:
        make: writes a new model into a folder that does not exist, all or nothing.

    Raises:
        UserError: there is no such model.
    """
    if model.init is not None:
        if not (run.base / "config.json").exists():
            make(model.init, run.base)
        return run.base
    assert model.path is not None
    if is_on_hub(model):
        return fetch(model)
    folder = Path(model.path).expanduser()
    if not (folder / "config.json").exists():
        raise UserError(f"model.path: {folder} has no config.json, so it is not a transformers model")
    return folder.absolute()


def is_on_hub(model: Model) -> bool:
    """Raises UserError where it must be a folder that is not there."""
    if model.path is None or (folder := Path(model.path).expanduser()).is_dir():
        return False
    if folder.is_absolute() or model.path.startswith((".", "~")):
        raise UserError(f"model.path: folder {folder} does not exist; give a local model or a hub id (owner/name)")
    return True


def fetch(model: Model, weights: bool = True) -> Path:
    """The folder of a model of the hub, downloaded unless it is here already. Raises UserError if it cannot be."""
    assert model.path is not None
    repository = Repository("model", model.path, model.revision)
    unwanted = () if weights else [f"*.{suffix}" for suffix in WEIGHTS]
    return hub.fetch(repository, hub.commit_of(repository), but=unwanted)


def import_code(model: Model, auto_class: str) -> None:
    """Import what `load` and `load_processor` will import, as far as that can be told without loading anything."""
    import transformers
    from transformers import CONFIG_MAPPING, AutoTokenizer  # noqa: F401

    name = model.init.architecture if model.init is not None else _model_type(str(model.path), model.revision)
    if name in CONFIG_MAPPING:
        getattr(transformers, auto_class)._model_mapping.get(CONFIG_MAPPING[name], None)


def _model_type(path: str, revision: str | None) -> str | None:
    """In the words of transformers; None where it is not known."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    file: Any = Path(path).expanduser() / "config.json"
    try:
        if not file.exists():
            file = try_to_load_from_cache(path, "config.json", revision=revision)
        return str(json.loads(Path(file).read_text(encoding="utf-8"))["model_type"])
    except (HFValidationError, OSError, ValueError, TypeError, KeyError):
        return None


def load_processor(folder: Path, model: Model, family: TokenizerFamily) -> Any:
    """The tokenizer of a model folder; of a speech model what transformers calls its processor.

    Raises:
        UserError: there is none that can be loaded.
    """
    from transformers import AutoProcessor, AutoTokenizer

    try:
        return (AutoProcessor if family.hears else AutoTokenizer).from_pretrained(
            folder, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, ImportError, TypeError) as error:
        what = "processor" if family.hears else "tokenizer"
        raise UserError(f"model.path: no {what} can be loaded from {folder} ({first_line(error)})") from None


def load(
    folder: Path,
    recipe: Recipe,
    specs: Mapping[TaskName, TaskSpec],
    labels: Mapping[str, Labels],
    quantized: bool = False,
    by_document: bool = True,
    places: Places = WHOLE,
) -> Any:
    """The base model in the run's dtype, on the CPU or in shards.

    What a head lacks is made anew, the same on every rank and at every start.

    Args:
        labels: the label sets by their names in labels.json.
        quantized: hold the weights of its linear layers as 4-bit NormalFloat.
        by_document: see `attention.choose`.
        places: where weights go; those of 4 bits by transformers, which then has to know of shards.

    Raises:
        UserError: transformers cannot load it as a model for this task, or weights are missing in it.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it reports a head that is made anew as if something were wrong
    check_architecture(folder, recipe, whole(specs))
    loaded = join_models(
        {
            name: _load(
                folder,
                recipe,
                spec.model,
                labels.get(key_of(name), ()),
                quantized and name is None,
                by_document,
                places if name is None else places.below(f"parts.{name}."),
            )
            for name, spec in specs.items()
        }
    )
    recompute(loaded, recipe.model)
    return loaded


def shape(folder: Path, recipe: Recipe, specs: Mapping[TaskName, TaskSpec], labels: Mapping[str, Labels]) -> Any:
    """The model without its weights; to be called where tensors are made on the device "meta"."""

    def make(spec: ModelSpec, own: Labels) -> Any:
        made = _without_weights(folder, recipe, spec, own)
        spec.extend(made, own)
        return made

    return join_models({name: make(spec.model, labels.get(key_of(name), ())) for name, spec in specs.items()})


def _without_weights(folder: Path, recipe: Recipe, spec: ModelSpec, labels: Labels, **settings: Any) -> Any:
    """Where tensors are made on the device "meta". `settings`: of transformers' `from_config`."""
    import transformers

    trusted = recipe.model.trust_remote_code
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trusted, **spec.head(labels))
    return getattr(transformers, spec.auto_class).from_config(config, trust_remote_code=trusted, **settings)


def _load(
    folder: Path,
    recipe: Recipe,
    spec: ModelSpec,
    labels: Labels,
    quantized: bool,
    by_document: bool,
    places: Places,
) -> Any:
    chosen, dtype = attention.offered(folder, recipe, spec, by_document), DTYPES[recipe.engine.dtype]
    with whole_loading.in_a_sentence(folder, recipe):
        found = None
        if places.matter and not quantized:
            make = partial(_without_weights, folder, recipe, spec, labels, dtype=dtype, attn_implementation=chosen)
            found = skeleton.build(folder, make, dtype, places, is_head if spec.trains_head else lambda *_: False)
        if found is None:
            with places.shards.announced() if places.shards is not None else nullcontext():
                found = whole_loading.load(folder, recipe, spec, labels, quantized, chosen, dtype, places.nowhere)
    loaded, missing = found
    check_missing(folder, loaded, missing, spec)
    renew({name: parameter for name, parameter in loaded.named_parameters() if name in missing}, recipe.train.seed)
    known = {id(parameter) for parameter in loaded.parameters()}
    spec.extend(loaded, labels)
    for parameter in loaded.parameters():  # ZeRO-3 takes parameters of one dtype only
        if id(parameter) not in known:
            parameter.data = parameter.data.to(dtype)
    return loaded


def check_architecture(folder: Path, recipe: Recipe, spec: ModelSpec) -> None:
    """Raises UserError where an encoder-decoder is given to a task of one stack, or the reverse."""
    from transformers import AutoConfig

    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: {folder / 'config.json'} cannot be read ({error})") from None
    try:  # a configuration leaves out what is the default of its class
        whole = AutoConfig.from_pretrained(folder, trust_remote_code=recipe.model.trust_remote_code)
        both = bool(whole.is_encoder_decoder)
    except (OSError, ValueError, KeyError, ImportError, StrictDataclassError):
        return  # what is wrong with it is said where the model is loaded
    if both and spec.family.stacks == "one":
        raise UserError(
            f"model.path: {folder} is an encoder-decoder model ({settings.get('model_type')}), but task.type "
            f"{recipe.task.type} needs an encoder or a decoder alone; use task.type seq2seq-lm, or another model"
        )
    if not both and spec.family.stacks == "two":
        raise UserError(
            f"model.path: {folder} is not an encoder-decoder model ({settings.get('model_type')}), which task.type "
            f"{recipe.task.type} needs; use another task.type (causal-lm), or another model"
        )


def check_missing(folder: Path, model: Any, missing: Collection[str], spec: ModelSpec) -> None:
    """Raises UserError if a model folder lacks weights that are not made anew."""
    may_lack = spec.trains_head or spec.family.may_lack_head
    lost = sorted(name for name in missing if not (may_lack and is_head(model, name)))
    if lost:
        raise UserError(f"model.path: {folder} lacks weights, among them {', '.join(lost[:3])}; download it again")


def is_head(model: Any, name: str) -> bool:
    """Whether a parameter is beside the transformer proper. A pooler serves the head alone, wherever it stands."""
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name


def renew(parameters: dict[str, torch.nn.Parameter], seed: int) -> None:
    """Not by transformers: what it makes depends on how many ranks share the weights."""
    for name, parameter in parameters.items():
        fill(parameter, fresh(name, torch.Size(getattr(parameter, "ds_shape", parameter.shape)), seed))


def fresh(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """A new weight as BERT has it, in fp32: normal with a deviation of 0.02, no bias, norms of one."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    source = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    value = torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
    return value.normal_(0.0, 0.02, generator=source) if len(shape) > 1 else value
