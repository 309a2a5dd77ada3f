"""What a run leaves for others: plain PEFT and transformers must see the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.e2e.command import checkpoints, eval_losses
from tests.e2e.conftest import Made
from tests.e2e.models import here, logits, of_base, ours, tensors, with_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers warn about is theirs


def test_final_adapter_in_peft(unbroken: Made) -> None:
    final = unbroken.run / "final"
    expected = ours(unbroken.run)
    torch.testing.assert_close(with_adapter(unbroken.run, final), expected, rtol=0, atol=1e-6)
    assert (logits(of_base(unbroken.run, torch.float32)) - expected).abs().max() > 1e-3  # training changed something
    assert all(tensor.numel() for tensor in tensors(final).values())
    assert all("lora_" in name for name in tensors(final))


def test_exported_adapter_in_peft(
    unbroken: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapter"
    ended = here(monkeypatch, capfd, "export", unbroken.run, out)
    assert ended.code == 0
    assert str(out) in ended.out
    torch.testing.assert_close(with_adapter(unbroken.run, out), ours(unbroken.run), rtol=0, atol=1e-6)
    assert here(monkeypatch, capfd, "export", unbroken.run, out).code == 0  # an earlier export is replaced


def test_merged_in_transformers(unbroken: Made, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    ended = unbroken.place.run("export", unbroken.run, out, "--merged")  # a process of its own, as a user has
    assert ended.code == 0, ended.err
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    torch.testing.assert_close(logits(merged), ours(unbroken.run), rtol=0, atol=1e-4)
    assert not any("lora" in name for name in tensors(out))
    assert all(tensor.numel() for tensor in tensors(out).values())
    chat = [{"role": "user", "content": "What of the lamp?"}]
    assert "lamp" in AutoTokenizer.from_pretrained(out).apply_chat_template(chat, tokenize=False)


def test_full_model_in_transformers(
    full: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "model"
    assert here(monkeypatch, capfd, "export", full.run, out).code == 0
    expected = ours(full.run)
    for folder in (full.run / "final", out):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(logits(model), expected)
        assert all(tensor.numel() for tensor in tensors(folder).values())
    assert not torch.equal(logits(of_base(full.run, torch.bfloat16)), expected)


def test_nothing_to_merge(
    full: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = here(monkeypatch, capfd, "export", full.run, tmp_path / "model", "--merged")
    assert ended.code == 2
    assert "--merged" in ended.sentence
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_refused(
    unbroken: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    ended = here(monkeypatch, capfd, "export", unbroken.run, tmp_path)
    assert ended.code == 2
    assert str(tmp_path) in ended.sentence
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_with_a_config_of_something_else_is_refused(
    unbroken: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tsconfig.json").write_text("{}")
    (tmp_path / "thesis.txt").write_text("three years of work")
    ended = here(monkeypatch, capfd, "export", unbroken.run, tmp_path)
    assert ended.code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt", "tsconfig.json"]


def test_an_unfinished_run_gives_its_newest_checkpoint(
    preempted: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from distft.checkpoint.state import Stored

    out = tmp_path / "adapter"
    assert here(monkeypatch, capfd, "export", preempted.run, out).code == 0
    written = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors(out).items()}
    older, newest = (dict(Stored(f).weights()) for f in checkpoints(preempted.run))
    plain = {name.removeprefix("base_model.model.").replace(".default", ""): tensor for name, tensor in newest.items()}
    assert written.keys() == plain.keys()
    assert all(torch.equal(written[name], plain[name]) for name in plain)
    assert any(not torch.equal(older[name], newest[name]) for name in newest)


def test_predict_file_of_an_unfinished_run(preempted: Made, tmp_path: Path) -> None:
    source, out = tmp_path / "questions.txt", tmp_path / "answers.jsonl"
    source.write_text("What of the lamp?\n\nWhat of the bike?\n")
    ended = preempted.place.run(
        "predict", preempted.run, "--input", source, "--output", out, "--max-tokens", "6"
    )  # a process of its own, as a user has
    assert ended.code == 0, ended.err
    assert f"3 predictions in {out}" in ended.out
    answers = [json.loads(line) for line in out.read_text().splitlines()]  # line i of each belong together
    assert [list(answer) for answer in answers] == [["answer"]] * 3
    assert all(isinstance(answer["answer"], str) for answer in answers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "questions.txt"]


def test_predict_prompt(
    unbroken: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("predict", unbroken.run, "--prompt", "What of the lamp?", "--max-tokens", "8")
    ended = here(monkeypatch, capfd, *command)
    assert ended.code == 0
    assert ended.out.strip()
    assert here(monkeypatch, capfd, *command).out == ended.out  # temperature 0
    source, out = tmp_path / "records.jsonl", tmp_path / "answers.jsonl"
    source.write_text(json.dumps({"prompt": "What of the lamp?", "completion": "never shown"}) + "\n")
    assert (
        here(monkeypatch, capfd, "predict", unbroken.run, "--input", source, "--output", out, "--max-tokens", "8").code
        == 0
    )
    assert json.loads(out.read_text())["answer"] == ended.out.strip()


def test_predict_wants_one_source(
    unbroken: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = here(monkeypatch, capfd, "predict", unbroken.run, "--prompt", "a", "--input", tmp_path / "b.txt")
    assert ended.code == 2
    assert "--prompt" in ended.sentence


def test_no_checkpoint_yet(
    unbroken: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = unbroken.copy("no-checkpoint")
    for folder in checkpoints(run):
        folder.rename(tmp_path / folder.name)
    ended = here(monkeypatch, capfd, "export", run, tmp_path / "out")
    assert ended.code == 2
    assert "no checkpoint yet" in ended.sentence
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_the_folder_one_is_in(
    unbroken: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "here"
    out.mkdir()
    monkeypatch.chdir(out)
    assert here(monkeypatch, capfd, "export", unbroken.run, ".").code == 0
    assert (out / "adapter_model.safetensors").exists()


def test_eval_is_the_evaluation_of_the_run(
    unbroken: Made, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = unbroken.copy("evaluated")
    ended = here(monkeypatch, capfd, "eval", run)
    assert ended.code == 0, ended.err
    [in_the_run] = eval_losses(run)
    scores = json.loads((run / "evaluations" / "eval.json").read_text())["scores"]
    assert scores["loss"] == pytest.approx(in_the_run, abs=1e-5)
    assert f"{in_the_run:.4f}" in ended.out
    assert sorted(path.name for path in (run / "evaluations").iterdir()) == ["eval.json"]


def test_eval_passes_over_what_training_would_drop(
    unbroken: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = unbroken.copy("evaluated-elsewhere")
    (tmp_path / "holes.jsonl").write_text('{"text": "the lamp"}\n{"text": ""}\n')
    assert here(monkeypatch, capfd, "eval", run, "--data", tmp_path / "holes.jsonl").code == 0
