"""`distft new`: writes a recipe to start from, for the embedded sample or for the user's data."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from distft import starters
from distft.commands.look import Look, Spec, look_at
from distft.errors import UserError
from distft.recipe import tasks
from distft.recipe.messages import did_you_mean

FILES = {"site": (starters.SITE, "site.toml"), "sbatch": (starters.SBATCH, "train.sbatch")}
_SECTIONS: dict[str, type[tasks.TaskSection]] = {
    tasks.type_of(section): section for section in get_args(get_args(tasks.AnyTask)[0])
}
_MODELS = {
    "causal-lm": "a decoder (Llama, Qwen, GPT-2)",
    "dpo": "a decoder that answers already",
    "seq2seq-lm": "an encoder-decoder (T5, BART, Marian, mBART)",
    "ctc": "a wav2vec2, HuBERT or WavLM",
    "speech-seq2seq": "a Whisper",
}
_ENCODER = "an encoder (BERT, RoBERTa, ModernBERT)"

_ADAPTER = (
    "# To train an adapter in place of the whole model:\n"
    "# adapter: {type: lora, r: 16, alpha: 32, targets: all-linear}\n\n"
    "# This is for a small random model. For a real one: lr 1e-5 to 5e-5, with an adapter 1e-4 to 3e-4;\n"
    "# `epochs: 3` in place of `steps`; `engine: {dtype: bf16}` if it is large.\n"
)


@dataclass(frozen=True)
class Written:
    """What was written, what is not sure in it, and the next command."""

    path: Path
    next_command: str
    doubts: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For the screen."""
        checks = [f"to be checked: {doubt}" for doubt in self.doubts]
        return [f"written: {self.path}", *checks, f"next: {self.next_command}"]


def write(name: str, data: Sequence[str], held_out: Sequence[str], out: Path | None) -> Written:
    """Write a recipe for the task `name`, or copy the file that `name` stands for: site, sbatch.

    Args:
        data: one file, or COLUMN=FILE for parallel files; empty: the recipe is for the embedded sample.
        held_out: in the same forms.
        out: default: NAME.yaml in the current folder.

    Raises:
        UserError: there is no such task, the data cannot be read, or the file to write is there already.
    """
    if name in FILES:
        return _copy(name, data or held_out, out)
    _check(name, data, held_out)
    path = out or Path(f"{name}.yaml")
    _refuse_existing(path)
    found = look_at(name, parsed("--data", data), parsed("--eval", held_out)) if data else None
    _put(path, recipe_text(name, found, path.parent))
    return Written(path, f"distft train {shlex.quote(str(path))}", found.doubts if found else [])


def parsed(option: str, given: Sequence[str]) -> Spec | None:
    """A file, or files by column, as `data.train` takes them; absolute paths."""
    if not given:
        return None
    pairs = [re.fullmatch(r"([A-Za-z_]\w*)=(.+)", text) for text in given]
    if len(given) == 1 and (pairs[0] is None or Path(given[0]).exists()):
        return _absolute(given[0], option)
    found = {pair[1]: _absolute(pair[2], option) for pair in pairs if pair is not None}
    if len(found) < len(given) or len(found) < 2:
        raise UserError(f"{option} takes one file, or parallel files as {option} source=FILE {option} target=FILE")
    return found


def recipe_text(task: str, found: Look | None, folder: Path) -> str:
    """The starter of a task, with comments, and with the user's data if `found` says how to read them.

    Args:
        folder: where the recipe will be; data below it are named from there.
    """
    blocks = _blocks(starters.recipe(task))
    about = (_SECTIONS[task].__doc__ or "").splitlines()[0]
    blocks["model"] = _model(task, blocks["model"], found)
    if found is not None:
        blocks["task"] = f"task: {_flow({'type': task, **_old_task(blocks['task']), **found.task})}\n"
        blocks["data"] = _data(found, folder)
        blocks["train"] = _train(blocks["train"], found)
    elif "train:" in blocks["data"]:
        blocks["data"] = (
            f"# The embedded sample; `distft new {task} --data FILE` fills this section in for yours.\n{blocks['data']}"
        )
    extra = "" if task in ("ctc", "speech-seq2seq") else _ADAPTER
    blocks["train"] = f"{extra}{blocks['train']}"
    return (
        "\n".join(
            [f"# {about}\n# `distft config` with this file prints every key and its value.\n", *blocks.values()]
        ).rstrip()
        + "\n"
    )


def _blocks(text: str) -> dict[str, str]:
    """The sections of a recipe by their names, without what stands before the first."""
    parts = re.split(r"(?m)^(?=[a-z]+:)", text)[1:]
    return {part.partition(":")[0]: part for part in parts}


def _old_task(block: str) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(block)["task"])


def _model(task: str, block: str, found: Look | None) -> str:
    if found is not None and (rows := found.keys.get("row_tokens")):
        # its positions must hold a row
        block = re.sub(r"(max_position_embeddings: )(\d+)", lambda m: f"{m[1]}{max(int(m[2]), rows)}", block)
    comment = (
        f"  # A small random model, to see that all of it runs. For results, put {_MODELS.get(task, _ENCODER)}\n"
        f"  # in its place, a folder or a hub id:   path: ./my-model\n"
    )
    return block.replace("model:\n", f"model:\n{comment}", 1)


def _data(found: Look, folder: Path) -> str:
    lines = [f"  # to be checked: {doubt}" for doubt in found.doubts]
    lines += [
        f"  {key}: {_flow(_seen_from(folder, found.keys[key]) if key in ('train', 'eval') else found.keys[key])}"
        for key in found.keys
    ]
    return "\n".join(["data:", *lines, ""])


def _train(block: str, found: Look) -> str:
    if found.best is not None:
        block = re.sub(r"best: \w+", f"best: {found.best}", block)
    if "eval" not in found.keys:
        block = re.sub(r", (eval_every|best): [^,}\s]+", "", block)
        block = f"# With held-out data in data.eval: add eval_every, and `best` to keep the best checkpoint.\n{block}"
    return block


def _seen_from(folder: Path, spec: Spec) -> Spec:
    """Paths below the recipe's folder from there, so that both can be moved together; others stay absolute."""
    if not isinstance(spec, str):
        return {column: str(_seen_from(folder, path)) for column, path in spec.items()}
    inside = os.path.relpath(spec, os.path.abspath(folder))
    return spec if inside.startswith("..") else f"./{inside}"


def _flow(value: Any) -> str:
    """YAML in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return starters.quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(_flow, value)) + "]" if isinstance(value, list) else str(value)


def _check(name: str, data: Sequence[str], held_out: Sequence[str]) -> None:
    known = [*sorted(_SECTIONS), *FILES]
    if name not in known:
        raise UserError(f"no starter is called '{name}'; {did_you_mean(name, known)}there are: {', '.join(known)}")
    if held_out and not data:
        raise UserError("--eval needs --data, the training data that it goes with")
    if name == "multi-task" and data:
        raise UserError("multi-task has data for each of its tasks: leave --data out, and name them in task.tasks")


def _absolute(path: str, option: str) -> str:
    full = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(full):
        raise UserError(f"{option} {path}: there is no such file (relative paths start from {Path.cwd()})")
    return full


def _copy(name: str, data: Sequence[str], out: Path | None) -> Written:
    if data:
        raise UserError(f"distft new {name} takes no --data and no --eval: what it writes is about a cluster")
    source, usual = FILES[name]
    path = out or Path(usual)
    _put(path, source.read_text(encoding="utf-8"))
    shown = shlex.quote(str(path))
    after = f"distft submit RECIPE --site {shown} --check" if name == "site" else f"sbatch {shown} RECIPE RUN_DIR"
    return Written(path, after, ["the values are those of an example; keep and change what your cluster needs"])


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise UserError(f"{path} is there already and is left as it is; name another file with --out")


def _put(path: Path, text: str) -> None:
    """Write a file that must not be there yet."""
    _refuse_existing(path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; name another file with --out") from error
