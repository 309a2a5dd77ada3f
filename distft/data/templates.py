"""Chat templates: turn conversations and texts into tokens, and mark those to predict."""

from __future__ import annotations

import datetime
import hashlib
import json
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
from distft.data.framed_turns import FramedTurns
from distft.data.messages import Message
from distft.data.records import Record
from distft.data.rendering import Renderer, Rendering, on_day
from distft.data.shown import DIFFERS, ENDLESS, SILENT, check_shown, hidden, is_silent, other_prompt
from distft.data.token_begins import TokenBegins, Tokens
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
class Draft:
    """A record as a text, which is to become tokens.

    Attributes:
        turns: of the assistant, in order; None: it is plain text, of which everything is learned.
        learned: those of them that are.
        notes, warnings: as of `Marked`.
    """

    text: str
    turns: Sequence[Turn] | None
    learned: Sequence[Turn] = ()
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
        return self.marked(self.draft(record, fields))

    def draft(self, record: Record, fields: Mapping[str, str]) -> Draft:
        """What `encode` makes tokens of; raises as it does."""
        draft = self.draft_of(parse(record, fields), record.where)
        columns = unused(record, fields)
        if not columns:
            return draft
        notes = Counter(draft.notes)
        notes[f"with columns that nothing uses ({', '.join(columns)})"] = 1
        return replace(draft, notes=notes)

    def draft_of(self, parsed: Conversation | str, where: str) -> Draft:
        """As `draft`, of what a record holds. `where`: the record, for people."""
        try:
            draft = Draft(parsed, None) if isinstance(parsed, str) else self._conversation(parsed, where)
            _check_whole(draft.text)
            return draft
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: {half_a_pair(error)}") from error

    def marked(self, draft: Draft) -> Marked:
        return self._marked(draft, self._begins.one(draft.text))

    def all_marked(self, drafts: Sequence[Draft]) -> list[Marked]:
        """As `marked`, of each; in less time."""
        tokens = self._begins.many([draft.text for draft in drafts])
        return [self._marked(draft, its) for draft, its in zip(drafts, tokens, strict=True)]

    def prompt(self, conversation: Conversation) -> npt.NDArray[np.int32]:
        """What the model is given to answer these messages, int32 [n].

        Token for token what came before the answer in training. Raises UserError where the template refuses them, or
        they are no text.
        """
        try:
            rendering, text = self._renderer.fit(conversation, True)
            turns = self._turns(rendering, conversation.messages, text, True)
            _check_whole(text)
            return self._begins.at(text, self._begins.one(text), [turn.start for turn in turns])[0].ids
        except UnicodeEncodeError as error:
            raise UserError(half_a_pair(error)) from error

    def opening(self, text: str) -> npt.NDArray[np.int32]:
        """A plain text that is to be continued, as it begins in training, int32 [n]. Raises UserError as `prompt`."""
        try:
            _check_whole(text)
            return self._beginning(self._begins.one(text).ids)
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
    def _framed(self) -> FramedTurns:
        return FramedTurns(self._renderer.joining, self._endings)

    @cached_property
    def _endings(self) -> Endings:
        return Endings(self._renderer)

    def _marked(self, draft: Draft, tokens: Tokens) -> Marked:
        if draft.turns is None:
            return self._plain(draft, tokens)
        tokens, firsts = self._begins.at(draft.text, tokens, [turn.start for turn in draft.turns])
        targets = np.zeros(len(tokens.ids), dtype=np.bool_)
        for turn, first in zip(draft.turns, firsts, strict=True):
            if turn in draft.learned:
                targets[first : tokens.first_from(turn.end)] = True
        targets[:1] = False
        return Marked(tokens.ids, targets, draft.notes, draft.warnings)

    def _plain(self, draft: Draft, tokens: Tokens) -> Marked:
        ids = self._beginning(tokens.ids)
        ends = [end for end in (self.tokenizer.eos_token, self.end_of_turn.strip()) if end in self._added_texts]
        if not draft.text.rstrip().endswith(tuple(ends)):  # else a chat template has been at work before
            ids = np.append(ids, np.int32(self.tokenizer.eos_token_id))
        targets = np.ones(len(ids), dtype=np.bool_)
        targets[:1] = False
        return Marked(ids, targets, draft.notes, draft.warnings)

    def _beginning(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Of a plain text: behind the bos token, if the tokenizer adds one."""
        first = self.tokenizer.bos_token_id
        if ids[:1].tolist() == [first] or not self._adds_bos:
            return ids
        return np.concatenate([np.array([first], np.int32), ids])

    @cached_property
    def _adds_bos(self) -> bool:
        return _adds_bos(self.tokenizer)

    def _conversation(self, conversation: Conversation, where: str) -> Draft:
        messages = conversation.messages
        if conversation.rejected:
            return Draft("", [], notes={REJECTED: 1})
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
        other = other_prompt(rendering, messages, learned, text)
        warnings = {DIFFERS: f"{where}: {other}"} if other else {}
        unseen = hidden(conversation, self.text, text)
        endless = [ENDLESS] if learned and not self.end_of_turn.strip() else []
        notes = dict.fromkeys([*warnings, *unseen, *endless, *([SILENT] if silent else [])], 1)
        return Draft(text, turns, learned, notes, warnings)

    def _turns(self, rendering: Rendering, messages: Sequence[Message], text: str, prompt: bool) -> list[Turn]:
        if not self._renderer.marks_turns:
            framed = self._framed(messages, text) if rendering.tools is None and not prompt else None
            return framed or Finder(rendering, self._endings, messages, text, prompt).turns()
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

    @cached_property
    def _added_texts(self) -> frozenset[str]:
        return frozenset(self.tokenizer.get_added_vocab())

    @cached_property
    def _begins(self) -> TokenBegins:
        return TokenBegins(self.tokenizer)


def _check_whole(text: str) -> None:
    text.encode()  # raises UnicodeEncodeError for half a surrogate pair, which tokenizers reject as no text at all


def half_a_pair(error: UnicodeEncodeError) -> str:
    return f"the text contains half of a surrogate pair ({error.object[error.start]!r}); repair it"


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]
