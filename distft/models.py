"""Base models and tokenizers: found, made, loaded, identified."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from distft import preempt
from distft.checkpoint.disk import checksum
from distft.config import Data, Engine, Model, ModelInit
from distft.data.formats import parse
from distft.data.sources import read
from distft.digest import remembered
from distft.errors import UserError
from distft.rundir import RunDir

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
EOS = "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")


def locate(model: Model, data: Data, run: RunDir) -> Path:
    """The local folder of the base model: as given, fetched from the hub, or made from `model.init`. One rank calls it.

    Raises:
        UserError: there is no such model.
    """
    if model.init is not None:
        if not (run.base / "config.json").exists():
            create(model.init, data, run.base)
        return run.base
    assert model.path is not None
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise UserError(f"model.path: {folder} holds no config.json, so it is no transformers model")
        return folder.absolute()
    if folder.is_absolute() or model.path.startswith((".", "~")):
        raise UserError(f"model.path: there is no folder {folder}; give a local model or a hub id (owner/name)")
    return _fetch(model)


def _fetch(model: Model) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    assert model.path is not None
    try:
        return Path(snapshot_download(model.path, revision=model.revision))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.path: '{model.path}' is no local folder and cannot be had from the hub ({reason}); "
            "check the name, or download it on a machine with internet and give the folder"
        ) from None


def create(init: ModelInit, data: Data, folder: Path) -> None:
    """A small random model and a byte-level BPE tokenizer trained on the data, in `folder`; all or nothing.

    Raises:
        UserError: transformers does not know the architecture or one of its sizes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    staged = folder.with_name(f".{folder.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    tokenizer = train_tokenizer(init.vocab_size, data)
    try:
        known = AutoConfig.for_model(init.architecture)
    except ValueError:
        raise UserError(f"model.init.architecture: transformers knows no '{init.architecture}'") from None
    for key in init.config:
        if not hasattr(known, key):
            raise UserError(f"model.init.config.{key}: {init.architecture} has no such setting")
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    try:
        config = AutoConfig.for_model(init.architecture, vocab_size=len(tokenizer), **special, **init.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init.seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"model.init: {init.architecture} cannot be made with these sizes ({error})") from None
    model.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    os.replace(staged, folder)


def train_tokenizer(vocab_size: int, data: Data) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(data), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=EOS)


def _texts(data: Data) -> Iterator[str]:
    for record in read(data.train, data.train_split, data.hub_config):
        preempt.check()
        parsed = parse(record, data.fields)
        yield parsed if isinstance(parsed, str) else "\n".join(m["content"] for m in parsed.messages)


def import_code(model: Model) -> None:
    """Import what `load` and `load_tokenizer` will import, as far as that can be told without loading anything."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoTokenizer  # noqa: F401

    kind = model.init.architecture if model.init is not None else _model_type(str(model.path))
    if kind in CONFIG_MAPPING:
        MODEL_FOR_CAUSAL_LM_MAPPING.get(CONFIG_MAPPING[kind], None)


def _model_type(path: str) -> str | None:
    """In the words of transformers; None where it is not known."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    file: Any = Path(path).expanduser() / "config.json"
    try:
        if not file.exists():
            file = try_to_load_from_cache(path, "config.json")
        return str(json.loads(Path(file).read_text(encoding="utf-8"))["model_type"])
    except (HFValidationError, OSError, ValueError, TypeError, KeyError):
        return None


def load_tokenizer(folder: Path, model: Model) -> Any:
    """The tokenizer of a model folder.

    Raises:
        UserError: there is none that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model.path: no tokenizer can be loaded from {folder} ({_first_line(error)})") from None


def attention(model: Model, engine: Engine) -> str:
    """The attention implementation: flash attention where a GPU has it and the dtype fits it, else sdpa."""
    if model.attention != "auto":
        return model.attention
    installed = importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if installed and torch.cuda.is_available() and engine.dtype == "bf16" else "sdpa"


def load(folder: Path, model: Model, engine: Engine, quantized: bool = False) -> Any:
    """The base model in the run's dtype, on the CPU (or in shards, see `engine.deepspeed.sharded_loading`).

    Args:
        quantized: hold the weights of its linear layers as 4-bit NormalFloat.

    Raises:
        UserError: transformers cannot load it as a causal language model, or weights are missing in it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        loaded, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[engine.dtype],
            attn_implementation=attention(model, engine),
            **(_four_bits(engine) if quantized else {}),
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(f"model.path: {folder} cannot be loaded as a causal LM: {_first_line(error)}") from None
    if info["missing_keys"]:
        raise UserError(f"model.path: {folder} lacks weights, {', '.join(sorted(info['missing_keys'])[:3])} among them")
    if model.activation_checkpointing:
        loaded.gradient_checkpointing_enable({"use_reentrant": False})
    return loaded


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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def digest(folder: Path, memory: Path) -> str:
    """sha256 over names and checksums of the files that make a base model: weights and config.json, in order.

    Args:
        memory: see `remembered`.
    """
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") or p.name == "config.json")

    def compute() -> str:
        whole = hashlib.sha256()
        for path in files:
            preempt.check()
            whole.update(f"{path.name} {checksum(path)}\n".encode())
        return whole.hexdigest()

    return remembered(files, memory, compute)
