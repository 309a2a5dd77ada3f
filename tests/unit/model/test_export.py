"""What an exported model knows of where to stop."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import GenerationConfig

from distft.data.templates import Template
from distft.model.export import end_turns
from tests.unit.data.chat_templates import BYTES, CHATML, TRANSCRIPT

# A message with calls ends in another way. Like GPT-OSS.
CALLS = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
{%- for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments | tojson }}{% endfor %}
{{- '<|eot_id|>' if m.tool_calls else '<|im_end|>' }}{% endfor %}"""


def ids(*tokens: str) -> list[int]:
    return sorted(BYTES.convert_tokens_to_ids(list(tokens)))


@pytest.mark.parametrize(
    ("text", "known", "wanted"),
    [
        (CHATML, None, ids("</s>", "<|im_end|>")),
        (CHATML, ids("<|head|>", "</s>"), ids("</s>", "<|im_end|>", "<|head|>")),
        (CALLS, ids("</s>")[0], ids("</s>", "<|im_end|>", "<|eot_id|>")),
        (TRANSCRIPT, ids("</s>")[0], ids("</s>")[0]),  # no token ends a turn: left as it is
    ],
)
def test_a_model_stops_where_answers_and_calls_end(text: str, known: object, wanted: object, tmp_path: Path) -> None:
    model = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=known))
    model.generation_config.save_pretrained(tmp_path)
    end_turns(tmp_path, model, Template(BYTES, text))
    assert json.loads((tmp_path / "generation_config.json").read_text()).get("eos_token_id") == wanted


def test_an_exported_adapter_gets_no_generation_config(tmp_path: Path) -> None:
    end_turns(tmp_path, SimpleNamespace(generation_config=GenerationConfig()), Template(BYTES, CHATML))
    assert not list(tmp_path.iterdir())
