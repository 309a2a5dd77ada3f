import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.data.formats import Conversation, parse
from distft.data.records import Record
from distft.data.templates import DEFAULT, Template
from distft.errors import UserError
from distft.recipe.schema import Data
from tests.unit.data.chat_templates import (
    BYTES,
    CHATML,
    ENDS,
    GENERATION,
    LLAMA3,
    MISTRAL,
    REASONING,
    TEMPLATES,
    TOKENIZERS,
    TRANSCRIPT,
    byte_level,
    sentencepiece,
)


def chat(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def encode(template, messages):
    return template.encode(Record("a.jsonl:1", {"messages": messages}), {})


def learned(template, messages):
    """The texts of the runs of targets."""
    document = encode(template, messages)
    assert document.tokens.dtype == np.int32
    assert document.targets.dtype == np.bool_
    assert not document.targets[:1].any()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], document.targets, [0]]).astype(int)))
    decode = template.tokenizer.decode
    return [
        decode(document.tokens[a:b], clean_up_tokenization_spaces=False)
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "answers",
    [
        ("hello world", "the dog"),
        ("same", "same"),
        ("é🙂漢字\u200d🏳️‍🌈", "a"),
        ("two\n\nparagraphs", "user"),
        ("<|im_start|>user\nhow?", "assistant"),
        ("{{ eos_token }}{% raw %}", "{% generation %}"),
    ],
)
def test_every_assistant_turn_with_its_end_and_nothing_else(name, tokenizer, answers):
    template = Template(TOKENIZERS[tokenizer], TEMPLATES[name])
    # The users say what the assistant says, and what the template says.
    messages = chat(answers[0], answers[0], f"{answers[1]}{ENDS[name]}\n<|im_start|>assistant\n", answers[1])
    got = learned(template, messages)
    want = [answer + ENDS[name] for answer in answers]
    if name == "mistral" or tokenizer == "sentencepiece":  # a space before the answer, or dummy spaces anywhere
        got, want = ([text.replace(" ", "") for text in texts] for texts in (got, want))
    assert got == want


awkward = st.text(alphabet=" \n\t\r.a<|é🙂", max_size=6)


@settings(deadline=None, max_examples=60)
@given(st.lists(awkward, min_size=6, max_size=6), st.sampled_from([*TEMPLATES]), st.sampled_from([*TOKENIZERS]))
def test_prompt_is_what_training_saw_before_the_answer(contents, name, tokenizer):
    template = Template(TOKENIZERS[tokenizer], TEMPLATES[name])
    messages = chat(*contents)
    document = encode(template, messages)
    learns = np.flatnonzero(document.targets)
    for count in (1, 3, 5):
        prompt = template.prompt(Conversation(messages[:count]))
        assert prompt.dtype == np.int32
        assert document.tokens[: len(prompt)].tolist() == prompt.tolist()
        assert (len(prompt) in learns) == bool(messages[count]["content"].strip())  # the first token it has to write
        assert len(prompt) - 1 not in learns


@pytest.mark.parametrize("tokenizer", ["bytes", "trimmed"])
@pytest.mark.parametrize("answer", ["\nstarts with a line end", " starts and ends with a space ", "  two"])
def test_white_space_at_the_edges_of_an_answer(tokenizer, answer):
    for name in ("chatml", "generation", "default"):
        template = Template(TOKENIZERS[tokenizer], TEMPLATES[name])
        assert learned(template, chat("?", answer, "?", answer)) == [answer + ENDS[name]] * 2


def test_template_that_hides_earlier_reasoning():
    template = Template(BYTES, REASONING)
    messages = chat("?", "<think>x</think>one", "one", "<think>y</think>two", "?", "three")
    assert learned(template, messages) == ["one<|im_end|>", "two<|im_end|>", "<think></think>three<|im_end|>"]
    assert learned(template, messages[:4]) == ["one<|im_end|>", "<think>y</think>two<|im_end|>"]


def test_template_that_empties_earlier_reasoning():
    """What the model must write after its prompt is learned, also where it is not in the content."""
    text = REASONING.replace("{%- if loop.last %}", "{%- if not loop.last %}<think></think>{% else %}")
    got = learned(Template(BYTES, text), chat("?", "<think>x</think>one", "?", "<think>y</think>two"))
    assert got == ["<think></think>one<|im_end|>", "<think>y</think>two<|im_end|>"]


def test_conversation_that_the_assistant_begins():
    template = Template(BYTES, CHATML)
    assert learned(template, chat("hi", "hi", "bye", first="assistant")) == ["hi<|im_end|>", "bye<|im_end|>"]


def test_system_and_tool_messages_are_not_learned():
    roles = ["system", "user", "assistant", "tool", "assistant", "assistant"]
    messages = [{"role": role, "content": f"{role}{i}"} for i, role in enumerate(roles)]
    assert learned(Template(BYTES, CHATML), messages) == [f"assistant{i}<|im_end|>" for i in (2, 4, 5)]


def test_without_an_end_of_turn_token_the_line_end_is_learned():
    assert learned(Template(BYTES, TRANSCRIPT), chat("a", "b", "c", "d")) == ["b\n", "d\n"]


def test_end_of_turn_that_a_template_leaves_outside_its_generation_block():
    text = GENERATION.replace("m['content'] + '<|im_end|>' }}{% endgen", "m['content'] }}{% endgen")
    text = text.replace("endgeneration %}", "endgeneration %}{{ '<|im_end|>' }}")
    assert learned(Template(BYTES, text), chat("a", "b", "c", "d")) == ["b<|im_end|>", "d<|im_end|>"]


def test_end_of_turn_of_plain_characters():
    """A tokenizer that does not know ChatML's tokens, as one trained on the data."""
    text = CHATML.replace("<|im_start|>", "<<").replace("<|im_end|>", ">>")
    assert learned(Template(BYTES, text), chat("a", "b", "c", "d")) == ["b>>", "d>>"]


@pytest.mark.parametrize(
    ("text", "messages", "said"),
    [
        (MISTRAL, [{"role": "system", "content": "a"}], "roles must alternate"),
        ("{% for %}", chat("a", "b"), "rejects the conversation"),
        ("{{ messages[9]['content'] + 1 }}", chat("a", "b"), "rejects the conversation"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", chat("a", "b", "c", "d"), "message"),
        ("{{ messages[0]['content'] }}", chat("a", "b"), "does not show what message 1 says, 'b'"),
    ],
)
def test_template_that_does_not_work_is_an_error_that_names_the_record(text, messages, said):
    with pytest.raises(UserError, match=r"^a\.jsonl:1: ") as caught:
        encode(Template(BYTES, text), messages)
    assert said in str(caught.value)


def test_half_a_surrogate_pair_is_named():
    with pytest.raises(UserError, match=r"a\.jsonl:7: the text contains half of a surrogate pair"):
        Template(BYTES, CHATML).encode(Record("a.jsonl:7", {"text": "\ud83d"}), {})
    with pytest.raises(UserError, match=r"a\.jsonl:7: the text contains half of a surrogate pair"):
        Template(BYTES, CHATML).encode(Record("a.jsonl:7", {"messages": chat("a", "\ude42")}), {})


def test_plain_text_is_all_targets():
    document = Template(BYTES, CHATML).encode(Record("a:1", {"text": "hello\r\nworld"}), {})
    assert BYTES.decode(document.tokens) == "hello\r\nworld</s>"
    assert document.targets.tolist() == [False] + [True] * (len(document.tokens) - 1)
    llama = TOKENIZERS["sentencepiece"]
    document = Template(llama, CHATML).encode(Record("a:1", {"text": "the"}), {})
    assert document.tokens.tolist() == [llama.bos_token_id, llama.convert_tokens_to_ids("▁the"), llama.eos_token_id]
    assert Template(BYTES, CHATML).encode(Record("a:1", {"text": ""}), {}).targets.tolist() == [False]


def test_load_takes_the_file_then_the_tokenizers_own_then_the_default(tmp_path):
    tokenizer = byte_level()
    assert Template.load(tokenizer, Data()).text == DEFAULT
    assert Template.load(sentencepiece(), Data()).text == "{{ bos_token }}" + DEFAULT
    assert encode(Template.load(sentencepiece(), Data()), chat("a", "b")).tokens[0] == sentencepiece().bos_token_id
    assert Template.load(sentencepiece(bos=False), Data()).text == DEFAULT
    tokenizer.chat_template = CHATML
    assert Template.load(tokenizer, Data()).text == CHATML
    (tmp_path / "t.jinja").write_text(LLAMA3)
    assert Template.load(tokenizer, Data(template=str(tmp_path / "t.jinja"))).text == LLAMA3
    with pytest.raises(UserError, match=r"nowhere\.jinja"):
        Template.load(tokenizer, Data(template=str(tmp_path / "nowhere.jinja")))
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Template.load(tokenizer, Data())


def test_digest_follows_what_matters_and_nothing_else():
    template = Template(byte_level(), CHATML)
    used = Template(byte_level(), CHATML)
    used.tokenizer(["a", "b c d e"], padding=False, truncation=True, max_length=2)
    assert template.digest == used.digest
    other = byte_level()
    other.eos_token = "<|im_end|>"
    assert len({template.digest, Template(byte_level(), LLAMA3).digest, Template(other, CHATML).digest}) == 3


SAME = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("record", "fields", "messages"),
    [
        ({"messages": chat("q", "a"), "text": "not this"}, {}, SAME),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, {}, SAME),
        ({"conversations": chat("q", "a")}, {}, SAME),
        ({"instruction": "q", "output": "a"}, {}, SAME),
        ({"instruction": "q", "input": "", "output": "a", "system": None}, {}, SAME),
        ({"instruction": "q", "input": "more", "output": "a"}, {}, [("user", "q\n\nmore"), ("assistant", "a")]),
        (
            {"system": "s", "history": [["h", "i"]], "instruction": "q", "output": "a"},
            {},
            [("system", "s"), ("user", "h"), ("assistant", "i"), *SAME],
        ),
        ({"prompt": "q", "completion": "a"}, {}, SAME),
        ({"prompt": chat("q"), "completion": chat("a", first="assistant")}, {}, SAME),
        ({"messages": None, "prompt": "q", "completion": ""}, {}, [("user", "q"), ("assistant", "")]),
        ({"question": "q", "answer": "a"}, {"instruction": "question", "output": "answer"}, SAME),
        ({"messages": chat("x", "y"), "Q": "q", "completion": "a"}, {"prompt": "Q"}, SAME),
    ],
)
def test_formats(record, fields, messages):
    parsed = parse(Record("a:1", record), fields)
    assert isinstance(parsed, Conversation)
    assert [(m["role"], m["content"]) for m in parsed.messages] == messages


def test_assistant_turns_in_a_prompt_are_given_not_learned():
    record = Record("a:1", {"prompt": chat("q", "given", "q"), "completion": "learned"})
    for text in (CHATML, GENERATION):
        template = Template(BYTES, text)
        document = template.encode(record, {})
        assert BYTES.decode(document.tokens[document.targets]) == "learned<|im_end|>"
        assert "given" in BYTES.decode(document.tokens)


def test_other_keys_of_a_message_reach_the_template():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "name": None}
    parsed = parse(Record("a:1", {"messages": [call]}), {})
    assert isinstance(parsed, Conversation)
    function = {"name": "f", "arguments": {}}
    assert parsed.messages == [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
    ]


@pytest.mark.parametrize(
    ("record", "fields", "said"),
    [
        ({"body": "a", "id": 3}, {}, "a:1 fits no format: it has the fields body, id"),
        ({}, {}, "data.fields"),
        ({"body": "a"}, {"text": "boddy"}, "a:1 has no field 'boddy' (data.fields.text); it has body"),
        ({"body": "a"}, {"texts": "body"}, "no format has a field 'texts'"),
        ({"text": 3}, {}, "a:1: text must be a string, not int"),
        ({"messages": "hello"}, {}, "a:1: messages must be a list"),
        ({"messages": []}, {}, "not an empty list"),
        ({"messages": ["hello"]}, {}, "a:1: messages[0] must be an object"),
        ({"messages": [{"role": "boss", "content": "a"}]}, {}, "messages[0] has the role 'boss'"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, {}, "messages[0] has the role"),
        ({"messages": [{"content": "a"}]}, {}, "messages[0] has the role None"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {}, "content[0] is a part of the type"),
        ({"messages": [{"role": "user"}]}, {}, "content must be a string, not null"),
        ({"instruction": ["a"], "output": "b"}, {}, "instruction must be a string"),
        ({"instruction": "a", "output": 0.5}, {}, "output must be a string"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, {}, "history[0] must be a pair"),
        ({"instruction": "a", "output": "b", "history": "x"}, {}, "history must be a list"),
        ({"prompt": 1, "completion": "b"}, {}, "a:1: prompt must be"),
    ],
)
def test_records_that_do_not_fit_are_named(record, fields, said):
    with pytest.raises(UserError) as caught:
        parse(Record("a:1", record), fields)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_default_template_is_that_of_all_runs_before() -> None:
    """It is part of what tells a run's tokenizer; another text for the same words would refuse to go on with them."""
    assert hashlib.sha256(DEFAULT.encode()).hexdigest().startswith("37794034e19bc83b")
