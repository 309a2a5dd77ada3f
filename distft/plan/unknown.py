"""The architecture of a model type that the plan does not know: transformers is asked, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distft.errors import UserError
from distft.plan.architecture import Architecture, Attention, FeedForward, Kind, Layers, Layout, Stack, Weight
from distft.plan.config import folder_of
from distft.plan.families.family import Goal
from distft.process.interpreter import running
from distft.recipe.schema import Recipe
from distft.recipe.tasks import TaskPart

CLASSES: dict[Goal, str] = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "sequence": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
    "answers": "AutoModelForQuestionAnswering",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "ctc": "AutoModelForCTC",
    "speech": "AutoModelForSpeechSeq2Seq",
}
LONGEST = 120  # seconds that transformers may take
NUMBERED = re.compile(r"(.*?)\.(\d+)\.(.*)")


def architecture_of(
    recipe: Recipe, config: Mapping[str, Any], parts: Sequence[tuple[TaskPart, Goal, int]]
) -> Architecture:
    """As transformers builds it; of several tasks with the head of the first.

    Raises:
        UserError: transformers cannot.
    """
    _, goal, labels = parts[0]
    answer = ask(
        {
            "folder": None if recipe.model.init is not None else str(folder_of(recipe.model)),
            "config": dict(config),
            "auto_class": CLASSES[goal],
            "labels": labels if goal in ("sequence", "tokens", "answers") else 0,
            "trusted": recipe.model.trust_remote_code,
        }
    )
    if "refused" in answer:
        raise UserError(
            f"model: transformers cannot build a {config['model_type']} model for task.type {recipe.task.type} "
            f"({answer['refused']}); use another model or task"
        )
    return read(answer, str(config["model_type"]), goal, labels)


def ask(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Raises UserError if the process does not answer."""
    command = [sys.executable, *running("distft.plan.meta")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=LONGEST, env=environment
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        reason = type(error).__name__ if isinstance(error, subprocess.TimeoutExpired) else done.stderr.strip()[-200:]
        raise UserError(f"model: transformers did not tell the weights of this model ({reason}); try again") from None
    return answer


def read(answer: Mapping[str, Any], model_type: str, goal: Goal, labels: int) -> Architecture:
    """What the process has printed, as an architecture."""
    weights = [weight_of(*one) for one in answer["weights"]]
    inner = f"{answer['prefix']}." if any(one.name.startswith(f"{answer['prefix']}.") for one in weights) else ""
    body = [one for one in weights if one.name.startswith(inner) and (inner or ".pooler." not in one.name)]
    head = tuple(one for one in weights if one not in body)
    config = {**answer["config"], **{key: answer["config"].get(real) for key, real in answer["aliases"].items()}}
    decoder = [one for one in body if "decoder" in one.name]
    encoder = [one for one in body if one not in decoder]
    if not answer["both"]:
        stacks: tuple[Stack, ...] = (stack_of("only", body, config, goal == "causal"),)
    else:
        stacks = (stack_of("encoder", encoder, config, False), stack_of("decoder", decoder, config, True))
    words = goal not in ("sequence", "tokens", "answers")
    return Architecture(
        model_type=model_type,
        stacks=stacks,
        head=head,
        vocabulary=int(config["vocab_size"]) if words else labels,
        tied=bool(answer["tied"]),
        positions=config.get("max_position_embeddings"),
        exact=False,
        outputs=(answer["output"],) if answer["output"] else (),
    )


def weight_of(name: str, shape: Sequence[int], kind: str, trains: bool) -> Weight:
    layouts: dict[str, Layout] = {"linear": "linear", "transposed": "transposed", "bare": "bare"}
    kinds: dict[str, Kind] = {"embedding": "embedding", "convolution": "convolution"}
    if kind not in layouts:
        return Weight(name, tuple(shape), kinds.get(kind, "vector"), frozen=not trains)
    experts = kind == "bare" and len(shape) == 3
    return Weight(name, tuple(shape), experts=experts, layout=layouts[kind], frozen=not trains)


def stack_of(role: Any, weights: Sequence[Weight], config: Mapping[str, Any], causal: bool) -> Stack:
    """Weights with a number in their names are of layers; layers with the same weights are alike."""
    numbered: dict[tuple[str, int], list[Weight]] = {}
    other = []
    for weight in weights:
        if (found := NUMBERED.fullmatch(weight.name)) is None:
            other.append(weight)
        else:
            path, number, name = found.groups()
            numbered.setdefault((path, int(number)), []).append(replace(weight, name=name))
    groups: dict[tuple[str, tuple[Weight, ...]], list[int]] = {}
    for (path, number), own in numbered.items():
        groups.setdefault((path, tuple(own)), []).append(number)
    layers = tuple(
        layers_of(path, own, tuple(numbers), config, causal, role == "decoder")
        for (path, own), numbers in groups.items()
    )
    return Stack(role, hidden_of(config), layers, tuple(other))


def hidden_of(config: Mapping[str, Any]) -> int:
    return int(config.get("hidden_size") or config.get("d_model") or 0)


def layers_of(
    path: str, own: tuple[Weight, ...], numbers: tuple[int, ...], config: Mapping[str, Any], causal: bool, over: bool
) -> Layers:
    """Heads and widths by the names that most configurations use, else as if there were one head."""
    heads = int(config.get("num_attention_heads") or config.get("encoder_attention_heads") or 1)
    keys = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or hidden_of(config) // heads)
    width = config.get("intermediate_size") or max((one.shape[0] for one in own if one.kind == "matrix"), default=0)
    experts = next((one.shape[0] for one in own if one.experts), 0)
    return Layers(
        count=len(numbers),
        path=path,
        weights=own,
        attention=Attention(heads, keys, size, size, causal, over_encoder=over),
        feed_forward=FeedForward(
            int(config.get("moe_intermediate_size") or width) if experts else int(width),
            any("gate" in one.name for one in own),
            str(config.get("hidden_act") or config.get("activation_function") or "gelu"),
            experts,
            int(config.get("num_experts_per_tok") or 1) if experts else 0,
        ),
        norms=sum("norm" in one.name.lower() and one.name.endswith("weight") for one in own),
        numbers=numbers,
    )
