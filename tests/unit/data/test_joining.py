"""Joined texts are what Jinja renders, and only of templates that never look at what messages say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.data.messages import Message
from distft.data.oblivious import Oblivious, read
from distft.data.rendering import Renderer
from distft.errors import UserError
from tests.unit.data import test_conversations as conversations
from tests.unit.data.chat_templates import BYTES, CHATML, GENERATION, LLAMA3, MISTRAL, REASONING, TEMPLATES, TRANSCRIPT

# The system's words in front of the user's; a note where the assistant says nothing. Like Gemma and Qwen2.5.
PICKY = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] | trim + '\\n\\n' %}
{%- set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{%- set ns = namespace(last='') %}
{%- for m in rest %}{% set role = 'model' if m.role == 'assistant' else m.role %}
{%- if loop.previtem is defined and loop.previtem.role == m.role %}{{ raise_exception('twice: ' + m.role) }}{% endif %}
{%- if m.content is string and 'content' in m %}{{- '<s>' + role ~ '\\n' ~ (first if loop.first else '') }}
{%- if m.content %}{{ m.content.strip() }}{% else %}{{ '(nothing)' }}{% endif %}{{ '</s>\\n' }}{% endif %}
{%- set ns.last = m['content'] %}{% endfor %}
{%- if add_generation_prompt %}{{ '<s>model\\n' }}{% elif not ns.last %}{{ '!' }}{% endif %}"""

# Reasoning of earlier turns is not shown; branches for tools, which look at contents. Like Qwen3 and Llama 3.1.
THINKING = """\
{% set ns = namespace(last=messages | length - 1, searching=true) %}
{%- for m in messages[::-1] %}{% set index = (messages | length - 1) - loop.index0 %}
{%- if ns.searching and m.role == 'user' and not (m.content.startswith('<r>') and m.content.endswith('</r>')) %}
{%- set ns.searching = false %}{% set ns.last = index %}{% endif %}{% endfor %}
{%- for m in messages %}{% if m.content is string %}{% set content = m.content %}{% else %}
{%- set content = m.content | tojson %}{% endif %}
{%- if m.role == 'tool' or m.role == 'ipython' %}{{ m.content | tojson }}{% elif m.tool_calls %}
{%- for c in m.tool_calls %}{{ c.name ~ content | upper }}{% endfor %}{% elif 'tool_calls' in m %}{{ m | tojson }}
{%- elif m.role == 'assistant' %}{% set thought = '' %}{% if m.reasoning is string %}{% set thought = m.reasoning %}
{%- elif '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
{%- endif %}{{ content.lstrip('\n') + '<|im_end|>\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

JOINED = {
    **{name: text for name, text in TEMPLATES.items() if name != "generation"},
    "transcript": TRANSCRIPT,
    "picky": PICKY,
    "thinking": THINKING,
    "reasoning": REASONING,
    "calls": conversations.CALLS,
    "system last": conversations.SYSTEM_LAST,
    "thinks": conversations.THINKS,
    "more": conversations.MORE,
}
LOOKING = {
    "a length": "{% for m in messages %}{{ m.content | length }}{% endfor %}",
    "a word made up": "{% for m in messages %}{{ 'x' if m.role in m.content else m.content }}{% endfor %}",
    "a word in more": "{% for m in messages %}{{ 'x' if 'a' in m.content + 'b' else 'c' }}{% endfor %}",
    "no word": "{% for m in messages %}{{ 'x' if '' in m.content else m.content }}{% endfor %}",
    "letters at its ends": "{% for m in messages %}{{ m.content.strip('ab') }}{% endfor %}",
    "a comparison": "{% for m in messages %}{% if m['content'] == 'a' %}b{% endif %}{% endfor %}",
    "a part": "{% for m in messages %}{{ m.content[:3] }}{% endfor %}",
    "a method": "{% for m in messages if m.content.isupper() %}{{ m.content }}{% endfor %}",
    "all pieces": "{% for m in messages %}{{ m.content.split('a') }}{% endfor %}",
    "pieces at blanks": "{% for m in messages %}{{ m.content.split()[0] }}{% endfor %}",
    "a part if there are tools or not": "{% for m in messages %}{% if m.role == 'user' %}{{ m.content[:3] }}{% endif %}"
    "{% endfor %}",
    "a part if something is no text": "{% for m in messages %}{% if m.role == 'user' %}{% set c = m.content %}"
    "{% endif %}{% if c is string %}{% else %}{{ m.content[:3] }}{% endif %}{% endfor %}",
    "a part of what may be plain": "{% set c = 'a' %}{% for m in messages %}{% if 'a' in c %}{{ m.content[:3] }}"
    "{% endif %}{% set c = m.content %}{% endfor %}",
    "a part beside plain neighbours": "{% for x in [{'role': 'tool'}, {'role': 'x'}] %}"
    "{% if loop.previtem and loop.previtem.role == 'tool' %}{{ messages[0].content[:3] }}{% endif %}{% endfor %}",
    "another filter": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "trimmed with more": "{% for m in messages %}{{ (' ' + m.content) | trim }}{% endfor %}",
    "the truth of more": "{% for m in messages %}{{ 'a' if m.content + 'x' else 'b' }}{% endfor %}",
    "all messages": "{{ messages | tojson }}",
    "a message": "{% for m in messages %}{{ m }}{% endfor %}",
    "a key made up": "{% for m in messages %}{{ m['con' ~ 'tent'] | upper }}{% endfor %}",
    "get": "{% for m in messages %}{{ m.get('content') | upper }}{% endfor %}",
    "items": "{% for k, v in messages[0].items() %}{{ v | length }}{% endfor %}",
    "another name": "{% set x = '' %}{% for m in messages %}{{ x | length }}{% set x = m.content %}{% endfor %}",
    "a loop's name": "{% for m in messages %}{% set l = loop %}{{ l.previtem.content | length }}{% endfor %}",
    "a neighbour": "{% for m in messages %}{{ loop.nextitem.content | length }}{% endfor %}",
    "a namespace": "{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = m.content %}{{ n.x | length }}"
    "{% endfor %}",
    "a namespace's other name": "{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = m.content %}"
    "{% endfor %}{% set o = n %}{{ o.x | length }}",
    "a list": "{% for m in messages %}{{ [m.content] | first | length }}{% endfor %}",
    "a dict": "{{ dict(a=messages[0].content).a | length }}",
    "a macro": "{% macro f(x) %}{{ x | length }}{% endmacro %}{{ f(messages[0].content) }}",
    "a block": "{% set x %}{{ messages[0].content }}{% endset %}{{ x | length }}",
    "with": "{% with x = messages[0].content %}{{ x | length }}{% endwith %}",
    "a format": "{{ '%s' | format(messages[0].content) | length }}",
    "a test": "{% for m in messages %}{{ m.content is eq 'a' }}{% endfor %}",
    "columns": "{{ messages | map(attribute='content') | join('') | length }}",
    "no template": "{% for m in messages %}",
    "marked turns": GENERATION,
}


@pytest.mark.parametrize("name", LOOKING)
def test_a_template_that_looks_at_what_messages_say_is_left_to_jinja(name: str) -> None:
    assert read(LOOKING[name]) is None


texts = st.lists(
    st.sampled_from(
        ["a", "Word", " ", "\n", "é🙂", "<s>", "</s>", "<|im_end|>\n", "[/INST]", "{{ x }}", "\u2005", "\\"]
    ),
    max_size=5,
).map("".join)
roles = st.sampled_from(["user", "user", "assistant", "assistant", "system", "tool"])
chats = st.lists(st.builds(lambda role, content: {"role": role, "content": content}, roles, texts), max_size=6)


def outcome(render: Callable[..., str], messages: list[Message], prompt: bool) -> str:
    try:
        return render(messages, None, prompt)
    except UserError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("name", JOINED)
def test_joined_is_as_rendered(name: str) -> None:
    renderer = Renderer(BYTES, JOINED[name])

    @given(chats, st.booleans())
    @settings(max_examples=150, deadline=None)
    def check(messages: list[Message], prompt: bool) -> None:
        assert outcome(renderer.apply, messages, prompt) == outcome(renderer._shown, messages, prompt)

    assert read(JOINED[name]) is not None
    check()


def test_what_messages_must_not_hold() -> None:
    assert read(CHATML) == Oblivious(frozenset(), False)
    assert read(THINKING) == Oblivious(frozenset({"</think>", "<r>", "</r>"}), True)


def test_a_shape_is_rendered_once_and_compared_once_and_what_else_a_message_holds_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered: list[Any] = []
    shown = Renderer._shown
    monkeypatch.setattr(Renderer, "_shown", lambda *given: rendered.append(given) or shown(*given))  # type: ignore[func-returns-value]
    for template, named, calls in ((CHATML, {}, 4), (LLAMA3, {}, 4), (MISTRAL, {"name": "x"}, 9), (GENERATION, {}, 9)):
        renderer = Renderer(BYTES, template)
        for i in range(9):
            messages = [{"role": "user", "content": f"q{i}", **named}, {"role": "assistant", "content": "a" * i}]
            assert f"q{i}" in renderer.apply(messages, None, False)
        assert len(rendered) == calls
        rendered.clear()


def test_a_template_that_is_misread_is_left_to_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distft.data.joining.read", lambda template: Oblivious(frozenset(), False))
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('a', 'b') }}{% endfor %}"
    renderer = Renderer(BYTES, template)
    for content in ("x", "a", "banana"):
        messages = [{"role": "user", "content": content}]
        assert renderer.apply(messages, None, False) == f"<user>{content.replace('a', 'b')}"
        assert renderer.joining.joins(messages) is (content == "x")  # the first of its shape showed nothing
        renderer.joining._seen.clear()
