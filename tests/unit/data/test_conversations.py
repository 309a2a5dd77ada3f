"""What is learned of conversations: templates of our own writing with the structures that model families ship."""

from __future__ import annotations

import datetime
from itertools import groupby
from typing import Any

import pytest

from distft.data.endings import MARK, OTHER
from distft.data.formats import Conversation
from distft.data.records import Record
from distft.data.rendering import Renderer, on_day
from distft.data.shown import DIFFERS, ENDLESS, SILENT, UNSEEN_REASONING, UNSEEN_TOOLS
from distft.data.templates import REJECTED, Marked, Template
from distft.errors import UserError
from tests.unit.data.chat_templates import BYTES, CHATML, GENERATION, MISTRAL, TOKENIZERS, TRANSCRIPT, byte_level

# Calls behind the content, answers of tools as a user's; reasoning only in the last turn. Like Qwen3.
CALLS = """\
{% for t in tools or [] %}{{ '<|im_start|>system\\n' + t.function.name + '<|im_end|>\\n' }}{% endfor %}
{%- for m in messages %}{% if m.role == 'tool' %}
{%- if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<result>' + m.content + '</result>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}
{%- set parts = (m.content or '').split('</think>') %}
{%- if loop.last %}{{ (parts[0] if parts | length > 1 else '<think>') + '</think>' }}{% endif %}
{{- parts[-1] }}
{%- for c in m.tool_calls or [] %}
{{- '\\n<call>' + ({'name': c.function.name, 'arguments': c.function.arguments} | tojson) + '</call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Calls in place of the content, results as JSON. Like Llama 3.1.
INSTEAD = """\
{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}
{{- '<|head|>assistant<|/head|>' + ({'name': m.tool_calls[0].function.name,
'parameters': m.tool_calls[0].function.arguments} | tojson) + '<|eot_id|>' }}
{%- elif m.role == 'tool' %}{{ '<|head|>ipython<|/head|>' + (m.content | tojson) + '<|eot_id|>' }}
{%- else %}{{ '<|head|>' + m.role + '<|/head|>' + m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>' }}{% endif %}"""

# No end of a turn at all: the next role's token ends it. Like GLM-4.
OPEN = """\
{% for m in messages %}
{%- if m.role == 'assistant' %}{{ '<|im_start|>\\n' + (m.content or '') }}
{%- for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + '</call>' }}{% endfor %}
{%- elif m.role == 'tool' %}{{ '[INST]\\n' + m.content }}
{%- else %}{{ '<|head|>\\n' + m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>\\n' }}{% endif %}"""

# The last turn ends in another way than others. Like Phi-3 (more behind it) and GPT-OSS (another token).
MORE = CHATML.replace("{% endfor %}", "{% endfor %}{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", 1)
OTHER_END = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}
{{- '<|eot_id|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# ... behind calls too; and with the beginning of an answer behind them. Like Phi-4 mini and Command R7B.
MORE_BEHIND_CALLS = CALLS.replace(
    "{%- if add_generation_prompt",
    "{%- if not add_generation_prompt %}{{ eos_token }}{% endif %}{% if add_generation_prompt",
)
ANSWER_BEHIND_CALLS = CALLS.replace(
    "{%- if add_generation_prompt", "{%- if add_generation_prompt or messages[-1].tool_calls"
)

# Calls are answered within the turn. Like Apertus.
WITHIN = OPEN.replace("'</call>'", "'</s>'").replace("'[INST]\\n' + m.content", "'[' + m.content + ']'")

# <think> only in what is to be answered. Like DeepSeek-R1.
THINKS = CHATML.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}")

# What the system says is in the last user's turn. Like Mistral v3.
SYSTEM_LAST = """\
{{ bos_token }}{% set first = messages[0].content if messages[0].role == 'system' else '' %}
{%- for m in messages %}{% if m.role == 'user' %}
{{- '[INST] ' + (first + '\\n' if loop.last or loop.nextitem.role == 'assistant' and loop.revindex == 2 else '') }}
{{- m.content + '[/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""

# ... and in front of what the last user says, however many turns there are. Like Mistral Nemo.
SYSTEM_BEFORE_LAST = """\
{{ bos_token }}{% set last = (messages | selectattr('role', 'eq', 'user') | list)[-1] %}
{%- for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}
{%- if m is sameas last and messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}
{{- m.content + '[/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""

# A result is closed in another way if an answer follows. Like Hermes 2 Pro.
CLOSES = CALLS.replace("'</result>' }}", "'</result>' + ('' if loop.last else '\n') }}")

# Rejects messages among which none is a user's; leaves out empty lines. Like Qwen3.5, and like Falcon.
WANTS_USER = "{% if 'user' not in messages|map(attribute='role') %}{{ raise_exception('none') }}{% endif %}" + CHATML
NO_EMPTY_LINES = CHATML.replace("m['content']", "m['content'].replace('\n\n', '\n')")

# Only parts, as models that see pictures have it; arguments as texts; null written out.
PARTS = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% for p in m.content or [] %}
{%- if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
TEXT_ARGUMENTS = CALLS.replace(
    "({'name': c.function.name, 'arguments': c.function.arguments} | tojson)",
    "c.function.name + ' ' + c.function.arguments",
)
PYTHON_ARGUMENTS = CALLS.replace(
    "({'name': c.function.name, 'arguments': c.function.arguments} | tojson)",
    "c.function.name ~ ' ' ~ c.function.arguments",
)
NONE = CALLS.replace("(m.content or '').split", "(m.content | string).split")
NO_CALLS = CHATML.replace("m['content']", "(m['content'] or '')")
WANTS_TOOLS = "{% for t in tools %}{% endfor %}" + CHATML

CALL = {"type": "function", "function": {"name": "get_w", "arguments": {"city": "Rome"}}}
SHOWN = '\n<call>{"name": "get_w", "arguments": {"city": "Rome"}}</call>'
WEATHER = {"type": "function", "function": {"name": "get_w", "description": "d", "parameters": {}}}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content}


def encode(template: str, tokenizer: Any = BYTES, /, **fields: Any) -> Marked:
    return Template(tokenizer, template).encode(Record("a.jsonl:1", fields), {})


def learned(marked: Marked) -> list[str]:
    runs = groupby(zip(marked.targets, marked.tokens, strict=True), key=lambda pair: bool(pair[0]))
    return [BYTES.decode([int(token) for _, token in run]) for target, run in runs if target]


def test_calls_are_learned_with_what_is_said_and_the_end() -> None:
    messages = [user("Weather in Rome?"), assistant("Let me look.", tool_calls=[CALL]), tool("22C"), assistant("22C.")]
    assert learned(encode(CALLS, messages=messages)) == [
        f"Let me look.{SHOWN}<|im_end|>",
        "<think></think>22C.<|im_end|>",
    ]
    messages[1] = assistant(None, tool_calls=[CALL, CALL])  # in parallel, and nothing said
    messages[2:3] = [tool("22C"), tool("23C")]
    assert learned(encode(CALLS, messages=messages))[0] == f"{SHOWN}{SHOWN}<|im_end|>"
    for trimmed in ("bytes", "trimmed"):
        marked = encode(CALLS, TOKENIZERS[trimmed], messages=messages[:2])
        assert learned(marked) == [f"<think></think>{SHOWN}{SHOWN}<|im_end|>"]


@pytest.mark.parametrize(
    "call",
    [
        {"name": "get_w", "arguments": '{"city": "Rome"}'},
        {"function": {"name": "get_w", "arguments": '{"city": "Rome"}'}},
        {"id": "c1", "type": "function", "function": {"name": "get_w", "arguments": {"city": "Rome", "unit": None}}},
    ],
    ids=["flat", "a text", "columnar"],
)
def test_calls_in_the_forms_that_people_have(call: dict[str, Any]) -> None:
    want = [f"{SHOWN}<|im_end|>", "<think></think>ok<|im_end|>"]
    messages = [user("?"), assistant(None, tool_calls=[call]), tool("22C"), assistant("ok")]
    assert learned(encode(CALLS, messages=messages)) == want
    said_as_role = [
        {"from": "human", "value": "?"},
        {"from": "function_call", "value": '{"name": "get_w", "arguments": {"city": "Rome"}}'},
        {"from": "observation", "value": "22C"},
        {"from": "gpt", "value": "ok"},
    ]
    assert learned(encode(CALLS, conversations=said_as_role)) == want
    legacy = {"name": "get_w", "arguments": '{"city": "Rome"}'}
    messages = [user("?"), assistant(None, function_call=legacy), {"role": "function", "content": "22C"}]
    assert learned(encode(CALLS, messages=[*messages, assistant("ok")])) == want


def test_a_call_that_follows_what_was_said_is_one_turn_with_it() -> None:
    turns = [
        {"from": "human", "value": "?"},
        {"from": "gpt", "value": "Let me look."},
        {"from": "function_call", "value": '{"name": "get_w", "arguments": {"city": "Rome"}}'},
        {"from": "observation", "value": "22C"},
    ]
    assert learned(encode(CALLS, conversations=turns)) == [f"Let me look.{SHOWN}<|im_end|>"]


def test_a_template_that_shows_calls_in_place_of_content() -> None:
    messages = [user("?"), assistant("", tool_calls=[CALL]), tool('{"t": "22 \\"C\\""}'), assistant("22C.")]
    shown = '{"name": "get_w", "parameters": {"city": "Rome"}}<|eot_id|>'
    assert learned(encode(INSTEAD, messages=messages)) == [shown, "22C.<|eot_id|>"]
    messages[2] = tool("C:\\")  # as JSON it begins as it is
    assert learned(encode(INSTEAD, messages=messages)) == [shown, "22C.<|eot_id|>"]
    messages[1] = assistant("Let me look.", tool_calls=[CALL])
    with pytest.raises(UserError, match="does not show what message 1 says, 'Let me look"):
        encode(INSTEAD, messages=messages)
    messages[1] = assistant("", tool_calls=[CALL, CALL])
    with pytest.raises(UserError, match="does not show the call of 'get_w' in message 1"):
        encode(INSTEAD, messages=messages)


def test_calls_that_a_template_does_not_show_are_refused() -> None:
    for content in ("Let me look.", "I call get_w.", "<think>get_w, I think.</think>Let me look.", None, ""):
        for last in ([tool("22C")], []):
            with pytest.raises(UserError, match=r"a\.jsonl:1: the chat template does not show the call of 'get_w'"):
                encode(NO_CALLS, messages=[user("?"), assistant(content, tool_calls=[CALL]), *last])
    said = assistant("<think>get_w, I think.</think>I call get_w.", tool_calls=[CALL])
    assert learned(encode(CALLS, messages=[user("?"), said, tool("22C")])) == [f"I call get_w.{SHOWN}<|im_end|>"]
    assert learned(encode(CALLS, messages=[user("?"), said])) == [
        f"<think>get_w, I think.</think>I call get_w.{SHOWN}<|im_end|>"
    ]


@pytest.mark.parametrize("text", [TEXT_ARGUMENTS, PYTHON_ARGUMENTS])
def test_arguments_are_text_where_the_template_wants_text(text: str) -> None:
    messages = [user("?"), assistant(None, tool_calls=[CALL]), tool("22C")]
    assert learned(encode(text, messages=messages)) == ['\n<call>get_w {"city": "Rome"}</call><|im_end|>']


def test_null_is_null_where_the_template_asks_and_never_a_word() -> None:
    messages = [user("?"), assistant(None, tool_calls=[CALL]), tool("22C")]
    assert learned(encode(NONE, messages=messages)) == [f"{SHOWN}<|im_end|>"]
    asks = CALLS.replace("{{- parts[-1] }}", "{{- 'nothing' if m.content is none else parts[-1] }}")
    assert learned(encode(asks, messages=messages)) == [f"nothing{SHOWN}<|im_end|>"]


def test_content_in_parts_and_a_template_that_wants_them() -> None:
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    for text in (CHATML, PARTS):
        marked = encode(text, messages=[user(parts), assistant(parts), user("?"), assistant("bye")])
        assert learned(marked) == ["hello<|im_end|>", "bye<|im_end|>"]
        assert "user\nhello<|im_end|>" in BYTES.decode(marked.tokens)
    named = [{"type": "text", "text": None, "value": "hello"}]  # null in columnar files, where other parts have it
    assert learned(encode(CHATML, messages=[user(named), assistant(named)])) == ["hello<|im_end|>"]


def test_a_silent_turn_is_left_out_and_counted() -> None:
    for nothing in ("", " \n"):
        marked = encode(CHATML, messages=[user("?"), assistant(nothing), user("?"), assistant("yes")])
        assert learned(marked) == ["yes<|im_end|>"]
        assert marked.notes == {SILENT: 1}
    with pytest.raises(UserError, match=r"messages\[1\]: content must be a string, not null"):
        encode(CHATML, messages=[user("?"), assistant(None)])


def test_every_turn_learns_to_stop() -> None:
    chat = [user("a"), assistant("b"), user("c"), assistant("d")]
    assert learned(encode(MORE, messages=chat)) == ["b<|im_end|>", "d<|im_end|>"]
    assert learned(encode(OTHER_END, messages=chat)) == ["b<|im_end|>", "d<|eot_id|>"]
    assert learned(encode(OPEN, messages=chat)) == ["b<|head|>", "d<|head|>"]
    assert learned(encode(OPEN, messages=chat[:2])) == ["b<|head|>"]
    calls = [user("a"), assistant("", tool_calls=[CALL]), tool("22C"), assistant("d")]
    assert learned(encode(OPEN, messages=calls)) == ["<call>get_w</call>[INST]", "d<|head|>"]
    assert learned(encode(OPEN, messages=calls[:2])) == ["<call>get_w</call>[INST]"]
    shown = f"<think></think>{SHOWN}<|im_end|>"
    assert learned(encode(MORE_BEHIND_CALLS, messages=calls[:2])) == [shown]
    assert learned(encode(ANSWER_BEHIND_CALLS, messages=calls[:2])) == [shown]
    ends = {MORE: "<|im_end|>", OTHER_END: "<|eot_id|>", OPEN: "<|head|>", MISTRAL: "</s>", TRANSCRIPT: ""}
    assert {text: Template(BYTES, text).end_of_turn for text in ends} == ends
    assert encode(TRANSCRIPT, messages=chat).notes == {ENDLESS: 1}


def test_predictions_stop_at_the_end_of_an_answer_and_at_that_of_a_call() -> None:
    call_end = CALLS.replace(
        "{{ '<|im_end|>\\n' }}\n{%- else", "{{ '[/INST]' if m.tool_calls else '<|im_end|>' }}\n{%- else"
    )
    ends = {
        CHATML: ("<|im_end|>",),
        CALLS: ("<|im_end|>",),
        call_end: ("<|im_end|>", "[/INST]"),  # like <|call|> of GPT-OSS
        OPEN: ("<|head|>", "[INST]"),  # like GLM-4
        WITHIN: ("<|head|>", "</s>"),
        CALLS.replace("'</call>'", "c.id + '</call>'"): ("<|im_end|>",),  # more in a call than its name and arguments
        CHATML.replace("'<|im_end|>'", "'</s><|eot_id|>'"): ("<|eot_id|>",),
        TRANSCRIPT: (),
    }
    assert call_end != CALLS
    assert {text: Template(BYTES, text).ends for text in ends} == ends
    messages = [user("a"), assistant("", tool_calls=[CALL]), tool("22C"), assistant("d")]
    for text in (call_end, OPEN, WITHIN):
        call, answer = learned(encode(text, messages=messages))
        assert (answer.endswith(ends[text][0]), call.endswith(ends[text][1])) == (True, True)
    plain = CHATML.replace("<|im_start|>", "[[").replace("<|im_end|>", "]]")
    assert Template(BYTES, plain).ends == ("]]",)


def test_another_prompt_than_that_of_predictions_is_said_with_both() -> None:
    chat = [user("a"), assistant("b"), user("c"), assistant("d")]
    marked = encode(THINKS, messages=chat)
    assert learned(marked) == ["b<|im_end|>", "d<|im_end|>"]
    assert marked.notes == {DIFFERS: 1}
    assert marked.warnings[DIFFERS] == (
        "a.jsonl:1: message 1: the chat template gives predictions "
        r"'>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n' to answer, where training has "
        r"'>user\na<|im_end|>\n<|im_start|>assistant\n'"
    )
    said = [{"role": "system", "content": "s"}]
    marked = encode(SYSTEM_LAST, messages=[*said, *chat])
    assert learned(marked) == [" b</s>", " d</s>"]
    assert "[INST] s" in marked.warnings[DIFFERS]
    assert encode(SYSTEM_LAST, messages=[*said, *chat[:2]]).notes == {}  # a single turn is the last one
    for text in (CHATML, CALLS, MORE, OPEN, GENERATION):
        assert DIFFERS not in encode(text, messages=chat).notes


def test_what_stands_before_the_last_message_only_does_not_hide_turns() -> None:
    chat = [user("a"), assistant("b"), user("c"), assistant("d"), user("e"), assistant("f")]
    marked = encode(SYSTEM_BEFORE_LAST, messages=[{"role": "system", "content": "s"}, *chat])
    assert learned(marked) == [" b</s>", " d</s>", " f</s>"]
    assert BYTES.decode(marked.tokens) == "<s>[INST] a[/INST] b</s>[INST] c[/INST] d</s>[INST] s\ne[/INST] f</s>"
    assert marked.notes == {DIFFERS: 1}


def test_a_prompt_that_differs_in_the_middle_only_is_said_too() -> None:
    messages = [user("a"), assistant(None, tool_calls=[CALL]), tool("22C"), assistant("b"), user("c"), assistant("d")]
    assert encode(CALLS, messages=messages).notes == {}
    assert "message 3: " in encode(CLOSES, messages=messages).warnings[DIFFERS]


def test_a_conversation_that_the_assistant_begins() -> None:
    messages = [assistant("hello"), user("a"), assistant("b"), user("c"), assistant("d")]
    for text in (CHATML, WANTS_USER):
        for first in ([], [{"role": "system", "content": "s"}]):
            marked = encode(text, messages=[*first, *messages])
            assert learned(marked) == ["hello<|im_end|>", "b<|im_end|>", "d<|im_end|>"]
            assert marked.notes == {}


def test_a_name_within_another_word_is_no_call() -> None:
    both = [CALL | {"function": {"name": name, "arguments": {}}} for name in ("get_w_now", "get_w")]
    with pytest.raises(UserError, match="does not show the call of 'get_w' in message 1"):
        encode(INSTEAD, messages=[user("?"), assistant(None, tool_calls=both)])
    with pytest.raises(UserError, match="does not show the call of 'get_w' in message 1"):  # nor what the tool says
        encode(NO_CALLS, messages=[user("?"), assistant(None, tool_calls=[CALL]), tool("22C"), assistant("b")])


def test_empty_lines_that_a_template_leaves_out_hide_nothing() -> None:
    messages = [user("a\n\nb"), assistant("c\n\nd"), user("e"), assistant("f")]
    assert learned(encode(NO_EMPTY_LINES, messages=messages)) == ["c\nd<|im_end|>", "f<|im_end|>"]


@pytest.mark.parametrize("word", [MARK, OTHER])
def test_words_that_mark_places_are_refused(word: str) -> None:
    for messages in ([user(word), assistant("b")], [user("a"), assistant(word), user("c"), assistant("d")]):
        with pytest.raises(UserError, match=r"a\.jsonl:1: the text contains 'distft-marks-"):
            encode(CHATML, messages=messages)


# --- columns beside the conversation ----------------------------------------------------------------------------------

SAID = {
    "messages": [user("q"), assistant("a")],
    "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
}


@pytest.mark.parametrize(
    "fields",
    [{"messages": SAID["messages"]}, {"conversations": SAID["conversations"]}, {"prompt": "q", "completion": "a"}],
    ids=["messages", "conversations", "completion"],
)
def test_system_and_tools_in_columns_of_their_own(fields: dict[str, Any]) -> None:
    marked = encode(CALLS, **fields, system="be brief", tools=[WEATHER])
    text = BYTES.decode(marked.tokens)
    assert text.startswith("<|im_start|>system\nget_w<|im_end|>\n<|im_start|>system\nbe brief<|im_end|>\n")
    assert learned(marked) == ["<think></think>a<|im_end|>"]
    as_text = encode(CALLS, **fields, system="be brief", tools='[{"name": "get_w", "parameters": {}}]')
    assert as_text.tokens.tolist() == marked.tokens.tolist()
    for nothing in ({"system": "", "tools": []}, {"system": None, "tools": "[]"}, {"tools": ""}):
        assert encode(CALLS, **fields, **nothing).tokens.tolist() == encode(CALLS, **fields).tokens.tolist()


def test_columns_that_are_not_used_are_named() -> None:
    marked = encode(CHATML, messages=SAID["messages"], id=3, source="x", empty=None)
    assert marked.notes == {"with columns that nothing uses (id, source)": 1}
    assert encode(CHATML, text="a", id=3, system="s").notes == {"with columns that nothing uses (id, system)": 1}
    record = Record("a:1", {"Q": "q", "A": "a", "prompt": "not this"})
    assert Template(BYTES, CHATML).encode(record, {"prompt": "Q", "completion": "A"}).notes == {
        "with columns that nothing uses (prompt)": 1
    }


def test_what_the_template_does_not_show_is_counted() -> None:
    assert encode(CHATML, messages=SAID["messages"], tools=[WEATHER]).notes == {UNSEEN_TOOLS: 1}
    thinking = [user("q"), assistant("a", reasoning_content="hm")]
    assert encode(CHATML, messages=thinking).notes == {UNSEEN_REASONING: 1}


def test_messages_that_are_not_to_be_learned() -> None:
    for flag in ({"weight": 0}, {"loss_weight": 0.0}, {"train": False}, {"loss": False}, {"training": 0}):
        for text in (CHATML, GENERATION):
            marked = encode(text, messages=[user("q"), assistant("no", **flag), user("q"), assistant("yes")])
            assert learned(marked) == ["yes<|im_end|>"]
    kept = encode(CHATML, messages=[user("q", train=False), assistant("yes", weight=1, train=True)])
    assert learned(kept) == ["yes<|im_end|>"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([user("q"), assistant("a", weight=0.5)], "messages[1]: weight must be 0 or 1"),
        ([user("q", train=True), assistant("a")], "messages[0]: train says to learn what the user says"),
        ([user("q"), assistant("a", weight=1, loss=False)], "messages[1]: weight and loss contradict each other"),
        ([user("q"), assistant("a", train_detail=[{"begin": 0}])], "messages[1]: train_detail is not supported"),
        ([user("q"), assistant(None, tool_calls="{")], "messages[1]: tool_calls is no JSON"),
        ([user("q"), assistant(None, tool_calls=[{"name": ""}])], "tool_calls[0] must be an object with a name"),
        (
            [user("q"), assistant(None, tool_calls=[{"name": "f", "arguments": "[1]"}])],
            "arguments must be a JSON object",
        ),
        ([user("q"), {"from": "function_call", "value": "f()"}], "the content of a function_call is no JSON"),
        ([user([{"type": "image_url"}]), assistant("a")], "content[0] is a part of the type 'image_url'"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError) as caught:
        encode(CALLS, messages=messages)
    assert str(caught.value).startswith("a.jsonl:1: ")
    assert said in str(caught.value)


def test_two_system_messages_are_refused_and_one_said_twice_is_one() -> None:
    first = {"role": "system", "content": "be brief"}
    with pytest.raises(UserError, match=r"a\.jsonl:1: system and the first message are two system messages"):
        encode(CHATML, messages=[first, *SAID["messages"]], system="be long")
    once = encode(CHATML, messages=[first, *SAID["messages"]])
    assert (
        encode(CHATML, messages=[first, *SAID["messages"]], system="be brief").tokens.tolist() == once.tokens.tolist()
    )


@pytest.mark.parametrize("verdict", [False, "false", "False"])
def test_a_record_with_a_bad_verdict_is_left_out(verdict: Any) -> None:
    marked = encode(CHATML, prompt="q", completion="bad", label=verdict)
    assert (len(marked.tokens), marked.notes) == (0, {REJECTED: 1})
    assert learned(encode(CHATML, prompt="q", completion="good", label=True)) == ["good<|im_end|>"]
    classes = encode(CHATML, messages=SAID["messages"], label="sport")
    assert classes.notes == {"with columns that nothing uses (label)": 1}


# --- texts, days, and time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("<s>Hi</s>", "<s>Hi</s>"),
        ("<s>Hi", "<s>Hi</s>"),
        ("Hi</s>\n", "<s>Hi</s>\n"),
        ("Hi<|im_end|>\n", "<s>Hi<|im_end|>\n"),  # what ends a turn, under this template
        ("Hi", "<s>Hi</s>"),
        ("a </s> b", "<s>a </s> b</s>"),
    ],
)
def test_a_text_that_a_template_has_rendered_gets_nothing_twice(text: str, want: str) -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    assert tokenizer.decode(encode(CHATML, tokenizer, text=text).tokens).replace(" ", "") == want.replace(" ", "")


def test_the_day_is_fixed_and_part_of_the_digest() -> None:
    text = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}" + CHATML
    first, second = (Template(BYTES, text, datetime.date(2026, 1, day)) for day in (30, 31))
    record = Record("a:1", {"messages": SAID["messages"]})
    assert BYTES.decode(first.encode(record, {}).tokens).startswith("Today: 30 Jan 2026\n")
    assert BYTES.decode(second.prompt(Conversation([user("q")]))).startswith("Today: 31 Jan 2026\n")
    assert first.digest != second.digest
    assert first.identity == second.identity
    without = (Template(BYTES, CHATML, datetime.date(2026, 1, day)).digest for day in (30, 31))
    assert len(set(without)) == 1
    with pytest.raises(UserError, match="calls strftime_now with something else than a text"):
        on_day("{{ strftime_now(form) }}", datetime.date(2026, 1, 31))
    asks = '{% if strftime_now is defined %}{{ strftime_now("%Y") }}{% endif %}'
    assert on_day(asks, datetime.date(2026, 1, 31)).endswith('{{ "2026" }}{% endif %}')


@pytest.mark.parametrize("text", [CHATML, CALLS, THINKS, MISTRAL, OPEN])
def test_a_conversation_is_rendered_a_few_times_however_long_it_is(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []
    apply = Renderer.apply

    def counting(self: Renderer, messages: list[Any], *args: Any) -> str:
        rendered.append(len(messages))
        return apply(self, messages, *args)

    monkeypatch.setattr(Renderer, "apply", counting)
    counts = []
    for turns in (3, 40, 80):
        messages = [message for i in range(turns) for message in (user(f"q{i}"), assistant(f"a{i}"))]
        assert len(learned(encode(text, messages=messages))) == turns
        counts.append(len(rendered))
        rendered.clear()
    assert counts[0] <= counts[1] == counts[2] < 25


def test_a_template_that_fails_without_tools_is_given_none() -> None:
    assert learned(encode(WANTS_TOOLS, messages=SAID["messages"])) == ["a<|im_end|>"]


def test_messages_that_a_template_tells_apart_by_a_look_at_them_are_refused() -> None:
    text = CHATML.replace("m['content'] +", "(m['content'] if m['content'] | length < 9 else 'too long') +")
    with pytest.raises(UserError, match=r"a\.jsonl:1: "):
        encode(text, messages=[user("12345678"), assistant("b"), user("c"), assistant("d")])


def test_an_unknown_token_for_the_end_of_a_turn_still_ends_it() -> None:
    plain = byte_level()
    text = CHATML.replace("<|im_start|>", "[[").replace("<|im_end|>", "]]")
    messages = [user("a]]"), assistant("b]] c"), user("]]\n[[assistant\n"), assistant("d")]
    assert learned(encode(text, plain, messages=messages)) == ["b]] c]]", "d]]"]
