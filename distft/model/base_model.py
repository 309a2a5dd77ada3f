"""Base models and tokenizers: find, load and identify them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from distft.checkpoint.disk import checksum
from distft.data import hub
from distft.engine.deepspeed import fill
from distft.errors import UserError, first_line
from distft.model import attention
from distft.model.recomputation import recompute
from distft.process import stop_signals
from distft.recipe.schema import Engine, Model, ModelInit, Recipe
from distft.recipe.tasks import TaskName
from distft.run.commits import Repository
from distft.run.digest import remembered_each
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
) -> Any:
    """The base model in the run's dtype, on the CPU (or in shards, see `engine.deepspeed.sharded_loading`).

    What a head lacks is made anew, the same on every rank and at every start.

    Args:
        labels: the label sets by their names in labels.json.
        quantized: hold the weights of its linear layers as 4-bit NormalFloat.
        by_document: see `attention.choose`.

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
                folder, recipe, spec.model, labels.get(key_of(name), ()), quantized and name is None, by_document
            )
            for name, spec in specs.items()
        }
    )
    recompute(loaded, recipe.model)
    return loaded


def shape(folder: Path, recipe: Recipe, specs: Mapping[TaskName, TaskSpec], labels: Mapping[str, Labels]) -> Any:
    """The model without its weights; to be called where tensors are made on the device "meta"."""
    import transformers

    trusted = recipe.model.trust_remote_code

    def make(spec: ModelSpec, own: Labels) -> Any:
        settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trusted, **spec.head(own))
        made = getattr(transformers, spec.auto_class).from_config(settings, trust_remote_code=trusted)
        spec.extend(made, own)
        return made

    return join_models({name: make(spec.model, labels.get(key_of(name), ())) for name, spec in specs.items()})


def _load(folder: Path, recipe: Recipe, spec: ModelSpec, labels: Labels, quantized: bool, by_document: bool) -> Any:
    import transformers
    from safetensors import SafetensorError

    engine, damaged = recipe.engine, (SafetensorError, UnpicklingError, StrictDataclassError)
    chosen = attention.offered(folder, recipe, spec, by_document)
    try:
        loaded, info = getattr(transformers, spec.auto_class).from_pretrained(
            folder,
            dtype=DTYPES[engine.dtype],
            attn_implementation=chosen,
            **(_four_bits(engine) if quantized else {}),
            **spec.head(labels),
            ignore_mismatched_sizes=spec.trains_head,
            trust_remote_code=recipe.model.trust_remote_code,
            output_loading_info=True,
        )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" in str(error):
            raise UserError(
                f"model.path: the weights in {folder} do not match its config.json; download it again"
            ) from None
        if "size mismatch" not in str(error):
            raise
        raise UserError(
            f"model.path: {folder} has a head of another size, which ZeRO-3 cannot replace during loading; "
            "use engine.zero_stage 0, 1 or 2, or a model without that head"
        ) from None
    except (OSError, ValueError, ImportError, KeyError, *damaged) as error:
        raise UserError(
            f"model.path: {folder} cannot be loaded for task.type {recipe.task.type}: {first_line(error)}"
        ) from None
    missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    check_missing(folder, loaded, missing, spec)
    renew({name: parameter for name, parameter in loaded.named_parameters() if name in missing}, recipe.train.seed)
    known = {id(parameter) for parameter in loaded.parameters()}
    spec.extend(loaded, labels)
    for parameter in loaded.parameters():  # ZeRO-3 takes parameters of one dtype only
        if id(parameter) not in known:
            parameter.data = parameter.data.to(DTYPES[engine.dtype])
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


def _four_bits(engine: Engine) -> dict[str, Any]:
    """QLoRA's own settings (Dettmers et al. 2023, arXiv:2305.14314): NF4, scales quantised once more."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "adapter.quantize: nf4 needs the library bitsandbytes; install distft[qlora], or leave adapter.quantize out"
        )
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[engine.dtype],
    )
    return {"quantization_config": settings}


def digest(folder: Path, memory: Path) -> str:
    """sha256 over names and checksums of the files that make a base model: weights and config.json, in order.

    Args:
        memory: see `remembered_each`.
    """
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") or p.name == "config.json")

    def compute(path: Path) -> str:
        stop_signals.check()
        return checksum(path)

    whole = hashlib.sha256()
    for path, found in zip(files, remembered_each(files, memory, compute), strict=True):
        whole.update(f"{path.name} {found}\n".encode())
    return whole.hexdigest()
