"""Adapters: add PEFT layers to a model, and choose which parameters to train."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from distft.errors import UserError, first_line
from distft.recipe.adalora_phases import plan_phases
from distft.recipe.adapters import AdaLora, Adapter, Layers, Lora, NoAdapter, Partial
from distft.recipe.schema import Train
from distft.tasks.multi_task import Shared
from distft.tasks.protocol import ModelSpec
from distft.tasks.shared.routers import linear_routers, routers_of

NAME = "default"  # of the one adapter, in PEFT
PREFIX = "base_model.model."  # what PEFT puts before a parameter's name


def import_code(adapter: Adapter) -> None:
    """Import what `attach` will import."""
    if not isinstance(adapter, NoAdapter | Partial):
        import peft  # noqa: F401


def attach(model: Any, adapter: Adapter, spec: ModelSpec, base: str | None, total_steps: int) -> Any:
    """The model with a fresh adapter, or itself where there is none. What is not to be trained is frozen.

    Args:
        base: local path or hub id that is written into the adapter's configuration.
        total_steps: optimizer steps of the run.

    Raises:
        UserError: the recipe names modules that the model has not, or an adapter that does not fit it.
    """
    if isinstance(adapter, NoAdapter):
        return model
    if isinstance(adapter, Partial):
        return freeze_others(model, adapter)
    from peft import get_peft_model

    names = [name for name, _ in model.named_modules() if name]
    heads = [*head_modules(model, spec), *poolers(model, spec)]
    if adapter.targets != "all-linear":
        check_modules(names, listed(adapter.targets), "adapter.targets")
    check_modules(names, adapter.modules_to_save, "adapter.modules_to_save")
    # The same seed on every rank and at every start: a checkpoint replaces these values, a first attempt keeps them.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(adapter.seed)
        try:
            settings = configuration(adapter, spec, total_steps, targets(model, adapter, heads), heads)
            if adapter.targets == "all-linear" and not adapter.routers:
                leave_out_routers(settings, model)
            # in fp32 beside a head in bf16 ZeRO-3 would refuse them; masters are fp32 anyway
            adapted = get_peft_model(model, settings, autocast_adapter_dtype=False)
        except (ValueError, TypeError) as error:  # a module that PEFT has no layer for, or cannot copy
            keys = "adapter.targets" + (", adapter.modules_to_save" if adapter.modules_to_save else "")
            raise UserError(f"{keys}: {str(error).splitlines()[0]}") from None
    for name, parameter in adapted.named_parameters():
        if ".ranknum." in name:  # of AdaLoRA: where PEFT converts it to bf16, it forgets that it is fixed
            parameter.requires_grad_(False)
    adapted.peft_config[NAME].base_model_name_or_path = base
    if adapter.start is not None:
        begin_with(adapted, adapter.start)
    return adapted


def head_modules(model: Any, spec: ModelSpec) -> list[str]:
    """Names of the modules with parameters that a task has put on the transformer proper; they are trained whole."""
    if not spec.trains_head:
        return []
    if isinstance(model, Shared):
        return sorted({f"parts.{n}.{head}" for n, part in model.parts.items() for head in head_modules(part, spec)})
    found = {name.split(".")[0] for name, _ in model.named_parameters()}
    return sorted(found - {model.base_model_prefix})


def poolers(model: Any, spec: ModelSpec) -> list[str]:
    """Names of poolers, which are trained whole too: models that have learned something else come without one, and
    what is made anew must be in the export."""
    names = (name.partition(".pooler.") for name, _ in model.named_parameters() if spec.trains_head)
    return sorted({f"{before}.pooler" for before, found, _ in names if found})


def targets(model: Any, adapter: Layers, heads: list[str]) -> str | list[str]:
    """Modules that get an adapter. Of tasks with heads PEFT would count these among the linear layers."""
    if adapter.targets != "all-linear":
        return listed(adapter.targets)
    if not heads:
        return "all-linear"
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    return [name for name in linear if not any(name == head or name.startswith(f"{head}.") for head in heads)]


def leave_out_routers(settings: Any, model: Any) -> None:
    """Take the routers of a mixture of experts out of `all-linear`: a small change there sends tokens to other experts.

    Of some architectures PEFT takes `all-linear` for fused weights of experts and the routers' matrices too. It
    rewrites its configuration for that, which is done here first: it leaves one alone that it has rewritten.
    """
    names = routers_of(model)
    if not names:
        return
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    convert_peft_config_for_transformers(settings, model=model, conversions=None)
    matrices = [f"{name}.{key}" for name in names for key, _ in model.get_submodule(name).named_parameters()]
    if parameters := getattr(settings, "target_parameters", None):
        settings.target_parameters = {one for one in parameters if not any(_names(one, full) for full in matrices)}
    linear, chosen = linear_routers(model), settings.target_modules
    if not isinstance(chosen, str):  # PEFT warns of exceptions from nothing
        linear = [name for name in linear if any(_names(one, name) for one in chosen)]
    settings.exclude_modules = set(linear) or None


def _names(short: str, full: str) -> bool:
    return full == short or full.endswith(f".{short}")


def configuration(
    adapter: Layers, spec: ModelSpec, total_steps: int, targets: str | list[str], heads: list[str]
) -> Any:
    """PEFT's configuration. Raises UserError if AdaLoRA's phases do not fit into the run."""
    common: dict[str, Any] = {
        "lora_alpha": adapter.alpha,  # PEFT divides it by r: any number will do
        "lora_dropout": adapter.dropout,
        "target_modules": targets,  # a string is a regular expression, unless it is "all-linear"
        "modules_to_save": sorted({*adapter.modules_to_save, *heads}) or None,
        "task_type": spec.peft_task,
    }
    return CONFIGURATIONS[type(adapter)](adapter, total_steps, common)


def lora_configuration(adapter: Lora, total_steps: int, common: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=adapter.r, use_rslora=adapter.rslora, use_dora=adapter.dora, **common)


def adalora_configuration(adapter: AdaLora, total_steps: int, common: dict[str, Any]) -> Any:
    from peft import AdaLoraConfig

    try:
        phases = plan_phases(adapter, total_steps)
    except ValueError as error:
        raise UserError(f"adapter: {error}") from None
    return AdaLoraConfig(
        init_r=adapter.init_r,
        target_r=adapter.target_r,
        total_step=phases.total,
        tinit=phases.tinit,
        tfinal=phases.tfinal,
        deltaT=phases.delta_t,
        beta1=adapter.beta1,
        beta2=adapter.beta2,
        orth_reg_weight=adapter.orthogonal_weight,
        **common,
    )


CONFIGURATIONS: dict[type[Layers], Callable[[Any, int, dict[str, Any]], Any]] = {
    Lora: lora_configuration,
    AdaLora: adalora_configuration,
}


def listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def check_modules(names: list[str], wanted: list[str], key: str) -> None:
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            leaves = {name.rsplit(".", 1)[-1] for name in names}
            raise UserError(f"{key}: the model has no module '{target}'; it has {nearest(target, leaves)}")


def nearest(wanted: str, names: set[str]) -> str:
    """The names to show to somebody who gave another one."""
    ordered = sorted(name for name in names if not name.isdigit())
    return ", ".join(difflib.get_close_matches(wanted, ordered, n=3, cutoff=0.4) or ordered[:8])


def freeze_others(model: Any, adapter: Partial) -> Any:
    """Freeze all parameters but those that a pattern names; of tied ones any name will do."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for pattern in adapter.train:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise UserError(
                f"adapter.train: no parameter name matches '{pattern}'; near ones: {nearest(pattern, set(parameters))}"
            )
    trained = {id(p) for name, p in parameters.items() if any(fnmatchcase(name, pattern) for pattern in adapter.train)}
    for parameter in parameters.values():
        parameter.requires_grad_(id(parameter) in trained)
    return model


def begin_with(model: Any, source: str) -> None:
    """Put the weights of an adapter on disk, or on the hub, into a fresh one of the same shape."""
    from peft import PeftConfig, set_peft_model_state_dict
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    try:
        stored = PeftConfig.from_pretrained(source)
        weights = load_peft_weights(source, device="cpu")
        stored_rank = getattr(stored, "rank_pattern", None) if stored.peft_type == "ADALORA" else None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"adapter.from: {source} is not an adapter that PEFT can load ({first_line(error)})") from None
    if stored_rank and not all(all(kept) for kept in stored_rank.values()):
        raise UserError(
            f"adapter.from: {source} is an AdaLoRA with pruned ranks; merge it into its base model and start from that"
        )
    mine = model.peft_config[NAME]
    if stored.peft_type != mine.peft_type:
        kinds = [str(getattr(config.peft_type, "value", config.peft_type)) for config in (stored, mine)]
        raise UserError(f"adapter.from: {source} is a {kinds[0]} adapter, the recipe asks for {kinds[1]}")
    patterns = ("alpha_pattern", *(["rank_pattern"] if stored.peft_type == "LORA" else []))
    for key in ("use_rslora", "use_dora", "lora_alpha", "bias", *patterns):
        there, here = getattr(stored, key, None), getattr(mine, key, None)
        if there != here:
            raise UserError(f"adapter.from: {source} has {key} {there}, the recipe {here}; make them equal")
    try:
        result = set_peft_model_state_dict(model, weights)
    except KeyError as error:
        raise UserError(f"adapter.from: {source} lacks {error}, which adapter.modules_to_save trains") from None
    except RuntimeError as error:
        raise UserError(f"adapter.from: {source} has another base model or shape: {_line_with_shape(error)}") from None
    wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if f".{NAME}" in key)]
    if wrong:
        raise UserError(f"adapter.from: {source} has another base model or other target modules: {wrong[0]} differs")


def _line_with_shape(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "size mismatch" in line), lines[0])


def quantized(adapter: Adapter) -> bool:
    """Whether the base is held in 4 bits."""
    return isinstance(adapter, Lora) and adapter.quantize is not None


def rate_of(train: Train, adapter: Adapter, heads: Sequence[str]) -> Callable[[str], float]:
    """What the learning rate of a parameter is multiplied by: heads may have their own; with LoRA+ B is faster than A.

    Args:
        heads: names of the modules that `train.head_lr` is for, without an adapter.
    """
    head = 1.0 if train.head_lr is None else train.head_lr / train.lr
    prefixes = tuple(f"{name}." for name in heads)
    ratio = adapter.lora_plus if isinstance(adapter, Lora) and adapter.lora_plus is not None else 1.0

    def rate(name: str) -> float:
        if name.removeprefix(PREFIX).startswith(prefixes):
            return head
        return ratio if ".lora_B." in name else 1.0

    return rate


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trainable, total) numbers of elements, whole even where ZeRO-3 shards them or 4 bits share a byte."""
    sizes = [(p.requires_grad, _elements(p)) for p in model.parameters()]
    return sum(n for trainable, n in sizes if trainable), sum(n for _, n in sizes)


def _elements(parameter: Any) -> int:
    if getattr(parameter, "quant_state", None) is not None:
        return int(parameter.quant_state.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def prune(model: Any, pattern: dict[str, list[bool]]) -> None:
    """Have PEFT write only the ranks that AdaLoRA has left; it shrinks the tensors itself, here and at loading.

    What grew again since the last allocation of an unfinished run is written too: files compute what the model does.
    A weight that has lost all is written with one: its singular value is zero, and files hold no empty tensors.
    """
    patterns = {}
    for module, kept in pattern.items():
        values = model.get_parameter(f"{module}.lora_E.{NAME}").view(-1).tolist()
        written = [keep or value != 0.0 for keep, value in zip(kept, values, strict=True)]
        name = f"{module.removeprefix(PREFIX)}.lora_E"
        patterns[name] = written if any(written) else [True, *written[1:]]
    model.peft_config[NAME].rank_pattern = patterns
