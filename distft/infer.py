"""Answers from a trained run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distft import adapters, export, models
from distft.config import Recipe
from distft.data.formats import Message, parse
from distft.data.sources import read
from distft.data.templates import Template
from distft.data.types import Record
from distft.errors import UserError
from distft.recipe import load_resolved
from distft.rundir import RunDir


@dataclass(frozen=True)
class Decoding:
    """How to choose the next token. `temperature` 0: always the likeliest one."""

    max_tokens: int = 256
    temperature: float = 0.0
    batch: int = 8


class Answerer:
    """A model, ready to answer. `base_only` leaves the adapter and all training out."""

    def __init__(self, run_dir: Path, base_only: bool = False) -> None:
        run = RunDir(run_dir)
        run.read()
        self.recipe: Recipe = load_resolved(run.config)
        base = export.base_of(run, self.recipe)
        self._tokenizer = models.load_tokenizer(base, self.recipe.model)
        self._template = Template.load(self._tokenizer, self.recipe.data.template)
        if base_only:
            model = models.load(base, self.recipe.model, self.recipe.engine)
        else:
            model = export.tuned(run, self.recipe, adapters.quantized(self.recipe.adapter))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = model.to(self._device).eval()

    def answers(self, prompts: Iterable[list[Message]], decoding: Decoding) -> Iterator[str]:
        """One answer a conversation, in order."""
        waiting: list[list[int]] = []
        for messages in prompts:
            waiting.append(self._template.prompt(messages).tolist())
            if len(waiting) == decoding.batch:
                yield from self._generate(waiting, decoding)
                waiting = []
        if waiting:
            yield from self._generate(waiting, decoding)

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], decoding: Decoding) -> list[str]:
        width = max(len(prompt) for prompt in prompts)
        stop = self._tokenizer.eos_token_id
        filler = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else stop
        ids = torch.tensor([[filler] * (width - len(p)) + p for p in prompts], device=self._device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        sampling = (
            {"do_sample": True, "temperature": decoding.temperature} if decoding.temperature else {"do_sample": False}
        )
        out = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=decoding.max_tokens,
            eos_token_id=self._stops(),
            pad_token_id=filler,
            **sampling,
        )
        return [text.strip() for text in self._tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]

    def _stops(self) -> list[int]:
        """The tokenizer's end token, and those the model's own configuration names (chat models have several)."""
        own = self._model.generation_config.eos_token_id
        return sorted(
            {self._tokenizer.eos_token_id, *(own if isinstance(own, list) else [own] if own is not None else [])}
        )


def question(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def read_prompts(path: Path, recipe: Recipe) -> list[list[Message]]:
    """Conversations to answer: a line each of a text file, or the prompts of records (a last answer is left out).

    Raises:
        UserError: the file cannot be read.
    """
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--input: {path} cannot be read ({error})") from None
        return [question(line) for line in lines if line.strip()]
    return [_prompt(record, recipe) for record in read(str(path), "train", None)]


def _prompt(record: Record, recipe: Recipe) -> list[Message]:
    renamed = {ours: record.fields[column] for ours, column in recipe.data.fields.items() if column in record.fields}
    prompt = renamed.get("prompt", record.fields.get("prompt"))
    if isinstance(prompt, str):
        return question(prompt)
    parsed = parse(record, {k: v for k, v in recipe.data.fields.items() if k in renamed})
    if isinstance(parsed, str):
        return question(parsed)
    messages = parsed.messages
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def predict_file(run_dir: Path, source: Path, out: Path, decoding: Decoding, base_only: bool) -> int:
    """Answer every prompt of `source` into `out`, one JSON object a line. Returns how many."""
    answerer = Answerer(run_dir, base_only)
    prompts = read_prompts(source, answerer.recipe)
    with open(out, "w", encoding="utf-8") as file:
        for messages, answer in zip(prompts, answerer.answers(prompts, decoding), strict=True):
            file.write(json.dumps({"messages": messages, "answer": answer}, ensure_ascii=False) + "\n")
    return len(prompts)
