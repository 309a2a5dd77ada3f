"""Chat templates: turn conversations and texts into tokens, and mark those to predict."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distft.data.formats import Conversation, Message, parse
from distft.data.records import Record
from distft.errors import UserError

FORMAT = 1  # raise it when the same record and template give other tokens or targets than before

# For tokenizers without a template. Shaped like ChatML, in plain text that any tokenizer can encode; only the
# assistant's turns end with the eos token, so that a model stops where it should.
DEFAULT = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MARK = "distft-marks-this-turn"
_RENDER_ERRORS = (TypeError, ValueError, LookupError, AttributeError)  # beside Jinja's own: templates run code

Span = tuple[int, int]  # characters [start, end)


@dataclass(frozen=True, eq=False)
class Marked:
    """Tokens int32 [n] and targets bool [n].

    `targets[i]` says that token i is to be predicted from the tokens before it; `targets[0]` is always False.
    """

    tokens: npt.NDArray[np.int32]
    targets: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Template:
    """A chat template (Jinja text) and the fast tokenizer it is for."""

    tokenizer: Any
    text: str

    @classmethod
    def load(cls, tokenizer: Any, path: str | None) -> Template:
        """The template in the file `path`, else the tokenizer's own, else `DEFAULT`.

        Raises UserError where the file cannot be read or the tokenizer lacks what is needed.
        """
        if not tokenizer.is_fast:
            raise UserError(f"{type(tokenizer).__name__} is a slow tokenizer; use a fast one (with a tokenizer.json)")
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token (eos_token); set one"
            )
        if path is not None:
            try:
                return cls(tokenizer, Path(path).expanduser().read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"cannot read the chat template {path} (data.template): {error}") from error
        if tokenizer.chat_template is not None:
            return cls(tokenizer, tokenizer.get_chat_template())
        return cls(tokenizer, ("{{ bos_token }}" if _adds_bos(tokenizer) else "") + DEFAULT)

    def encode(self, record: Record, fields: Mapping[str, str]) -> Marked:
        """The tokens of a record in any known format, its columns renamed by `fields` ({our name: column}).

        Of a conversation every assistant turn is a target, up to and with its end-of-turn token; of plain text
        everything is. Raises UserError naming the record.
        """
        parsed = parse(record, fields)
        try:
            return self._plain(parsed) if isinstance(parsed, str) else self._conversation(parsed)
        except UserError as error:
            raise UserError(f"{record.where}: {error}") from error
        except UnicodeEncodeError as error:
            raise UserError(f"{record.where}: {half_a_pair(error)}") from error

    def prompt(self, messages: Sequence[Message]) -> npt.NDArray[np.int32]:
        """What the model is given to answer these messages, int32 [n].

        Token for token what came before the answer in training. Raises UserError where the template refuses them, or
        they are no text.
        """
        messages = list(messages)
        try:
            text = self._render(messages, True)
            spans = self._spans(messages, text, True)
            return np.array(self._tokenize(text, [start for start, _ in spans])[0], dtype=np.int32)
        except UnicodeEncodeError as error:
            raise UserError(half_a_pair(error)) from error

    def opening(self, text: str) -> npt.NDArray[np.int32]:
        """A plain text that is to be continued, as it begins in training, int32 [n]. Raises UserError as `prompt`."""
        try:
            return self._plain(text).tokens[:-1]
        except UnicodeEncodeError as error:
            raise UserError(half_a_pair(error)) from error

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of all that decides what `encode` returns for a record."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # Both are state that a call may leave behind, and neither is used here.
        del backend["truncation"], backend["padding"]
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        content = json.dumps([FORMAT, self.text, backend, special], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _plain(self, text: str) -> Marked:
        tokenizer = self.tokenizer
        first = [tokenizer.bos_token_id] if _adds_bos(tokenizer) else []
        tokens = np.array([*first, *self._ids(text)[0], tokenizer.eos_token_id], dtype=np.int32)
        targets = np.ones(len(tokens), dtype=np.bool_)
        targets[0] = False
        return Marked(tokens, targets)

    def _conversation(self, conversation: Conversation) -> Marked:
        messages = conversation.messages
        text = self._render(messages, False)
        spans = self._spans(messages, text, False)
        tokens, begins, firsts = self._tokenize(text, [start for start, _ in spans])
        given = len(self._render(messages[: conversation.trained_from], True)) if conversation.trained_from else 0
        targets = np.zeros(len(tokens), dtype=np.bool_)
        for (_, end), first in zip(spans, firsts, strict=True):
            if end > given:
                targets[first : np.searchsorted(begins, end)] = True
        targets[:1] = False
        return Marked(np.array(tokens, dtype=np.int32), targets)

    def _render(self, messages: list[Message], prompt: bool) -> str:
        """The conversation as text; with `prompt`, ready for the assistant's next turn."""
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.text, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, *_RENDER_ERRORS) as error:
            raise UserError(f"the chat template rejects the conversation: {error}") from error
        assert isinstance(text, str)
        return text

    def _spans(self, messages: list[Message], text: str, prompt: bool) -> list[Span]:
        """Where in `text`, which is `_render(messages, prompt)`, the assistant's turns are."""
        if _GENERATION.search(self.text):
            return [self._close(text, start, end) for start, end in self._generation_blocks(messages, prompt)]
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [self._close(text, *self._span(messages, i, text, prompt)) for i in turns]
        if any(end > start for (_, end), (start, _) in pairwise(spans)):
            raise UserError("the chat template does not keep the messages in order; use another one (data.template)")
        return spans

    def _generation_blocks(self, messages: list[Message], prompt: bool) -> list[Span]:
        """What the template itself marks with {% generation %}.

        In characters: the token mask that apply_chat_template offers is wrong for tokenizers whose offsets leave
        out white space (a turn that begins or ends with it loses or gains tokens, transformers 5.23).
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        _, blocks = render_jinja_template(
            conversations=[messages],
            chat_template=self.text,
            return_assistant_tokens_mask=True,
            add_generation_prompt=prompt,
            **self.tokenizer.special_tokens_map,
        )
        return [(start, end) for start, end in blocks[0] if start < end]

    def _span(self, messages: list[Message], i: int, text: str, prompt: bool) -> Span:
        """What message i adds to the prompt before it: all that a model has to write itself."""
        before = self._render(messages[:i], True) if i else None
        after = text if i + 1 == len(messages) and not prompt else self._render(messages[: i + 1], False)
        if before is not None and before != after and text.startswith(after) and after.startswith(before):
            return len(before), len(after)
        # Later messages change how this one is shown (earlier reasoning is left out, say), or it comes first.
        # Rendered with a mark for content, what surrounds the mark surrounds the content, whatever became of it.
        marked = self._render([*messages[:i], {**messages[i], "content": _MARK}, *messages[i + 1 :]], prompt)
        head, mark, tail = marked.partition(_MARK)
        if not mark or not text.startswith(head) or not text.endswith(tail) or len(head) + len(tail) > len(text):
            raise UserError(
                f"message {i} cannot be found in the output of the chat template; "
                f"mark the assistant's turns with {{% generation %}} in a template of your own (data.template)"
            )
        start = len(before) if before is not None and head.startswith(before) else len(head)
        return start, len(text) - len(tail)

    def _close(self, text: str, start: int, end: int) -> Span:
        """The span, ending right after the end-of-turn mark: white space behind it is not the assistant's."""
        mark = self.end_of_turn
        trimmed = start + len(text[start:end].rstrip())
        if mark and text.endswith(mark, start, trimmed):
            return start, trimmed
        if mark and text.startswith(mark, end):
            return start, end + len(mark)
        return start, end

    @cached_property
    def end_of_turn(self) -> str:
        """What this template writes after an assistant's content: "<|im_end|>", " </s>", or nothing."""
        probe = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        try:
            return self._render(probe, False).partition(_MARK)[2].rstrip()
        except UserError:  # it wants more than this, a system message for instance
            return ""

    def _tokenize(self, text: str, starts: list[int]) -> tuple[list[int], list[int], list[int]]:
        """Tokens of `text`, the character each begins at, and for each of `starts` the first token from there on.

        The text is encoded in one go, as models were trained on it. Where that would make the tokens before a start
        differ from those of the prompt alone ("\\n" + "\\n..." merged), it is cut there, so that training and
        inference see the same.
        """
        tokens: list[int] = []
        begins: list[int] = []
        firsts: list[int] = []
        base = last = done = 0  # characters: of the last cut, of the last start; tokens of `rest` before the last start
        rest, rest_begins = self._ids(text)
        for start in starts:
            near, _ = self._ids(text[last:start])
            if rest[done : done + len(near)] == near:
                done += len(near)
            else:  # a tokenizer that treats the beginning of a text in its own way, or a place to cut
                prompt, prompt_begins = self._ids(text[base:start], base)
                done = len(prompt)
                if rest[:done] != prompt:
                    tokens += prompt
                    begins += prompt_begins
                    base, done = start, 0
                    rest, rest_begins = self._ids(text[base:], base)
            firsts.append(len(tokens) + done)
            last = start
        return tokens + rest, begins + rest_begins, firsts

    def _ids(self, text: str, base: int = 0) -> tuple[list[int], list[int]]:
        """Tokens of `text`, and `base` + the character each begins at."""
        text.encode()  # raises UnicodeEncodeError for half a surrogate pair, which tokenizers reject as no text at all
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(out["input_ids"]), [base + begin for begin, _ in out["offset_mapping"]]


def half_a_pair(error: UnicodeEncodeError) -> str:
    return f"the text contains half of a surrogate pair ({error.object[error.start]!r}); repair it"


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]
