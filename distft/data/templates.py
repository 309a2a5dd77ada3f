"""Chat templates: turn conversations and texts into tokens, and mark those to predict."""

from __future__ import annotations

import datetime
import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distft.data.endings import Endings
from distft.data.formats import Conversation, parse, unused
from distft.data.messages import Message
from distft.data.records import Record
from distft.data.rendering import Renderer, Rendering, on_day
from distft.data.shown import DIFFERS, ENDLESS, SILENT, check_shown, hidden, is_silent, other_prompt
from distft.data.token_begins import with_begins
from distft.data.turns import Finder, Turn
from distft.errors import UserError
from distft.recipe.schema import Data

FORMAT = 2  # raise it when the same record and template give other tokens or targets than before

# For tokenizers without a template. Shaped like ChatML, in plain text that any tokenizer can encode; only the
# assistant's turns end with the eos token, so that a model stops where it should.
DEFAULT = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

REJECTED = "whose label is false were left out"


@dataclass(frozen=True, eq=False)
class Marked:
    """Tokens int32 [n] and targets bool [n].

    `targets[i]` says that token i is to be predicted from the tokens before it; `targets[0]` is always False.
    `notes`: what people should know of the record, as in `Encoded`; `warnings`: sentences by note.
    """

    tokens: npt.NDArray[np.int32]
    targets: npt.NDArray[np.bool_]
    notes: Mapping[str, int] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Template:
    """A chat template (Jinja text) and the fast tokenizer it is for.

    Attributes:
        day: what the template sees as today.
    """

    tokenizer: Any
    text: str
    day: datetime.date = field(default_factory=datetime.date.today)

    @classmethod
    def load(cls, tokenizer: Any, data: Data) -> Template:
        """The template in the file `data.template`, else the tokenizer's own, else `DEFAULT`.

        Raises UserError where the file cannot be read or the tokenizer lacks what is needed.
        """
        if not tokenizer.is_fast:
            raise UserError(f"{type(tokenizer).__name__} is a slow tokenizer; use a fast one (with a tokenizer.json)")
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token (eos_token); set one"
            )
        path = data.template
        day = datetime.date.fromisoformat(data.today) if data.today else datetime.date.today()
        if path is not None:
            try:
                return cls(tokenizer, Path(path).expanduser().read_text(encoding="utf-8"), day)
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"cannot read the chat template {path} (data.template): {error}") from error
        if tokenizer.chat_template is not None:
            return cls(tokenizer, tokenizer.get_chat_template(), day)
        return cls(tokenizer, ("{{ bos_token }}" if _adds_bos(tokenizer) else "") + DEFAULT, day)

    def encode(self, record: Record, fields: Mapping[str, str]) -> Marked:
        """The tokens of a record in any known format, its columns renamed by `fields` ({our name: column}).

        Of a conversation every assistant turn is a target, up to and with its end-of-turn token; of plain text
        everything is. Raises UserError naming the record.
        """
        parsed = parse(record, fields)
        found = self.encode_parsed(parsed, record.where)
        columns = unused(record, fields)
        notes = Counter(found.notes)
        if columns:
            notes[f"with columns that nothing uses ({', '.join(columns)})"] = 1
        return Marked(found.tokens, found.targets, notes, found.warnings)

    def encode_parsed(self, parsed: Conversation | str, where: str) -> Marked:
        """As `encode`, what a record holds. `where`: the record, for people."""
        try:
            return self._plain(parsed) if isinstance(parsed, str) else self._conversation(parsed, where)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: {half_a_pair(error)}") from error

    def prompt(self, conversation: Conversation) -> npt.NDArray[np.int32]:
        """What the model is given to answer these messages, int32 [n].

        Token for token what came before the answer in training. Raises UserError where the template refuses them, or
        they are no text.
        """
        try:
            rendering, text = self._renderer.fit(conversation, True)
            turns = self._turns(rendering, conversation.messages, text, True)
            return np.array(self._tokenize(text, [turn.start for turn in turns])[0], dtype=np.int32)
        except UnicodeEncodeError as error:
            raise UserError(half_a_pair(error)) from error

    def opening(self, text: str) -> npt.NDArray[np.int32]:
        """A plain text that is to be continued, as it begins in training, int32 [n]. Raises UserError as `prompt`."""
        try:
            return np.array(self._beginning(text), dtype=np.int32)
        except UnicodeEncodeError as error:
            raise UserError(half_a_pair(error)) from error

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of all that decides what `encode` returns for a record."""
        return self._digest(FORMAT, self._renderer.text)

    @cached_property
    def identity(self) -> str:
        """sha256 (hex) of the tokenizer and the template, whatever distft makes of them."""
        return self._digest(1, self.text)

    def _digest(self, format: int, text: str) -> str:
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # Both are state that a call may leave behind, and neither is used here.
        del backend["truncation"], backend["padding"]
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        content = json.dumps([format, text, backend, special], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def end_of_turn(self) -> str:
        """What ends an assistant's turn, as a text: "<|im_end|>", " </s>", or nothing."""
        return self._endings.of_turn

    @property
    def ends(self) -> tuple[str, ...]:
        """At what a prediction is to stop, as texts: the ends of answers and of calls, which may be others."""
        return self._endings.of_turns

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(self.tokenizer, on_day(self.text, self.day))

    @cached_property
    def _endings(self) -> Endings:
        return Endings(self._renderer)

    def _plain(self, text: str) -> Marked:
        tokens = self._beginning(text)
        ends = [end for end in (self.tokenizer.eos_token, self.end_of_turn.strip()) if end in self._added_texts]
        if not text.rstrip().endswith(tuple(ends)):  # else a chat template has been at work before
            tokens.append(self.tokenizer.eos_token_id)
        targets = np.ones(len(tokens), dtype=np.bool_)
        targets[:1] = False
        return Marked(np.array(tokens, dtype=np.int32), targets)

    def _beginning(self, text: str) -> list[int]:
        tokenizer, tokens = self.tokenizer, self._ids(text)[0]
        twice = tokens[:1] == [tokenizer.bos_token_id]
        return tokens if twice or not _adds_bos(tokenizer) else [tokenizer.bos_token_id, *tokens]

    def _conversation(self, conversation: Conversation, where: str) -> Marked:
        messages = conversation.messages
        if conversation.rejected:
            return Marked(np.zeros(0, np.int32), np.zeros(0, np.bool_), {REJECTED: 1})
        rendering, text = self._renderer.fit(conversation, False)
        turns = self._turns(rendering, messages, text, False)
        if turns and turns[-1].end == len(text) and messages[-1]["role"] == "assistant":
            text += self._endings.addition(messages[-1])
            turns[-1] = replace(turns[-1], end=len(text))
        learned = [turn for turn in turns if turn.message not in conversation.given]
        silent = [turn for turn in learned if is_silent(messages[turn.message])]
        learned = [turn for turn in learned if turn not in silent]
        for turn in learned:
            check_shown(messages[turn.message], turn, text, self.end_of_turn.strip())
        tokens, begins, firsts = self._tokenize(text, [turn.start for turn in turns])
        targets = np.zeros(len(tokens), dtype=np.bool_)
        for turn, first in zip(turns, firsts, strict=True):
            if turn in learned:
                targets[first : bisect_left(begins, turn.end)] = True
        targets[:1] = False
        other = other_prompt(rendering, messages, learned, text)
        warnings = {DIFFERS: f"{where}: {other}"} if other else {}
        unseen = hidden(conversation, self.text, text)
        endless = [ENDLESS] if learned and not self.end_of_turn.strip() else []
        notes = dict.fromkeys([*warnings, *unseen, *endless, *([SILENT] if silent else [])], 1)
        return Marked(np.array(tokens, dtype=np.int32), targets, notes, warnings)

    def _turns(self, rendering: Rendering, messages: Sequence[Message], text: str, prompt: bool) -> list[Turn]:
        if not self._renderer.marks_turns:
            return Finder(rendering, self._endings, messages, text, prompt).turns()
        spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        blocks = [self._close(text, start, end) for start, end in rendering.blocks(messages, prompt)]
        if len(blocks) != len(spoken):
            raise UserError(
                f"the chat template marks {len(blocks)} parts with {{% generation %}} for {len(spoken)} turns of the "
                f"assistant; mark each turn once"
            )
        return [Turn(i, start, end) for i, (start, end) in zip(spoken, blocks, strict=True)]

    def _close(self, text: str, start: int, end: int) -> tuple[int, int]:
        """The block, ending right after the end-of-turn mark: white space behind it is not the assistant's."""
        mark = self.end_of_turn
        trimmed = start + len(text[start:end].rstrip())
        if mark and text.endswith(mark, start, trimmed):
            return start, trimmed
        if mark and text.startswith(mark, end):
            return start, end + len(mark)
        return start, end

    def _tokenize(self, text: str, starts: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Tokens of `text`, the character each begins at, and for each of `starts` the first token from there on.

        The text is encoded in one go, as models were trained on it. Where that would make the tokens before a start
        differ from those of the prompt alone ("\\n" + "\\n..." merged), it is cut there, so that training and
        inference see the same. No token reaches over an added token: what stands before it need not be looked at.
        """
        tokens, begins = self._ids(text)
        firsts: list[int] = []
        last = done = cut = cut_at = 0  # the last start and the last cut: characters and tokens
        for start in starts:
            near = bisect_left(begins, start)
            hard = next((i for i in range(near - 1, done - 1, -1) if tokens[i] in self._added), None)
            at, begin = (done, last) if hard is None else (hard, begins[hard])
            alone, alone_begins = self._ids(text[begin:start], begin)
            if (
                hard is None and tokens[at : at + len(alone)] != alone
            ):  # it treats the beginning of a text in its own way
                at, (alone, alone_begins) = cut_at, self._ids(text[cut:start], cut)
            done = at + len(alone)
            if tokens[at:done] != alone:
                end = next(
                    (i for i in range(near, len(tokens)) if tokens[i] in self._added and begins[i] >= start), None
                )
                rest, rest_begins = self._ids(text[start : None if end is None else begins[end]], start)
                tokens[at:end], begins[at:end] = alone + rest, alone_begins + rest_begins
                cut, cut_at = start, done
            firsts.append(done)
            last = start
        return tokens, begins, firsts

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_added_vocab().values())

    @cached_property
    def _added_texts(self) -> frozenset[str]:
        return frozenset(self.tokenizer.get_added_vocab())

    def _ids(self, text: str, base: int = 0) -> tuple[list[int], list[int]]:
        """Tokens of `text`, and `base` + the character each begins at."""
        text.encode()  # raises UnicodeEncodeError for half a surrogate pair, which tokenizers reject as no text at all
        tokens, begins = with_begins(self.tokenizer, text)
        return tokens, [base + begin for begin in begins] if base else begins


def half_a_pair(error: UnicodeEncodeError) -> str:
    return f"the text contains half of a surrogate pair ({error.object[error.start]!r}); repair it"


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]
