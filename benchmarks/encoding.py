"""How fast chats become tokens: a cold cache and a warm one, beside the bare tokenizer and `datasets.map`.

    python -m benchmarks.encoding [--megabytes 120] [--rounds 3] [--before CHECKOUT]    ten minutes; two processes

Chats are generated: one to four questions and answers, in a third of them a system message, of sentences of GSM8K
and of alpaca_en_demo; the tokenizer (byte-level BPE, 8,000 tokens) is trained on these. Templates: ChatML with tokens
of its own around messages, and the one for tokenizers without a template, in plain text. All sides take turns, each
time in a new process, on the same file. `bare`: `encode_batch_fast` of the rendered texts by the library `tokenizers`,
256 at a time, one thread, nothing else; `map`: `datasets.map` in batches of 1,000 with apply_chat_template and the
tokenizer, without targets, its reading of the file not counted; `before`: another checkout of distft. CPU seconds are
of the process and its children. A line of JSON per side, medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CHATML = """\
{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
SYSTEM = "You are a helpful assistant. Answer as well as you can, and say what you do not know."


def sentences() -> list[str]:
    rows = [json.loads(line) for line in (DATA / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()]
    rows += json.loads((DATA / "chat/alpaca_en_demo.json").read_text(encoding="utf-8"))
    texts = " ".join(str(value) for row in rows for value in row.values())
    return [sentence for sentence in texts.split(". ") if 20 < len(sentence) < 400]


def chats(known: list[str], size: int) -> Iterator[str]:
    """Lines of JSON, so many bytes in all."""
    chance = random.Random(0)

    def said(most: int) -> str:
        return ". ".join(chance.choices(known, k=chance.randint(1, most))) + "."

    while size > 0:
        messages = [{"role": "system", "content": SYSTEM}] if chance.random() < 1 / 3 else []
        for _ in range(chance.randint(1, 4)):
            messages += [{"role": "user", "content": said(4)}, {"role": "assistant", "content": said(12)}]
        line = json.dumps({"messages": messages}) + "\n"
        size -= len(line)
        yield line


def make_tokenizer(folder: Path, known: list[str]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(known, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    tokenizer.save_pretrained(folder / "plain")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "chatml")


def cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    spent, wall = cpu(), time.perf_counter()
    found = work()
    return {"cpu_s": round(cpu() - spent, 2), "wall_s": round(time.perf_counter() - wall, 3)}, found


def ours(folder: Path, template: str, workers: int) -> dict[str, Any]:
    """Cold; then warm, in the same process: imports and the tokenizer are there."""
    from transformers import AutoTokenizer

    from distft.data.corpus import Corpus
    from distft.data.sources import Source
    from distft.data.templates import Template
    from distft.data.token_cache import build_cache
    from distft.recipe.schema import Data
    from distft.tasks.causal_lm import CausalEncoder

    tokenizer, cache = AutoTokenizer.from_pretrained(folder / template), folder / f"cache-{os.getpid()}"

    def build() -> Corpus:
        encoder = CausalEncoder(Template.load(tokenizer, Data(train="x")), {}, 4096, False)
        source = Source(str(folder / "chats.jsonl"))
        return Corpus.open(build_cache(source, encoder, str(cache), lambda: None, lambda done: None, workers=workers))

    figures, corpus = timed(build)
    warm, _ = timed(build)
    shutil.rmtree(cache)
    return figures | {"records": corpus.meta.records, "tokens": corpus.meta.size, "warm_wall_s": warm["wall_s"]}


def bare(folder: Path, template: str) -> dict[str, Any]:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / template / "tokenizer.json"))
    texts = json.loads((folder / f"{template}.texts.json").read_text(encoding="utf-8"))

    def encode() -> int:
        parts = (texts[begin : begin + 256] for begin in range(0, len(texts), 256))
        return sum(
            len(found.ids) for part in parts for found in backend.encode_batch_fast(part, add_special_tokens=False)
        )

    figures, tokens = timed(encode)
    return figures | {"records": len(texts), "tokens": tokens}


def mapped(folder: Path, template: str) -> dict[str, Any]:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / template)
    if template == "plain":
        from distft.data.templates import DEFAULT

        tokenizer.chat_template = DEFAULT
    cache = folder / f"datasets-{os.getpid()}"
    loaded = datasets.load_dataset("json", data_files=str(folder / "chats.jsonl"), split="train", cache_dir=str(cache))

    def tokens_of(batch: dict[str, Any]) -> dict[str, Any]:
        texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in batch["messages"]]
        return {"input_ids": tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]}

    figures, found = timed(lambda: loaded.map(tokens_of, batched=True, remove_columns=["messages"]))
    shutil.rmtree(cache)
    return figures | {"records": len(found)}


def rendered(folder: Path, template: str) -> list[str]:
    from transformers import AutoTokenizer

    from distft.data.records import Record
    from distft.data.templates import Template
    from distft.recipe.schema import Data

    made = Template.load(AutoTokenizer.from_pretrained(folder / template), Data(train="x"))
    with (folder / "chats.jsonl").open(encoding="utf-8") as file:
        return [made.draft(Record("x", json.loads(line)), {}).text for line in file]


SIDES: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "bare": bare,
    "map": mapped,
    "1 process": lambda folder, template: ours(folder, template, 1),
    "2 processes": lambda folder, template: ours(folder, template, 2),
    "before": lambda folder, template: ours(folder, template, 1),
}


def one(folder: Path, template: str, side: str, before: Path | None) -> dict[str, Any]:
    root = before if side == "before" and before is not None else Path(__file__).resolve().parents[1]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--folder", str(folder)]
    done = subprocess.run([*command, "--template", template], env=environment, cwd=folder, stdout=-1, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a checkout of distft to compare with")
    parser.add_argument("--templates", nargs="+", default=["chatml", "plain"])
    parser.add_argument("--side", choices=list(SIDES), help="for its own processes")
    parser.add_argument("--template", help="for its own processes")
    parser.add_argument("--folder", type=Path, help="for its own processes")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(SIDES[args.side](args.folder, args.template)))
        return
    sides = [side for side in SIDES if side != "before" or args.before]
    with TemporaryDirectory() as temporary:
        folder, known = Path(temporary), sentences()
        (folder / "chats.jsonl").write_text("".join(chats(known, int(args.megabytes * 1e6))), encoding="utf-8")
        make_tokenizer(folder, known)
        for template in args.templates:
            (folder / f"{template}.texts.json").write_text(json.dumps(rendered(folder, template)), encoding="utf-8")
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(args.rounds):
                for side in sides:
                    runs[side].append(one(folder, template, side, args.before))
            for side, found in runs.items():
                medians = {key: statistics.median(run[key] for run in found) for key in found[0]}
                rate = {"records_per_cpu_s": round(medians["records"] / medians["cpu_s"])}
                spread = [min(run["cpu_s"] for run in found), max(run["cpu_s"] for run in found)]
                print(json.dumps({"template": template, "side": side} | medians | rate | {"cpu_s_range": spread}))


if __name__ == "__main__":
    main()
