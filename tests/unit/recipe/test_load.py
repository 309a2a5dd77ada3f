"""Recipes: what is read, what is refused and in which words, and that writing and reading agree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distft.data.sources import sources_of
from distft.errors import UserError
from distft.recipe.adapters import Layers
from distft.recipe.changes import ALLOWABLE, HARMLESS, Difference, agree, check_allowed
from distft.recipe.checkpoint import Checkpoint
from distft.recipe.load import check_sizes, differences, dump, json_schema, load, load_resolved
from distft.recipe.schema import Recipe
from distft.recipe.section import Section
from distft.recipe.sources import DataSource
from distft.recipe.tasks import Generation, TaskSection

SMALL = "model: {path: org/model}\ndata: {train: org/data}\ntrain: {steps: 5}\n"
FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), database=None)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str | bytes, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return _write


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on the folder that pytest runs in."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    assert caught.value.__cause__ is None
    return str(caught.value).replace(str(path), path.name)


def small(**sections: Any) -> Recipe:
    base = {"model": {"path": "org/model"}, "data": {"train": "org/data"}, "train": {"steps": 5}}
    return Recipe.model_validate(base | sections)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_small_recipe_gets_defaults_and_its_files_name(write: Write) -> None:
    assert load(write(SMALL, "my run.v2.yaml"), []) == small(name="my-run.v2")


@pytest.mark.parametrize(
    ("file", "name"),
    [("..x.yaml", "x"), (".yaml", "yaml"), ("a" * 80 + ".yaml", "a" * 64), ("....", "run"), ("é", "-")],
)
def test_name_from_file_is_valid(write: Write, file: str, name: str) -> None:
    assert load(write(SMALL, file), []).name == name


def test_name_given_wins_and_null_is_not_given(write: Write) -> None:
    assert load(write(SMALL + "name: x"), []).name == "x"
    assert load(write(SMALL + "name: null"), []).name == "recipe"
    assert load(write(SMALL + "name: x"), ["name=y"]).name == "y"


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", "''", "a" * 65, '"a\\n"'])
def test_bad_name_says_what_is_allowed(write: Write, name: str) -> None:
    message = complaint(write(SMALL + f"name: {name}"))
    assert message.startswith("recipe.yaml:4: name: got ")
    assert message.endswith("must be 1 to 64 of letters, digits, . _ -, not starting with a dot")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E-3", 1e-3),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("010", 10),
        ("-3", -3),
        ("0x1f", 31),
        ("0o17", 15),
        ("yes", "yes"),
        ("off", "off"),
        ("No", "No"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2024-01-02", "2024-01-02"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("=", "="),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1.5", 1.5),
        ("e5", "e5"),
        (".", "."),
    ],
)
def test_scalars_follow_yaml_1_2(write: Write, text: str, value: object) -> None:
    recipe = load(write(f"model: {{init: {{config: {{a: {text} }}}}}}\ndata: {{train: x}}\ntrain: {{steps: 1}}"), [])
    assert recipe.model.init is not None
    read = recipe.model.init.config["a"]
    assert (type(read), read) == (type(value), value)


def test_wandb_off_is_text(write: Write) -> None:
    assert load(write(SMALL + "track: {wandb: off}"), []).track.wandb == "off"


def test_anchors_are_expanded(write: Write) -> None:
    recipe = load(
        write("data: {train: &d org/d, eval: *d}\nmodel: {path: org/m}\ntrain: {steps: &n 8, micro_batch: *n}"), []
    )
    assert (recipe.data.eval, recipe.train.micro_batch) == ("org/d", 8)


def test_override_of_an_alias_leaves_its_anchor(write: Write) -> None:
    text = "model: {init: {config: &c {a: 1}}}\ndata: {train: x}\ntrain: {steps: 1}\nadapter: *c"
    message = complaint(write(text), "adapter.a=2", "adapter.type=none")
    assert message.startswith("override 'adapter.a=2': adapter.a: unknown key;")
    assert load(write(text), ["adapter={type: none}"]).model.init.config == {"a": 1}  # type: ignore[union-attr]


def test_byte_order_mark_and_crlf(write: Write) -> None:
    assert load(write(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode()), []).train.steps == 5


# --- problems ---------------------------------------------------------------------------------------------------------


def test_every_problem_is_reported_in_order_with_its_line(write: Write) -> None:
    text = """\
model:
  path: org/x
  atention: sdpa
data:
  row_tokens: 4
  packing: yes
  1: x
  fields: {a: 3}
adapter:
  type: lora
  r: 0
  targets: 5
  rr: 1
train:
  steps: 3.0
  steps: 5
  lr: .inf
  betas: [0.1, 1.5]
  schedule: cosin
  clip: !!python/object:os.system x
engine: {zero_stage: 0, offload_optimizer: true}
checkpoint:
track: on
"""
    lines = complaint(write(text), "train.stesp=3", "name.x.y=3", "noeq").splitlines()
    assert [" ".join(line.split(" ")[:2]) for line in lines] == [
        "recipe.yaml:3: model.atention:",
        "recipe.yaml:5: data.row_tokens:",
        "recipe.yaml:6: data.packing:",
        "recipe.yaml:7: data.1:",
        "recipe.yaml:8: data.fields.a:",
        "recipe.yaml:11: adapter.r:",
        "recipe.yaml:12: adapter.targets:",
        "recipe.yaml:13: adapter.rr:",
        "recipe.yaml:15: train.steps:",
        "recipe.yaml:16: train.steps:",
        "recipe.yaml:17: train.lr:",
        "recipe.yaml:18: train.betas.1:",
        "recipe.yaml:19: train.schedule:",
        "recipe.yaml:20: train.clip:",
        "recipe.yaml:21: engine:",
        "recipe.yaml:22: checkpoint:",
        "recipe.yaml:23: track:",
        "override 'train.stesp=3':",
        "override 'name.x.y=3':",
        "override 'noeq':",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("engine: {dtyp: bf16}", "engine.dtyp: unknown key; did you mean dtype? valid keys: zero_stage, dtype, "),
        ("zzz: 1", f"zzz: unknown key; valid keys: {', '.join(Recipe.model_fields)}"),
        ("engine: {dtype: fp16}", "engine.dtype: got 'fp16'; did you mean bf16? must be 'bf16' or 'fp32'"),
        ("engine: {zero_stage: 4}", "engine.zero_stage: got 4; must be 0, 1, 2 or 3"),
        ("engine: {timeout: 0}", "engine.timeout: got 0; must be greater than 0"),
        ("engine: {timeout: 1.5}", "engine.timeout: got 1.5; must be a whole number"),
        ("engine: {offload_params: on}", "engine.offload_params: got 'on'; must be true or false"),
        ("engine: {offload_params: true}", "engine: offload_params needs zero_stage 3"),
        ("track: {project: 3}", "track.project: got 3; must be text (in quotes if it looks like a number)"),
        (
            "track: {project: [a]}",
            "track.project: got ['a']; must be text (in quotes if it looks like a number), not a list: write 'a'",
        ),
        (
            "track: {project: [a, b]}",
            "track.project: got ['a', 'b']; must be text (in quotes if it looks like a number), not a list",
        ),
        ("engine: {dtype: [x]}", "engine.dtype: got ['x']; must be 'bf16' or 'fp32', not a list: write 'x' without"),
        ("track:", "track: got null; write keys under it, or leave it out: wandb, project, entity"),
        ("adapter: lora", "adapter: got 'lora'; write keys under it, or leave it out: type, train, alpha, dropout"),
        ("adapter: {type: lora, r: 0}", "adapter.r: got 0; must be greater than 0"),
        ("adapter: {type: lora, rr: 2}", "adapter.rr: unknown key; did you mean r? valid keys: type, alpha, dropout, "),
        ("adapter: {type: none, r: 2}", "adapter.r: unknown key; valid keys: type"),
        ("adapter: {type: lora, lora: {r: 1}, r: 2.5}", "adapter.r: got 2.5; must be a whole number"),
        (
            "adapter: {type: qlora}",
            "adapter.type: got 'qlora'; did you mean lora? must be 'none' or 'partial' or ",
        ),
        ("adapter: {type: null}", "adapter.type: got null; must be 'none' or 'partial' or 'lora' or 'adalora'"),
        ("adapter: {type: [1]}", "adapter.type: got [1]; must be 'none' or 'partial' or 'lora' or 'adalora'"),
        ("adapter: {r: 8}", "adapter.type: missing; must be 'none' or 'partial' or 'lora' or 'adalora'"),
        (
            "adapter: {type: lora, targets: {x: 1}}",
            "adapter.targets: got {'x': 1}; must be text (in quotes if it looks like a number) or a list",
        ),
        ("adapter: {type: lora, targets: [q, 1]}", "adapter.targets"),
        ("name: &a [*a]", "too many or too deeply nested values for a recipe; check the aliases (*name)"),
        ("name: !x y", "name: the tag '!x' is refused; write plain text, numbers and lists"),
        ("name: !!str [y]", "name: the tag '!!str' is refused"),
        ("name: !!int y", "name: 'y' is not what its tag says; remove the tag"),
        ("adapter: {type: lora, alpha: 1e999}", "adapter.alpha: '1e999' is not a finite number"),
        ("adapter: {type: lora, r: " + "9" * 5000 + "}", "adapter.r: '99999"),
        ("? [a]\n: b", "'?': this key is not text; put it in quotes or remove it"),
        ("null: b", "null: this key is not text; put it in quotes or remove it"),
        (
            "adapter: {type: adalora, init_r: 4, target_r: 6}",
            "adapter: target_r 6 leaves AdaLoRA no rank to remove from init_r 4; give target_r 1 to 3, or a larger",
        ),
        ("adapter: {type: adalora, tinit: 5}", "adapter: tinit 5 + tfinal "),
        ("adapter: {type: partial}", "adapter.train: missing; give it: names of the parameters to train"),
        ("adapter: {type: none, type: lora}", "adapter.type: given twice, first at recipe.yaml:4; keep one"),
    ],
)
def test_problem_in_words(write: Write, text: str, expected: str) -> None:
    message = complaint(write(SMALL + text))
    assert message.startswith(f"recipe.yaml:4: {expected}")
    assert not re.search(r"Value error|Input should|pydantic|Ellipsis|NoneType|\[type=", message)


def test_missing_keys_are_reported_at_their_section(write: Write) -> None:
    message = complaint(write("# a comment\n\nname: x\nmodel: {path: y}\ndata:\n  seed: 1\n"))
    assert message.startswith("recipe.yaml:3: train: missing; add this section, with some of its keys: steps, epochs")
    # Which data are needed is known when the task is.
    message = complaint(write("# a comment\n\nname: x\nmodel: {path: y}\ndata:\n  seed: 1\ntrain: {steps: 1}\n"))
    assert message.startswith("recipe.yaml:5: data.train: missing; give it: training data: a file (.jsonl")
    message = complaint(write("name: x\nmodel: {path: y}\ntrain: {steps: 1}\n"))
    assert message.startswith("recipe.yaml:1: data.train: missing; give it: training data: a file (.jsonl")


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("{}", "train: give exactly one of `steps` and `epochs`"),
        (
            "{steps: 1, global_batch: 7}",
            "train: global_batch 7 is not a multiple of micro_batch 4; nearest that fits: global_batch 8",
        ),
        (
            "{steps: 3, warmup: 3}",
            "train: warmup 3 leaves none of the 3 steps for the schedule; give warmup 0 to 2, or more steps",
        ),
    ],
)
def test_validators_speak_for_themselves(write: Write, train: str, expected: str) -> None:
    assert complaint(write(f"model: {{path: x}}\ndata: {{train: x}}\ntrain: {train}")) == f"recipe.yaml:3: {expected}"


def test_what_may_be_left_open_is_auto(write: Write) -> None:
    text = "model: {path: x, activation_checkpointing: auto}\ndata: {train: x}\ntrain: {steps: 1, global_batch: 7}"
    recipe = load(write(text), ["train.micro_batch=auto"])
    assert (recipe.train.micro_batch, recipe.model.activation_checkpointing) == ("auto", "auto")
    check_sizes(recipe, 7)
    with pytest.raises(UserError, match=r"7 is not a multiple of 2 ranks; nearest that fit: .*=6 or 8"):
        check_sizes(recipe, 2)
    message = complaint(write(text), "train.micro_batch=aut")
    assert "train.micro_batch: got 'aut'; did you mean auto? must be a whole number or 'auto'" in message
    message = complaint(write(text), "train.micro_batch=0")
    assert "train.micro_batch: got 0; must be greater than 0 or 'auto'" in message
    message = complaint(write(text), "train.micro_batch=1", "model.activation_checkpointing=some")
    assert "got 'some'; must be 'auto', 'full', 'selective' or 'off'" in message


@pytest.mark.parametrize("key", ["model.path", "data.train", "data.eval", "data.template", "data.cache"])
def test_empty_paths_are_refused(write: Write, key: str) -> None:
    message = complaint(write(SMALL), f"{key}=''")
    assert message.endswith(f": {key}: got ''; must have at least 1 character")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("key", ["lr", "epochs", "eps", "weight_decay", "clip"])
def test_numbers_are_finite_whoever_makes_the_recipe(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        small(train={"steps": 5, key: value})


def test_a_models_configuration_is_finite() -> None:
    with pytest.raises(ValidationError, match="finite number"):
        small(model={"init": {"config": {"rope_theta": float("inf")}}})


def test_warmup_is_free_where_epochs_decide_the_steps() -> None:
    assert small(train={"epochs": 1.0, "warmup": 1000}).train.warmup == 1000


def test_unreadable_value_is_not_reported_again(write: Write) -> None:
    text = "model: {path: !a x}\ndata: {train: x}\ntrain: {steps: .nan, epochs: 1}\nadapter: {type: !b x}"
    lines = complaint(write(text)).splitlines()
    assert [line.split(" ")[1] for line in lines] == ["model.path:", "train.steps:", "adapter.type:"]


def test_wrong_adapter_type_hides_no_unknown_keys(write: Write) -> None:
    lines = complaint(write(SMALL + "adapter:\n  typ: lora\n  rank: 8\n")).splitlines()
    assert [line.split(" ")[:2] for line in lines] == [
        ["recipe.yaml:4:", "adapter.type:"],
        ["recipe.yaml:5:", "adapter.typ:"],
        ["recipe.yaml:6:", "adapter.rank:"],
    ]


def test_odd_names_stay_on_one_line(write: Write) -> None:
    message = complaint(write(SMALL + '"a\\nb": 1\n"' + "x" * 500 + '": "' + "y" * 500 + '"'))
    assert len(message.splitlines()) == 2
    assert max(map(len, message.splitlines())) < 250


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "recipe.yaml: empty;"),
        ("# nothing\n", "recipe.yaml: empty;"),
        ("\n- a\n", "recipe.yaml:2: not a recipe; write `key: value` lines"),
        ("hello", "recipe.yaml:1: not a recipe;"),
        ("null", "recipe.yaml:1: not a recipe;"),
        ("!x {a: 1}", "recipe.yaml:1: not a recipe;"),
        ("model:\n\tpath: x\n", "recipe.yaml:2: not valid YAML: the line is indented with a tab;"),
        ("model:\n  path: x\n \ty: x\n", "recipe.yaml:3: not valid YAML: the line is indented with a tab;"),
        ("a: 1\nb: [1,\nc: 2\n", "recipe.yaml:"),
        ("a: b: c", "recipe.yaml:1: not valid YAML: mapping values are not allowed here;"),
        ("a: 1\nb: 'x", "recipe.yaml:2: not valid YAML: "),
        ("a: 1\nb: *x", "recipe.yaml:2: not valid YAML: found undefined alias 'x'"),
        ("a: 1\n---\nb: 1", "recipe.yaml:2: not valid YAML: expected a single document"),
        ("a: 1\nb: \0", "recipe.yaml:2: not valid YAML: character U+0000, which YAML does not allow"),
        ('a: 1\nb: "\\ud800"', "recipe.yaml:2: not valid YAML: a character that no text holds"),
        ('a: 1\nb: "\\UFFFFFFFF"', "recipe.yaml:2: not valid YAML: nested too deep, or an escape out of range"),
        ("[" * 20000, "recipe.yaml:1: not valid YAML: nested too deep"),
        ("a: " + "[" * 40 + "]" * 40, "recipe.yaml:1: too many or too deeply nested values"),
        (b"a: 1\nb: \xff", "recipe.yaml:2: not UTF-8 text; save the recipe as UTF-8"),
        (SMALL.encode("utf-16"), "recipe.yaml:1: not UTF-8 text"),
        (b"#" * (1 << 20) + b"\n", "recipe.yaml: larger than 1 MiB"),
    ],
)
def test_not_a_recipe_is_one_sentence(write: Write, content: str | bytes, expected: str) -> None:
    message = complaint(write(content))
    assert message.startswith(expected)
    assert len(message.splitlines()) == 1


def test_alias_bomb_is_refused(write: Write) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
    assert "check the aliases" in complaint(write(bomb))


def test_a_file_of_exactly_the_limit_is_read(write: Write) -> None:
    assert load(write(SMALL + "#" * ((1 << 20) - len(SMALL))), []).train.steps == 5


@pytest.mark.parametrize("name", ["missing.yaml", ".", "x\0y", "x" * 5000])
def test_files_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(UserError, match=r"cannot read the recipe: .*; give the path of a YAML file"):
        load(path, [])


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_set_nested_keys_and_the_later_wins(write: Write) -> None:
    overrides = ["adapter={type: lora, r: 8}", "adapter.r=9", "adapter.targets=[q_proj,v_proj]", "train.lr=1e-3"]
    recipe = load(write(SMALL), [*overrides, "data.eval=x", "data.eval=null", "track.project=a=b", "train.lr=2e-4"])
    assert recipe.adapter.model_dump(include={"type", "r", "targets"}) == {
        "type": "lora",
        "r": 9,
        "targets": ["q_proj", "v_proj"],
    }
    assert (recipe.data.eval, recipe.track.project, recipe.train.lr) == (None, "a=b", 2e-4)


def test_override_fills_a_missing_or_null_section(write: Write) -> None:
    text = "model: {path: null, init: null}\ntrain: {steps: 1}"
    recipe = load(write(text), ["model.init.vocab_size=300", "data.train=x"])
    assert recipe.model.init is not None
    assert recipe.model.init.vocab_size == 300


def test_override_corrects_the_file(write: Write) -> None:
    assert (
        load(write(SMALL + "engine: {zero_stage: 9}\ntrack: 3"), ["engine.zero_stage=1", "track={}"]).engine.zero_stage
        == 1
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps", "not key.path=value; write for example train.steps=100"),
        ("=3", "not key.path=value"),
        ("train..steps=3", "not key.path=value"),
        (".train=3", "not key.path=value"),
        ("train.stesp=3", "train.stesp: unknown key; did you mean steps?"),
        ("trian.steps=3", "trian: unknown key; did you mean train?"),
        ("train.steps.x=3", "train.steps.x: train.steps is 5, which holds no keys; set it as a whole"),
        ("train.lr=abc", "train.lr: got 'abc'; must be a number"),
        ("train.lr=.nan", "train.lr: '.nan' is not a finite number"),
        ("data.eval=[", "data.eval: not valid YAML: "),
        ("data.eval=!x 1", "data.eval: the tag '!x' is refused"),
        ("data.eval=\udcff", "data.eval: not valid YAML: character U+DCFF"),
        ("adapter={type: lora, r: 0}", "adapter.r: got 0;"),
        ("adapter={type: none, type: none}", "adapter.type: given twice, first at override"),
    ],
)
def test_bad_override_is_named(write: Write, override: str, expected: str) -> None:
    message = complaint(write(SMALL), override)
    assert message.startswith(f"override {override!r}: {expected}")
    assert len(message.splitlines()) == 1


def test_override_of_a_section_is_to_blame_for_what_it_leaves_out(write: Write) -> None:
    message = complaint(write(SMALL), "data={seed: 1}")
    assert message.startswith("override 'data={seed: 1}': data.train: missing; give it: training data")


def test_problem_moves_back_to_the_file_when_the_file_is_to_blame(write: Write) -> None:
    message = complaint(write(SMALL + "adapter:\n  type: lora\n  r: 8\n"), "adapter.type=none")
    assert message == "recipe.yaml:6: adapter.r: unknown key; valid keys: type"


# --- tasks ------------------------------------------------------------------------------------------------------------

LONE = "model: {path: org/model}\ntrain: {steps: 5}\n"
TWO = """\
task:
  type: multi-task
  tasks:
    a: {task: {type: masked-lm}, train: ./a.txt, eval: org/a}
    b: {task: {type: token-classification}, train: {tokens: ./b.words, tags: ./b.tags}}
"""
TYPES = (
    "'causal-lm' or 'masked-lm' or 'sequence-classification' or 'token-classification' or 'question-answering' or "
    "'seq2seq-lm' or 'ctc' or 'speech-seq2seq' or 'dpo' or 'multi-task'"
)


def test_the_default_task_is_causal(write: Write) -> None:
    recipe = load(write(SMALL), [])
    assert recipe.task.type == "causal-lm"
    assert (recipe.data.packing, recipe.data.group_by_length, recipe.data.overlong) == (None, "step", None)
    assert (recipe.train.best, recipe.train.patience) == (None, None)


def test_a_multi_task_names_its_data_itself(write: Write, tmp_path: Path) -> None:
    task = load(write(LONE + TWO), []).task
    assert task.type == "multi-task"
    assert (task.tasks["a"].train, task.tasks["a"].eval) == (str(tmp_path / "a.txt"), "org/a")
    assert task.tasks["b"].train == {"tokens": str(tmp_path / "b.words"), "tags": str(tmp_path / "b.tags")}
    again = load(write(dump(load(write(LONE + TWO), [])), "again.yaml"), [])
    assert again.task == task


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "data: {train: https://example.org/a.jsonl}",
            "recipe.yaml:1: data.train: got 'https://example.org/a.jsonl'; distft reads files, folders and hub ids: "
            "download it first, and give the file or folder",
        ),
        ("data: {train: {source: s3://b/a.en, target: /t}}", "got 's3://b/a.en'; distft reads files, folders and hub"),
        (
            "data: {train: x, eval: https://huggingface.co/datasets/org/name}",
            "folders and hub ids: write the hub id: org/name",
        ),
        (
            "data: {train: x, eval: hf://datasets/org/name/a.csv}",
            "hub ids: download it first, and give the file or folder",
        ),
        ("model: {path: https://huggingface.co/org/name/tree/main}", "folders and hub ids: write the hub id: org/name"),
    ],
)
def test_data_that_are_an_address(write: Write, text: str, told: str) -> None:
    rest = "".join(f"{line}\n" for line in SMALL.splitlines() if line.split(":")[0] != text.split(":")[0])
    message = complaint(write(f"{text}\n{rest}"))
    assert message.count("recipe.yaml:") == 1
    assert told in message


def test_hub_ids_and_files_are_no_addresses(write: Write) -> None:
    for place in ("org/name", "name", "./a:b/c.jsonl", "/a://b.jsonl", "C:/a.jsonl"):
        assert load(write(SMALL), [f"data.train={place}"]).data.train.endswith(place.removeprefix("./"))


def test_all_tasks_leave_out_bad_records_as_the_data_section_says(write: Write) -> None:
    for text in (SMALL, LONE + TWO):
        path = write(text)
        for changed, budget in (([], None), (["data.bad_budget=0.5"], None), (["data.bad_records=skip"], 0.01)):
            assert {part.bad_budget for part in load(path, changed).parts()} == {budget}
        recipe = load(path, ["data.bad_records=skip", "data.bad_budget=0.0"])
        sources = [one for part in recipe.parts() for which in ("train", "eval") for one in sources_of(part, which)]
        assert {source.bad_budget for source in sources} == {0.0}


def test_runs_begun_before_bad_records_could_be_left_out_go_on(write: Write) -> None:
    values = yaml.safe_load(dump(small()))
    assert (values["data"].pop("bad_records"), values["data"].pop("bad_budget")) == ("refuse", 0.01)
    stored = load_resolved(write(yaml.safe_dump(values), "config.yaml"))
    assert differences(stored, small()) == []
    lenient = small(data={"train": "/d", "bad_records": "skip", "bad_budget": 0.5})
    rules = {one.key: one.rule for one in differences(stored, lenient) if "bad" in one.key}
    assert rules == {"data.bad_records": "harmless", "data.bad_budget": "harmless"}


@pytest.mark.parametrize("given", ["./x.en", "x.jsonl", "~/x", "../x.txt.gz"])
def test_parallel_files_start_from_the_recipes_folder(write: Write, tmp_path: Path, given: str) -> None:
    recipe = load(write(LONE + f"data: {{train: {{source: {given}, target: /t}}, eval: {{source: {given}}}}}"), [])
    assert isinstance(recipe.data.train, dict)
    assert recipe.data.train == {
        "source": str(Path(os.path.abspath(tmp_path / Path(given).expanduser()))),
        "target": "/t",
    }
    assert recipe.data.eval == {"source": recipe.data.train["source"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task: {type: maskedlm}\n", f"task.type: got 'maskedlm'; did you mean masked-lm? must be {TYPES}"),
        ("task: {mask: 0.2}\n", f"task.type: missing; must be {TYPES}"),
        ("task: masked-lm\n", "task: got 'masked-lm'; write keys under it, or leave it out: type, mask, kind, labels"),
        ("task: {type: masked-lm, kind: single}\n", "task.kind: unknown key; valid keys: type, mask"),
        ("task: {type: masked-lm, mask: 1.0}\n", "task.mask: got 1.0; must be less than 1"),
        ("task: {type: sequence-classification, labels: []}\n", "task.labels: got []; must have at least 1 item"),
        ("task: {type: sequence-classification, labels: [1]}\n", "task.labels.0: got 1; must be text (in quotes"),
        (
            "task: {type: sequence-classification, labels: [b, a, b, c]}\n",
            "task.labels: 'b' is listed 2 times; list each label once",
        ),
        ("task: {type: token-classification, labels: [O, O, O]}\n", "task.labels: 'O' is listed 3 times; list each"),
        ("task: {type: multi-task}\n", "task.tasks: missing; give it: {name: {task: ..., train: ..., eval: ...}}"),
    ],
)
def test_problem_of_a_task_in_words(write: Write, text: str, expected: str) -> None:
    message = complaint(write(SMALL + text))
    assert message.startswith(f"recipe.yaml:4: {expected}")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (SMALL, ["data.overlong=truncate"], "data.overlong: got 'truncate'; task.type causal-lm can split or drop"),
        (
            SMALL + "task: {type: sequence-classification}\n",
            ["data.overlong=split"],
            "data.overlong: got 'split'; task.type sequence-classification can truncate or drop",
        ),
        (SMALL, ["train.best=loss"], "train.best: needs held-out data; set data.eval"),
        (
            SMALL,
            ["train.head_lr=1e-3"],
            "train.head_lr: task.type causal-lm adds no head to the model; leave it out",
        ),
        (
            SMALL,
            ["data.eval=x", "train.best=f1"],
            "train.best: got 'f1'; task.type causal-lm has the scores loss, perplexity, accuracy",
        ),
        (
            SMALL,
            ["data.eval=x", "train.patience=2"],
            "train: patience needs `best` (the score to watch) and `eval_every`",
        ),
        (
            LONE + TWO,
            ["train.best=f1"],
            "train.best: got 'f1'; did you mean b.f1? task.type multi-task has the scores loss, a.loss, ",
        ),
        (LONE + TWO, ["data.train=x"], "data.train: task.type multi-task takes its data from task.tasks"),
        (LONE + TWO, ["data.eval=x"], "data.eval: task.type multi-task takes its data from task.tasks"),
        (LONE + TWO, ["task.tasks.a.weight=2.0"], "task: give a weight to all tasks or to none; b has none"),
    ],
)
def test_a_task_and_the_rest_must_fit(write: Write, text: str, overrides: list[str], expected: str) -> None:
    message = complaint(write(text), *overrides)
    assert message.startswith(f"override {overrides[-1]!r}: {expected}") or f" {expected}" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (SMALL, ["data.eval=x", "train.best=perplexity", "train.eval_every=2", "train.patience=3"]),
        (SMALL, ["data.overlong=split"]),
        (SMALL + "task: {type: masked-lm}\n", ["data.overlong=truncate"]),
        (LONE + TWO, ["train.best=a.perplexity"]),
        (LONE + TWO, ["train.best=loss"]),
        (LONE + TWO, ["task.tasks.a.weight=2.0", "task.tasks.b.weight=1"]),
    ],
)
def test_what_fits_is_taken(write: Write, text: str, overrides: list[str]) -> None:
    assert isinstance(load(write(text), overrides), Recipe)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("task.tasks.a={task: {type: masked-lm}}", "task.tasks.a.train: missing; give it: like data.train"),
        ("task.tasks.a={train: x}", "task.tasks.a.task: missing; "),
        ("task.tasks.a.trian=x", "task.tasks.a.trian: unknown key; did you mean train? valid keys: task, train, eval"),
        ("task.tasks.a.task.mas=1", "task.tasks.a.task.mas: unknown key; did you mean mask? valid keys: type, mask"),
        ("task.tasks.a.task.type=dpo", "task.tasks.a.task.type: got 'dpo'; must be 'masked-lm' or 'sequence-"),
        ("task.tasks.b.task.labels=[O, O]", "task.tasks.b.task.labels: 'O' is listed 2 times; list each label once"),
        ("task.tasks.a=3", "task.tasks.a: got 3; write keys under it, or leave it out: task, train, eval"),
        (
            "task.tasks.train={task: {type: masked-lm}, zz: 1}",
            "task.tasks.train.train: missing; give it: like data.train",
        ),
    ],
)
def test_problem_of_one_of_several_tasks_in_words(write: Write, override: str, expected: str) -> None:
    assert complaint(write(LONE + TWO), override).startswith(f"override {override!r}: {expected}")


# --- everything at once -----------------------------------------------------------------------------------------------


def test_what_is_wrong_between_keys_is_told_beside_what_is_wrong_in_them(write: Write) -> None:
    text = (
        "task: {type: token-classification}\nmodel: {path: ./x}\ndata: {train: a.conll}\n"
        "train: {steps: 10, warmup: 20, lr: abc, best: acuracy}\nengine: {zero_stage: 0, offload_optimizer: true}\n"
        "track: {wandb: onlin}\n"
    )
    assert complaint(write(text)).splitlines() == [
        "recipe.yaml:4: train.lr: got 'abc'; must be a number",
        "recipe.yaml:4: train: warmup 20 leaves none of the 10 steps for the schedule; "
        "give warmup 0 to 9, or more steps",
        "recipe.yaml:5: engine: offload_optimizer needs zero_stage 1, 2 or 3",
        "recipe.yaml:6: track.wandb: got 'onlin'; did you mean online? must be 'off', 'offline' or 'online'",
    ]


def test_between_sections_too(write: Write) -> None:
    lines = complaint(write("model: {path: x}\ntrain: {steps: 10, lr: abc, best: loss, head_lr: 1.0}\n")).splitlines()
    assert [line.partition(":1: ")[2] or line.partition(":2: ")[2] for line in lines][1:] == [
        "train.lr: got 'abc'; must be a number",
        "train.head_lr: task.type causal-lm adds no head to the model; leave it out",
        "train.best: needs held-out data; set data.eval",
    ] or pytest.fail("\n".join(lines))


def test_what_only_follows_from_another_problem_is_not_told(write: Write) -> None:
    text = "model: {path: x}\ndata: {train: d}\n"
    assert complaint(write(text + "train: {steps: ten, warmup: 3}\n")).splitlines() == [
        "recipe.yaml:3: train.steps: got 'ten'; must be a whole number"
    ]
    assert len(complaint(write(text + "train: {steps: 5}\nadapter: {type: adalroa, init_r: 2}\n")).splitlines()) == 1


# --- paths ------------------------------------------------------------------------------------------------------------


def test_paths_start_from_the_recipes_folder(write: Write, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    text = (
        "model: {path: folder}\ntrain: {steps: 1}\n"
        "data: {train: ../t, eval: new.JSONL, template: t.txt, cache: cache, train_split: ./s}"
    )
    recipe = load(write(text), [])
    assert recipe.model.path == str(tmp_path / "folder")
    assert recipe.data.train == str(tmp_path.parent / "t")
    assert recipe.data.eval == str(tmp_path / "new.JSONL")
    assert recipe.data.template == str(tmp_path / "t.txt")
    assert recipe.data.cache == str(tmp_path / "cache")
    assert recipe.data.train_split == "./s"


def test_paths_of_overrides_start_from_the_current_folder(write: Write, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    Path("there").mkdir()
    overrides = ["model.path=there", "data={train: ./x}", "data.eval=here"]
    recipe = load(write(SMALL), overrides)
    assert recipe.model.path == os.path.abspath("there")
    assert recipe.data.train == os.path.abspath("x")
    assert recipe.data.eval == "here"


def test_home_absolute_and_hub_ids(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    recipe = load(write("model: {path: org/name}\ndata: {train: ~/d, eval: /a/../b}\ntrain: {steps: 1}"), [])
    assert (recipe.model.path, recipe.data.train, recipe.data.eval) == ("org/name", "/home/ada/d", "/a/../b")


def test_relative_recipe_gives_absolute_paths(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(SMALL.replace("org/data", "./d"))
    monkeypatch.chdir(tmp_path)
    assert load(Path("recipe.yaml"), []).data.train == str(tmp_path / "d")


def test_resolved_is_read_as_it_is(write: Write, tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org/data").touch()
    recipe = small(name=None)
    assert load_resolved(write(dump(recipe), "config.yaml")) == recipe
    with pytest.raises(UserError, match=r"config\.yaml:1: train: missing"):
        load_resolved(write("model: {path: x}\ndata: {train: x}", "config.yaml"))


# --- writing ----------------------------------------------------------------------------------------------------------

TRICKY = [
    "\x85", "a\u2028b", "\ufeff",
    "off", "yes", "y", "null", "~", "", " ", "1e3", "2e-4", "1E-3", "0x1f", "0o17", "017", "1_000", "1:30", "=", "<<",
    "2024-01-02", ".inf", ".nan", "true", "a\nb", "a\n\n  b\n", " lead", "trail ", "\ttab", "é😀\u2028\x85\ufeff\x7f",
    "a: b", "# c", "- x", "? x", "'", '"', "!x", "&a", "*a", "%x", "@x", "`x", "[", "{", "---", "...", 
    "x" * 300 + " y" * 99, "x y" * 99,
]  # fmt: skip
texts = st.one_of(
    st.sampled_from(TRICKY),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
    st.text("ab \n\t:#-'\"\\1e.", max_size=30),
)
scalars = st.one_of(
    texts, st.booleans(), st.none(), st.integers(-(10**40), 10**40), st.floats(allow_nan=False, allow_infinity=False)
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
    init = {"architecture": draw(texts), "config": draw(st.dictionaries(texts, scalars, max_size=3))}
    targets = draw(st.one_of(texts, st.lists(texts, max_size=3)))
    return small(
        name="x",
        model=draw(st.sampled_from([{"path": "/" + draw(texts)}, {"init": init}])),
        data={"train": "/" + draw(texts), "train_split": draw(texts), "fields": draw(st.dictionaries(texts, texts))},
        adapter=draw(
            st.sampled_from([{"type": "none"}, {"type": "lora", "targets": targets, "alpha": draw(positive)}])
        ),
        train={"epochs": draw(positive), "lr": draw(positive), "seed": draw(st.integers())},
        track={"project": draw(texts), "entity": draw(st.none() | texts)},
    )


@FUZZ
@given(recipe=recipes())
def test_dump_reads_back_equal(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "dumped.yaml"
    path.write_bytes(dump(recipe).encode())
    for read in (load(path, []), load_resolved(path)):
        assert read == recipe
        assert not differences(read, recipe)


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_text_survives_both_versions_of_yaml(write: Write, text: str) -> None:
    recipe = small(name="x", track={"project": text})
    assert load(write(dump(recipe)), []).track.project == text
    assert yaml.safe_load(dump(recipe))["track"]["project"] == text  # YAML 1.1, as in other tools


def test_dump_has_every_key_in_order() -> None:
    recipe = small(adapter={"type": "lora"})
    assert json.dumps(yaml.safe_load(dump(recipe))) == json.dumps(recipe.model_dump())
    assert "&" not in dump(recipe)


# --- fuzz -------------------------------------------------------------------------------------------------------------


def recipe_or_error(path: Path, overrides: list[str]) -> None:
    recipe: Recipe | bytes
    try:
        recipe = load(path, overrides)
    except UserError as error:
        recipe = str(error).encode().strip()
    assert recipe
    assert isinstance(recipe, Recipe | bytes)


words = st.sampled_from(
    ["model", "data", "train", "adapter", "type", "lora", "none", "path", "steps", "lr", "init", "config", "name", "x",
     "r", "targets", "betas", "fields", ":", ": ", "\n", "\n  ", "\n    ", "- ", "{", "}", "[", "]", ",", "? ", "&a ",
     "*a", "!!int ", "!x ", "'", '"', "\\", "|", ">", "#", "1", "2e-4", ".inf", "null", "true", "\t", "---\n",
     "%YAML 1.2", "<<", "\\ud800", "\\x00", "\u2028", "!!python/name:os.system "]
)  # fmt: skip


@FUZZ
@given(text=st.one_of(st.text(max_size=80), st.lists(words, max_size=25).map("".join)), after=st.booleans())
@example(text="%YAML " + "1" * 5000 + ".1\n---\na: 1", after=False)
def test_any_text_is_a_recipe_or_an_error(tmp_path: Path, text: str, after: bool) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(((SMALL if after else "") + text).encode(errors="surrogatepass"))
    recipe_or_error(path, [])


@FUZZ
@given(content=st.binary(max_size=100))
def test_any_bytes_are_a_recipe_or_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(content)
    recipe_or_error(path, [])


trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | words, inner, max_size=3), max_leaves=8
)
keys = [
    f"{name}.{key}" for name, section in small().model_dump().items() if isinstance(section, dict) for key in section
]


@FUZZ
@given(key=st.sampled_from([*keys, "adapter", "task", "model.init", "model.init.config", "train", "name"]), value=trees)
def test_any_value_of_any_key_is_a_recipe_or_an_error(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_text(SMALL + "adapter: {type: lora}")
    recipe_or_error(path, [f"{key}={json.dumps(value)}"])


@FUZZ
@given(overrides=st.lists(st.text(max_size=30) | st.lists(words | st.just("="), max_size=8).map("".join), max_size=3))
def test_any_override_is_taken_or_an_error(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_text(SMALL)
    recipe_or_error(path, overrides)


# --- differences, schema, imports -------------------------------------------------------------------------------------


def test_differences_are_flat_ordered_and_complete() -> None:
    old = small(engine={"zero_stage": 1}, adapter={"type": "lora", "targets": ["q"]})
    new = small(
        engine={"zero_stage": 3, "dtype": "fp32"}, adapter={"type": "none"}, data={"train": "y", "fields": {"a": "b"}}
    )
    found = differences(old, new)
    assert found == [
        Difference("data.train", "org/data", "y"),
        Difference("adapter.type", "lora", "none"),
        Difference("adapter.alpha", 32.0, None),
        Difference("adapter.dropout", 0.0, None),
        Difference("adapter.targets", ["q"], None),
        Difference("adapter.routers", False, None),
        Difference("adapter.modules_to_save", [], None),
        Difference("adapter.seed", 0, None),
        Difference("adapter.r", 16, None),
        Difference("adapter.rslora", False, None),
        Difference("adapter.dora", False, None),
        Difference("engine.zero_stage", 1, 3),
        Difference("engine.dtype", "bf16", "fp32"),
        Difference("data.fields.a", None, "b"),
    ]
    assert differences(old, old) == []


@pytest.mark.parametrize(("old", "new"), [({"a": 1}, {"a": True}), ({"a": 1}, {"a": 1.0}), ({}, {"a": None})])
def test_differences_see_types_and_nulls_of_a_models_configuration(old: dict[str, Any], new: dict[str, Any]) -> None:
    one, two = (small(model={"init": {"config": config}}) for config in (old, new))
    assert [item.key for item in differences(one, two)] == ["model.init.config.a"]


def test_every_key_has_a_rule() -> None:
    every = {"model.path", "model.init.seed", "adapter.r", "model.init.config.a", *keys}
    rules = {key: Difference(key, 1, 2).rule for key in every}
    assert {key for key, rule in rules.items() if rule == "harmless"} == HARMLESS & every
    assert {key for key, rule in rules.items() if rule == "to be allowed"} == ALLOWABLE & every
    assert not HARMLESS & ALLOWABLE
    refused = {key for key, rule in rules.items() if rule == "refused"}
    assert {"model.path", "model.init.seed", "adapter.r", "train.global_batch"} <= refused
    assert not any(key.startswith(("engine.", "checkpoint.", "track.")) for key in refused)
    assert {"train.best", "train.patience"} <= HARMLESS
    assert "task.type" in refused
    assert {"engine.zero_stage", "name", "data.eval"} <= HARMLESS
    assert {"engine.dtype", "train.lr", "train.steps", "data.train", "data.fields"} <= ALLOWABLE


@pytest.mark.parametrize(
    ("key", "old", "new", "rule"),
    [
        ("versions.torch", "2.13.0", "2.13.1", "harmless"),
        ("versions.torch", "2.13.0", "2.14.0", "to be allowed"),
        ("versions.peft", None, "0.15.0", "to be allowed"),
        ("data.fields.prompt", "a", "b", "to be allowed"),
        ("data.content", "a", "b", "to be allowed"),
        ("model.content", "a", "b", "refused"),
    ],
)
def test_what_no_recipe_tells_has_a_rule_too(key: str, old: str | None, new: str, rule: str) -> None:
    assert Difference(key, old, new).rule == rule


def test_differences_are_shown_sorted_and_named() -> None:
    found = [
        Difference("train.lr", 0.1, 0.2),
        Difference("data.fields.prompt", None, "q"),
        Difference("engine.zero_stage", 2, 3),
    ]
    agree(found, frozenset({"train.lr", "data.fields"}), "x")
    with pytest.raises(UserError) as caught:
        agree(found, frozenset({"train.lr"}), "x")
    assert str(caught.value).splitlines() == [
        "x; add --allow data.fields, or use the same values:",
        "  needs --allow: data.fields.prompt: None before, 'q' now",
        "  harmless or allowed: train.lr: 0.1 before, 0.2 now",
        "  harmless or allowed: engine.zero_stage: 2 before, 3 now",
    ]
    with pytest.raises(UserError, match=r"use another --run-dir, or the same values:\n  refused: adapter.r: 8 before"):
        agree([*found, Difference("adapter.r", 8, 4)], ALLOWABLE, "x")
    with pytest.raises(UserError, match=r"^--allow train.x: unknown; the possible values are .*train.lr"):
        check_allowed(["train.lr", "train.x"])


def objects(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if "properties" in tree:
            yield tree
        for inner in tree.values():
            yield from objects(inner)
    elif isinstance(tree, list):
        for inner in tree:
            yield from objects(inner)


def test_schema_is_closed_titled_and_described() -> None:
    described = json.loads(json.dumps(json_schema()))
    assert described["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (described["title"], described["description"]) == ("distft recipe", "One run.")
    assert set(described["properties"]) == set(Recipe.model_fields)
    found = list(objects(described))
    bases = {Layers, TaskSection, Generation}
    sections = {*Section.__subclasses__(), *(one for base in bases for one in base.__subclasses__())} - bases
    sections = {
        section
        for section in sections
        if section.__module__ in {one.__module__ for one in (Recipe, Generation, Layers, DataSource, Checkpoint)}
    }
    assert len(found) == len(sections)
    assert all(item["additionalProperties"] is False for item in found)
    assert described["$defs"]["Data"]["properties"]["seed"]["description"] == "seed of the order of rows"


def test_import_is_light() -> None:
    code = "import distft.recipe.load, sys; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert done.stdout.strip() == "set()"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
