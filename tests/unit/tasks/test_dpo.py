"""DPO against its formula, written out for one sequence at a time with a second model as the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModelForCausalLM

from distft.data.pairs import pair_of, pair_prompt_of
from distft.data.records import Document, Record
from distft.data.shown import ENDLESS, SILENT
from distft.data.templates import Template
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.recipe.tasks import DPO
from distft.run.folder import RunDir
from distft.tasks import dpo
from distft.tasks.causal_lm import Causal
from distft.tasks.dpo import EQUAL, MUTE, PAIRS, DPOEncoder, Preference, interval
from distft.tasks.dpo_reference import RecordedReference, Reference, pair_key, write
from distft.tasks.protocol import Setting
from distft.tasks.shared.generation import Decoding
from distft.tasks.shared.padding import DROPPED
from distft.training import reference_pass
from tests.unit.data.chat_templates import BYTES, CHATML

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
CPU = torch.device("cpu")
VOCABULARY = 64
BETA = 0.3
SIZES = {
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def make(kind: str, dropout: float = 0.0, vocabulary: int = VOCABULARY) -> Any:
    sizes: dict[str, Any] = dict(SIZES[kind])
    if kind == "gpt2":
        sizes |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    else:
        sizes |= {"intermediate_size": 48}
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, bos_token_id=None, eos_token_id=None, pad_token_id=None, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        for parameter in model.parameters():  # far from zero, so that every token matters to every other
            parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    return model.eval()


def moved(model: Any, by: float = 0.1) -> Any:
    """As after some steps: B of LoRA is not zero any more, nor anything else where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(by * torch.randn(parameter.shape))
    return model


def adapted(kind: str, model: Any, dropout: float = 0.0, **more: Any) -> Any:
    config = LoraConfig(r=4, target_modules=TARGETS[kind], lora_dropout=dropout, fan_in_fan_out=kind == "gpt2", **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return moved(get_peft_model(model, config)).eval()


def pair(seed: int, prompt: int, chosen: int, rejected: int) -> Document:
    """A prompt with two answers, random tokens all of them; of the answers most are targets."""
    chance = np.random.default_rng(seed)
    begin = chance.integers(0, VOCABULARY, prompt)
    columns: dict[str, Any] = {}
    for name, size in (("chosen", chosen), ("rejected", rejected)):
        columns[name] = np.concatenate([begin, chance.integers(0, VOCABULARY, size)]).astype(np.int32)
        columns[f"{name}_targets"] = np.concatenate([np.zeros(prompt, bool), chance.random(size) < 0.7])
        columns[f"{name}_targets"][-1] = True
    return Document(columns, prompt + max(chosen, rejected))


DOCUMENTS = [pair(1, 3, 4, 6), pair(2, 1, 9, 2), pair(3, 6, 1, 1)]
ROWS = [[document] for document in DOCUMENTS]


def make_task(model: Any, reference: Reference | None = None) -> Preference:
    return Preference(BETA, Causal(model.forward, flatten=False), reference)


def recorded(model: Any, path: Path) -> RecordedReference:
    """Written with the weights of `model`, a pair at a time, and read again."""
    task = make_task(model)
    write(path, [entry for row in ROWS for entry in task.values(model, task.collate([row], CPU))], "base")
    return RecordedReference.read(path)


# --- the formula ----------------------------------------------------------------------------------------------------


def plain_logp(model: Any, document: Document, side: str) -> torch.Tensor:
    tokens = [int(token) for token in document[side]]
    logits = model(input_ids=torch.tensor([tokens])).logits[0]
    total = torch.zeros(())
    for place, target in enumerate(document[f"{side}_targets"]):
        if target:
            scores = logits[place - 1]
            total = total + scores[tokens[place]] - (scores - scores.max()).exp().sum().log() - scores.max()
    return total


def plain_rewards(policy: Any, reference: Any, document: Document) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        before = [plain_logp(reference, document, side) for side in ("chosen", "rejected")]
    now = [plain_logp(policy, document, side) for side in ("chosen", "rejected")]
    return BETA * (now[0] - before[0]), BETA * (now[1] - before[1])


Found = tuple[float, dict[str, torch.Tensor]]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def plain(policy: Any, reference: Any, documents: list[Document]) -> Found:
    total = 0.0
    for document in documents:
        chosen, rejected = plain_rewards(policy, reference, document)
        loss = torch.log(1.0 + torch.exp(rejected - chosen))
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total, gradients(policy)


def through_task(task: Preference, model: Any, rows: list[list[Document]]) -> Found:
    loss = task.loss(model, task.collate(rows, CPU))[PAIRS]
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), gradients(model)


def assert_equal(got: Found, expected: Found) -> None:
    assert got[0] == pytest.approx(expected[0], abs=1e-5)
    assert got[1].keys() == expected[1].keys()
    scale = max(1.0, *(gradient.abs().max().item() for gradient in expected[1].values()))
    for name, gradient in expected[1].items():
        assert (got[1][name] - gradient).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("kind", list(SIZES))
def test_loss_and_gradients_with_the_adapter_off_as_reference(kind: str) -> None:
    base, task = make(kind), make_task(make(kind))
    model, same = adapted(kind, make(kind)), adapted(kind, make(kind))
    for documents in (DOCUMENTS[:1], DOCUMENTS):
        expected = plain(same, base, documents)
        assert expected[0] != pytest.approx(np.log(2.0) * len(documents), abs=1e-3)
        assert max(gradient.abs().max().item() for gradient in expected[1].values()) > 0.05
        assert_equal(through_task(task, model, [[document] for document in documents]), expected)


@pytest.mark.parametrize("kind", list(SIZES))
def test_loss_and_gradients_with_a_recorded_reference(kind: str, tmp_path: Path) -> None:
    base, model, same = make(kind), moved(make(kind)), moved(make(kind))
    task = make_task(model, recorded(base, tmp_path / "reference.safetensors"))
    assert_equal(through_task(task, model, ROWS), plain(same, base, DOCUMENTS))


ADAPTERS: dict[str, Any] = {
    "dora": LoraConfig(r=4, target_modules=["q_proj"], use_dora=True),
    "modules_to_save": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["down_proj"]),
    "adalora": AdaLoraConfig(init_r=4, target_r=2, target_modules=["q_proj"], total_step=20, tinit=2, tfinal=4),
}


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_every_adapter_can_be_switched_off(name: str, tmp_path: Path) -> None:
    base, model = make("llama"), moved(get_peft_model(make("llama"), ADAPTERS[name])).eval()
    trained = [parameter.requires_grad for parameter in model.parameters()]
    switched = through_task(make_task(base), model, ROWS)
    from_file = make_task(base, recorded(base, tmp_path / "reference.safetensors"))
    assert_equal(switched, through_task(from_file, model, ROWS))
    assert switched[0] == pytest.approx(plain(model, base, DOCUMENTS)[0], abs=1e-5)
    assert [parameter.requires_grad for parameter in model.parameters()] == trained


# --- batches --------------------------------------------------------------------------------------------------------


def test_shapes_and_counts() -> None:
    task = make_task(make("llama"))
    batch = task.collate([ROWS[0], [], ROWS[1], ROWS[2]], CPU)
    assert task.counts(batch) == {PAIRS: 3}
    assert task.factors({PAIRS: 3.0}) == {PAIRS: pytest.approx(1 / 3)}
    assert batch.attention_mask is not None
    assert batch.sequences.input_ids.shape == batch.attention_mask.shape == (6, 10)
    lengths = [7, 10, 7, 9, 3, 7]  # chosen, then rejected
    assert batch.attention_mask.sum(1).tolist() == lengths
    assert batch.attention_mask[:, 0].all()
    assert batch.useful_tokens == sum(lengths)
    assert batch.sequences.input_ids[3, :9].tolist() == DOCUMENTS[0]["rejected"].tolist()
    assert len(batch.sequences.keep) < 10  # no logits where nobody asks for them


@pytest.mark.parametrize("kind", list(SIZES))
def test_a_pair_is_worth_the_same_in_any_batch(kind: str) -> None:
    model, task = adapted(kind, make(kind)), make_task(make(kind))
    alone = [task.predict(model, task.collate([row], CPU))[0] for row in ROWS]
    together = task.predict(model, task.collate([ROWS[2], [], ROWS[0], ROWS[1]], CPU))
    for one, other in zip([alone[2], alone[0], alone[1]], together, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_pairs_in_one_row_without_a_mask_are_worth_the_same() -> None:
    """The form in which attention is told where documents begin."""
    model, task = adapted("llama", make("llama")), make_task(make("llama"))
    one_row = Preference(BETA, Causal(model.get_base_model().forward, flatten=True), None)
    batch = one_row.collate([ROWS[2], [], ROWS[0], ROWS[1]], CPU)
    assert batch.attention_mask is None
    assert batch.sequences.input_ids.shape == (1, batch.useful_tokens)
    expected = task.predict(model, task.collate([ROWS[2], [], ROWS[0], ROWS[1]], CPU))
    for one, other in zip(one_row.predict(model, batch), expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    empty = one_row.collate([[], []], CPU)
    assert one_row.loss(model, empty)[PAIRS].item() == 0.0


@pytest.mark.parametrize("rows", [[[]], [[], []]])
@pytest.mark.parametrize("has_adapter", [True, False])
def test_an_empty_batch_adds_nothing_and_can_be_differentiated(rows: list[Any], has_adapter: bool) -> None:
    base = make("llama")
    model = adapted("llama", make("llama")) if has_adapter else base
    task = make_task(base, None if has_adapter else RecordedReference.empty())
    batch = task.collate(rows, CPU)
    assert (task.counts(batch), batch.useful_tokens) == ({PAIRS: 0}, 0)
    assert (task.predict(model, batch), task.values(model, batch)) == ([], [])
    loss, found = through_task(task, model, rows)
    assert loss == 0.0
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(not gradient.any() for gradient in found.values())


# --- dropout and modes ----------------------------------------------------------------------------------------------


def test_the_policy_has_dropout_and_the_reference_has_none(tmp_path: Path) -> None:
    base, model = make("gpt2", dropout=0.3), adapted("gpt2", make("gpt2", dropout=0.3), dropout=0.3)
    switched = make_task(base)
    from_file = make_task(base, recorded(make("gpt2"), tmp_path / "reference.safetensors"))
    model.train()
    losses: list[float] = []
    for task in (switched, from_file, switched):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(losses) // 2)  # another one for the last
            losses.append(task.loss(model, task.collate(ROWS, CPU))[PAIRS].item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)  # the same dropout: the reference drew nothing
    assert abs(losses[2] - losses[0]) > 1e-2


def test_modes_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = adapted("gpt2", make("gpt2"), dropout=0.3), make_task(make("gpt2"))
    model.train()
    model.get_base_model().transformer.h[1].eval()  # somebody's own choice
    before = [module.training for module in model.modules()]
    batch = task.collate(ROWS, CPU)
    task.loss(model, batch)
    task.values(model, batch)
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
    monkeypatch.setattr(task, "_logps", lambda model, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        task.loss(model, batch)
    assert [module.training for module in model.modules()] == before
    assert not any(module.disable_adapters for module in model.modules() if isinstance(module, BaseTunerLayer))


# --- predictions and scores -----------------------------------------------------------------------------------------


def test_rewards_are_those_of_the_formula() -> None:
    base, model = make("llama"), adapted("llama", make("llama"))
    task = make_task(base)
    outcomes = task.predict(model, task.collate(ROWS, CPU))
    for document, outcome in zip(DOCUMENTS, outcomes, strict=True):
        chosen, rejected = (reward.item() for reward in plain_rewards(model, base, document))
        expected = {"chosen": chosen, "rejected": rejected, "loss": np.log1p(np.exp(rejected - chosen)), "targets": 1}
        assert outcome == pytest.approx(expected, abs=1e-5)
    json.dumps(outcomes)


def test_scores() -> None:
    task = make_task(make("llama"))
    outcomes = [{"chosen": 0.5, "rejected": margin, "loss": 0.0, "targets": 1} for margin in [0.0] * 8 + [0.5, 1.0]]
    scores = task.score(outcomes).scores
    expected = {"reward_accuracy": 0.8, "reward_accuracy_low": 0.490162, "reward_accuracy_high": 0.943318}
    assert scores == pytest.approx({**expected, "reward_margin": 0.35}, abs=1e-6)
    assert task.score([]).scores == {}


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 300), (300, 300), (150, 300)])
def test_the_interval_holds_the_share(right: int, count: int) -> None:
    low, high = interval(right, count)
    assert 0.0 <= low <= right / count <= high + 1e-12 <= 1.0 + 1e-12
    for end in {low, high} - {0.0, 1.0}:  # from where the share is 1.96 standard deviations away
        assert abs(right / count - end) == pytest.approx(1.959964 * (end * (1 - end) / count) ** 0.5, abs=1e-6)


# --- the recorded reference -----------------------------------------------------------------------------------------


def test_a_pair_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    found = recorded(make("llama"), path)
    again = Document(DOCUMENTS[1].columns, DOCUMENTS[1].size, record=7, draw=3)
    assert found.of(again).tolist() == found.logps(DOCUMENTS)[1].tolist()
    assert (found.logps(DOCUMENTS).shape, found.logps(DOCUMENTS).dtype) == ((3, 2), torch.float32)
    other = dict(DOCUMENTS[1].columns)
    other["chosen_targets"] = ~other["chosen_targets"]
    with pytest.raises(UserError, match=r"record 5 .* not recorded.* data\.eval of a new run"):
        found.of(Document(other, DOCUMENTS[1].size, record=5))
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    columns = {name: DOCUMENTS[1][name.replace(side, swapped[side])] for name in other for side in [name.split("_")[0]]}
    assert len({pair_key(DOCUMENTS[1]), pair_key(Document(other, 10)), pair_key(Document(columns, 10))}) == 3


class Sized(list[Document]):
    """As far as a corpus is asked."""

    def document(self, index: int) -> Document:
        return self[index]


@pytest.mark.parametrize(
    ("base", "pairs", "wanted"),
    [("base", ROWS, True), ("another", ROWS, False), ("base", [*ROWS, [pair(9, 2, 3, 4)]], False)],
    ids=["as it was", "another starting model", "a pair that came later"],
)
def test_what_was_recorded_of_another_model_or_without_a_pair_does_not_count(
    tmp_path: Path, base: str, pairs: list[list[Document]], wanted: bool
) -> None:
    run = RunDir(tmp_path)
    recorded(make("llama"), run.reference)
    documents = [document for row in pairs for document in row]
    corpora: Any = [Sized(documents)]
    assert reference_pass.is_recorded(run, corpora, base, step=0) is wanted
    if not wanted:  # and after the first step it is too late
        with pytest.raises(UserError, match=r"another starting model|was not recorded|were not recorded"):
            reference_pass.is_recorded(run, corpora, base, step=1)
    run.reference.unlink()
    assert not reference_pass.is_recorded(run, corpora, base, step=0)


def test_writing_keeps_one_of_each_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    last = 2**64 - 1
    write(path, [(last, -3.0, -4.0), (5, -1.0, -2.0), (5, -1.0, -2.0)], "base")
    write(path, [(last, -3.0, -4.0), (5, -1.5, -2.0), (5, -1.5, -2.0)], "base")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    found = RecordedReference.read(path)
    assert (found._keys.tolist(), found._logps.tolist()) == ([5, last], [[-1.5, -2.0], [-3.0, -4.0]])


@pytest.mark.parametrize("content", [None, b"", b"not a safetensors file, but long enough to be taken for one"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "reference.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read .* start a new run"):
        RecordedReference.read(path)


# --- records --------------------------------------------------------------------------------------------------------

QUESTION = {"role": "user", "content": "how are you?"}
FINE = {"role": "assistant", "content": "the fox jumps"}
BAD = {"role": "assistant", "content": "the dog"}
LLAMA_FACTORY = {"from": "gpt", "value": "the fox jumps"}, {"from": "gpt", "value": "the dog"}
SHAPES: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "how are you?", "chosen": "the fox jumps", "rejected": "the dog"},
    "messages": {"prompt": [QUESTION], "chosen": FINE, "rejected": [BAD]},
    "prompt repeated": {"prompt": "how are you? ", "chosen": [QUESTION, FINE], "rejected": [QUESTION, BAD]},
    "conversations": {"chosen": [QUESTION, FINE], "rejected": [QUESTION, BAD]},
    "columnar": {"prompt": None, "messages": [QUESTION], "chosen": [FINE], "rejected": {**BAD, "name": None}},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "how are you?"}],
        "chosen": LLAMA_FACTORY[0],
        "rejected": LLAMA_FACTORY[1],
    },
}


def encoder(row_tokens: int = 512, fields: dict[str, str] | None = None) -> DPOEncoder:
    return DPOEncoder(Template(BYTES, CHATML), fields or {}, row_tokens)


def record(**fields: Any) -> Record:
    return Record("a.jsonl:1", fields)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_all_shapes_of_a_record_become_the_same(shape: str) -> None:
    parsed = pair_of(record(**SHAPES[shape]), {})
    assert (parsed.prompt.messages, parsed.chosen, parsed.rejected) == ([QUESTION], [FINE], [BAD])
    [document] = encoder().encode(record(**SHAPES[shape])).documents
    assert BYTES.decode(document["chosen"]) == (
        "<|im_start|>user\nhow are you?<|im_end|>\n<|im_start|>assistant\nthe fox jumps<|im_end|>\n"
    )
    for side, text in (("chosen", "the fox jumps<|im_end|>"), ("rejected", "the dog<|im_end|>")):
        assert BYTES.decode(document[side][document[f"{side}_targets"]]) == text
    assert (document.size, document.targets) == (max(len(document["chosen"]), len(document["rejected"])), 1)
    dtypes = {name: document[name].dtype for name in document.columns}
    assert dtypes == {name: np.dtype(dtype) for name, dtype in DPOEncoder.columns.items()}


def test_what_both_conversations_begin_with_is_not_learned() -> None:
    before, after = {"role": "assistant", "content": "hello"}, {"role": "user", "content": "and you?"}
    chosen, rejected = [QUESTION, before, after, FINE], [QUESTION, before, after, BAD]
    [document] = encoder().encode(record(chosen=chosen, rejected=rejected)).documents
    assert BYTES.decode(document["chosen"][document["chosen_targets"]]) == "the fox jumps<|im_end|>"
    longer = pair_of(record(chosen=[QUESTION, FINE], rejected=[QUESTION, FINE, after, BAD]), {})
    assert (longer.prompt.messages, longer.rejected) == ([QUESTION], [FINE, after, BAD])


def test_renamed_columns() -> None:
    fields = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    found = encoder(fields=fields).encode(record(q="how are you?", good="the fox jumps", bad="the dog", prompt="no"))
    plain_one = encoder().encode(record(**SHAPES["texts"]))
    assert pair_key(found.documents[0]) == pair_key(plain_one.documents[0])
    assert encoder(fields=fields).digest != encoder().digest


def test_records_that_teach_nothing_are_dropped() -> None:
    texts = SHAPES["texts"]
    assert encoder().encode(record(**{**texts, "rejected": texts["chosen"]})).notes == {EQUAL: 1}
    same = [QUESTION, FINE]
    assert encoder().encode(record(chosen=same, rejected=same)).notes == {EQUAL: 1}
    size = encoder().encode(record(**texts)).documents[0].size
    assert len(encoder(size).encode(record(**texts)).documents) == 1
    assert encoder(size - 1).encode(record(**texts)).notes == {DROPPED: 1}
    no_end = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    mute = DPOEncoder(Template(BYTES, no_end), {}, 512)
    assert mute.encode(record(**{**texts, "chosen": ""})).notes == {SILENT: 1, ENDLESS: 1, MUTE: 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "has no column 'rejected'"),
        ({"chosen": "a", "rejected": "b"}, "the prompt is missing; give"),
        ({"chosen": [QUESTION, FINE], "rejected": [BAD, QUESTION]}, "begin differently; give"),
        ({"prompt": "other", "chosen": [QUESTION, FINE], "rejected": [QUESTION, BAD]}, "without this prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected must be .*, not null"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "rejected must be .*, not int"),
        ({"prompt": "a", "chosen": "b", "rejected": [{"role": "judge"}]}, r"rejected\[0\] has the role 'judge'"),
        ({"prompt": "a", "chosen": FINE, "rejected": QUESTION}, "rejected must be an answer of the assistant"),
        ({"prompt": "a", "chosen": "b", "rejected": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_records_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^a\.jsonl:1.*{message}"):
        encoder().encode(record(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        *SHAPES.values(),
        {"prompt": "how are you?"},
        {"prompt": [QUESTION]},
        {"messages": [QUESTION, FINE]},
        {"instruction": "how are you?", "output": "well"},
    ],
)
def test_a_prompt_is_what_comes_before_the_answers(fields: dict[str, Any]) -> None:
    assert [message["content"].strip() for message in pair_prompt_of(record(**fields), {}).messages] == ["how are you?"]


def test_a_prompt_alone_is_one_whatever_the_pairs_were_in() -> None:
    asked = pair_prompt_of(record(prompt="how are you?"), {"conversations": "dialogue"})
    assert [message["content"] for message in asked.messages] == ["how are you?"]


def test_a_prompt_alone_is_answered() -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"path": "none"},
            "task": {"type": "dpo"},
            "data": {"train": "a.jsonl"},
            "adapter": {"type": "lora"},
            "train": {"steps": 1},
        }
    )
    model = make("llama", vocabulary=len(BYTES))
    spec = dpo.spec(DPO(type="dpo"), {})
    task = spec.build(Setting(recipe, (), lambda: BYTES, Decoding(max_tokens=4)), model)
    assert task.reference is None
    records = [record(prompt="how are you?"), record(prompt="the quick brown fox")]
    documents = [encoder().encode(one, answered=False).documents[0] for one in records]
    assert BYTES.decode(documents[0]["chosen"]).endswith("<|im_start|>assistant\n")
    assert [(d.targets, d["chosen_targets"].sum(), len(d["rejected"])) for d in documents] == [(0, 0, 0)] * 2
    together = task.predict(model, task.collate([[d] for d in documents], CPU))
    assert together == [task.predict(model, task.collate([[d]], CPU))[0] for d in documents]
    assert all(outcome.keys() == {"answer"} and outcome["answer"] for outcome in together)


@pytest.mark.parametrize(
    ("adapter", "is_recorded"),
    [
        ({"type": "none"}, True),
        ({"type": "partial", "train": ["*"]}, True),
        ({"type": "lora", "from": "trained"}, True),  # what it begins with belongs to the starting model
        ({"type": "lora"}, False),
        ({"type": "adalora"}, False),
    ],
)
def test_which_runs_need_a_recorded_reference(adapter: dict[str, Any], is_recorded: bool) -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"path": "none"},
            "task": {"type": "dpo"},
            "data": {"train": "a.jsonl"},
            "adapter": adapter,
            "train": {"steps": 1},
        }
    )
    model = make("llama")
    task = dpo.spec(DPO(type="dpo"), {}).build(Setting(recipe, (), lambda: BYTES), model)
    assert (task.reference is not None) is is_recorded
    if is_recorded:
        with pytest.raises(UserError, match="not recorded"):
            task.loss(model, task.collate(ROWS, CPU))


def test_texts_for_a_tokenizer() -> None:
    texts = list(dpo.spec(DPO(type="dpo"), {}).texts(record(**SHAPES["conversations"])))
    assert texts == ["how are you?\nthe fox jumps", "the dog"]
