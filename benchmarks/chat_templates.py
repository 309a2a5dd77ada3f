"""What is learned with real chat templates, beside what is right by hand.

    python -m benchmarks.chat_templates FOLDER [--only NAME ...] [--out docs/results/chat-templates.md] [--show]

FOLDER holds NAME.jinja files and SOURCES.json, {NAME: {repository, commit, path, bos, eos}}. What is right is in
chat_template_expectations.json beside this file: for each template and situation the learned texts, one per turn of
the assistant, or "refused: why".
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from distft.data.records import Record
from distft.data.templates import Template
from distft.errors import UserError

EXPECTATIONS = Path(__file__).with_name("chat_template_expectations.json")
SPECIAL = Path(__file__).with_name("chat_template_special_tokens.txt").read_text(encoding="utf-8").split()

CRASHES = (AssertionError, AttributeError, LookupError, TypeError, ValueError)  # defects: shown, and never right

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city."}},
            "required": ["city"],
        },
    },
}
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Weather in Paris?"}
ANSWERED = {"role": "assistant", "content": "It is 18 degrees."}


PAGE = """\
# Chat templates: what is learned

    python -m benchmarks.chat_templates FOLDER --out docs/results/chat-templates.md

FOLDER holds the templates named below and SOURCES.json, which says the same of them. On {commit}: {total}.

What is right was written by hand, from the template's own output, in benchmarks/chat_template_expectations.json: the
text that the assistant wrote in each of its turns, from behind the generation prompt to the token that ends the turn.

- right: exactly this is learned
- refused: distft says in words that it does not train on this, and that is right (the template rejects the
  conversation, or does not show the call)
- refused, needlessly: it could be learned
- WRONG: something else is learned

"two calls" are parallel calls, their arguments a JSON text; in "tools" and "null content" they are an object. In
"reasoning" both turns of the assistant have `reasoning_content`.

{table}

| template | repository | commit | path | bos, eos |
|---|---|---|---|---|
{sources}
"""


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **rest: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **rest}


def call(city: str, identity: str, text: bool = False) -> dict[str, Any]:
    arguments = json.dumps({"city": city}) if text else {"city": city}
    return {"id": identity, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def told(content: str, identity: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identity, "name": "get_weather", "content": content}


def with_tools(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages), "tools": [TOOL]}


SITUATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [user("How high is it?"), assistant("8,849 metres.")]},
    "system": {"messages": [SYSTEM, user("How high is it?"), assistant("8,849 metres.")]},
    "multi-turn": {
        "messages": [
            user("How high is it?"),
            assistant("8,849 metres."),
            user("Who says so?"),
            assistant("Nepal does."),
        ]
    },
    "tools": with_tools(
        ASKED, assistant("Let me look.", tool_calls=[call("Paris", "call00001")]), told("18 C", "call00001"), ANSWERED
    ),
    "two calls": with_tools(
        user("Weather in Paris and Rome?"),
        assistant("Let me look.", tool_calls=[call("Paris", "call00001", True), call("Rome", "call00002", True)]),
        told("18 C", "call00001"),
        told("25 C", "call00002"),
        assistant("18 and 25 degrees."),
    ),
    "null content": with_tools(
        ASKED, assistant(None, tool_calls=[call("Paris", "call00001")]), told("18 C", "call00001"), ANSWERED
    ),
    "reasoning": {
        "messages": [
            user("How high is it?"),
            assistant("8,849 metres.", reasoning_content="Everest is meant."),
            user("Who says so?"),
            assistant("Nepal does.", reasoning_content="It was measured in 2020."),
        ]
    },
    "reasoning and a call": with_tools(
        ASKED,
        assistant(None, reasoning_content="The city is known.", tool_calls=[call("Paris", "call00001")]),
        told("18 C", "call00001"),
        assistant("It is 18 degrees.", reasoning_content="The tool says so."),
    ),
    "<think> in content": {
        "messages": [
            user("How high is it?"),
            assistant("<think>\nEverest is meant.\n</think>\n\n8,849 metres."),
            user("Who says so?"),
            assistant("<think>\nIt was measured in 2020.\n</think>\n\nNepal does."),
        ]
    },
}


def tokenizer_with(bos: str | None, eos: str, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows the special tokens of all families; `trim_offsets` leaves out white space."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    backend.decoder = decoders.ByteLevel()
    special = [token for token in dict.fromkeys([*SPECIAL, bos, eos]) if token]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = [json.dumps(record, ensure_ascii=False) + "\n\n" for record in SITUATIONS.values()]
    backend.train_from_iterator(texts * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)


def learned(template: Template, record: dict[str, Any]) -> list[str] | str:
    """The texts that are learned of a record, or "refused: why", or "crashed: why"."""
    try:
        marked = template.encode(Record("records:1", record), {})
    except UserError as error:
        return f"refused: {error}"
    except CRASHES as error:
        return f"crashed: {type(error).__name__}: {error}"
    runs = groupby(zip(marked.targets, marked.tokens, strict=True), key=lambda pair: bool(pair[0]))
    return [template.tokenizer.decode([int(token) for _, token in run]) for target, run in runs if target]


@dataclass(frozen=True)
class Cell:
    got: list[str] | str
    right: list[list[str] | str]  # one of these, where two can be defended

    @property
    def verdict(self) -> str:
        if isinstance(self.got, str) and self.got.startswith("refused"):
            return "refused" if any(isinstance(right, str) for right in self.right) else "refused, needlessly"
        return "right" if self.got in self.right else "WRONG"


def expectations() -> dict[str, dict[str, Any]]:
    """What is right for each template and situation. A template may be "like" an earlier one but for what it says."""
    everything: dict[str, dict[str, Any]] = {}
    for name, own in json.loads(EXPECTATIONS.read_text(encoding="utf-8")).items():
        everything[name] = {**everything.get(own.get("like"), {}), **own}
    return everything


def look(folder: Path, name: str, source: dict[str, Any], right: dict[str, Any]) -> dict[str, Cell]:
    """What becomes of every situation. Tokenizers with either kind of offsets must agree."""
    text = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    plain, trimmed = (Template(tokenizer_with(source["bos"], source["eos"], trim), text) for trim in (False, True))
    cells = {}
    for situation, record in SITUATIONS.items():
        got, other = learned(plain, record), learned(trimmed, record)
        if got != other:
            got = f"the tokenizers do not agree: {got!r} and {other!r}"
        cells[situation] = Cell(got, choices(right[situation]))
    return cells


def choices(right: Any) -> list[list[str] | str]:
    return list(right["either"]) if isinstance(right, dict) else [right]


def shown(table: dict[str, dict[str, Cell]]) -> str:
    lines = [f"| template | {' | '.join(SITUATIONS)} |", "|---" * (len(SITUATIONS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cell.verdict for cell in row.values())} |" for name, row in table.items()]
    return "\n".join(lines).replace("<think>", "`<think>`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", help="names of templates")
    parser.add_argument("--out", type=Path, help="write the table as Markdown, with the sources of the templates")
    parser.add_argument("--show", action="store_true", help="print what differs, and the words of refusals")
    options = parser.parse_args()
    sources = json.loads((options.folder / "SOURCES.json").read_text(encoding="utf-8"))
    right = {name: by for name, by in expectations().items() if name in (options.only or sources)}
    table = {name: look(options.folder, name, sources[name], by) for name, by in right.items()}
    counts = Counter(cell.verdict for row in table.values() for cell in row.values())
    total = f"{len(table)} templates, {counts.total()} cells: " + ", ".join(f"{n} {v}" for v, n in counts.most_common())
    if options.show:
        for name, row in table.items():
            for situation, cell in row.items():
                if cell.verdict == "refused":
                    print(f"{name}, {situation}: {cell.got}")
                elif cell.verdict != "right":
                    print(f"{name}, {situation}: {cell.verdict}\n  right {cell.right!r}\n  got   {cell.got!r}")
    print(shown(table), total, sep="\n\n")
    if options.out:
        options.out.write_text(page(table, total, sources), encoding="utf-8")


def page(table: dict[str, dict[str, Cell]], total: str, sources: dict[str, Any]) -> str:
    rows = []
    for name in table:
        source = sources[name]
        tokens = " ".join(f"`{source[key]}`" for key in ("bos", "eos") if source[key]).replace("|", "\\|")
        where = source["path"] + (f" ({source['note']})" if "note" in source else "")
        rows.append(f"| {name} | {source['repository']} | {source['commit'][:12]} | {where} | {tokens} |")
    described = ["git", "-C", str(EXPECTATIONS.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
    return PAGE.format(commit=commit, total=total, table=shown(table), sources="\n".join(rows))


if __name__ == "__main__":
    main()
