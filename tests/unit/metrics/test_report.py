"""Reports on the terminal, as JSON and as pictures."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from distft.metrics import report
from distft.metrics.scores import Confusion, Curve, Report, ScoreTable, merged, score_one_label

COLUMNS = ("precision", "recall", "F1", "support")


def sample() -> Report:
    truth, predicted = ["bad", "good", "good"], ["bad", "good", "bad"]
    return score_one_label(truth, predicted, [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], ["bad", "good"])


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG in pixels."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_json_has_everything() -> None:
    content = json.loads(json.dumps(report.as_json(merged({"a": sample()}))))
    assert content["scores"]["a.accuracy"] == pytest.approx(2 / 3)
    assert content["parts"]["a"]["confusion"] == {"labels": ["bad", "good"], "counts": [[1, 0], [1, 1]]}
    assert content["parts"]["a"]["table"]["rows"][1] == ["good", [1.0, 0.5, pytest.approx(2 / 3), 2]]
    assert content["parts"]["a"]["curves"][0]["name"] == "bad"


def test_write(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = report.write(folder, "dev", sample())
    assert [path.name for path in paths] == ["dev.json", "dev-confusion.png", "dev-precision-recall.png"]
    assert sorted(folder.iterdir()) == sorted(paths)  # nothing temporary is left
    assert json.loads(paths[0].read_text(encoding="utf-8")) == json.loads(json.dumps(report.as_json(sample())))
    assert all(min(size(path)) > 300 for path in paths[1:])
    assert report.write(folder, "dev", sample()) == paths


def test_write_parts(tmp_path: Path) -> None:
    paths = report.write(tmp_path, "dev", merged({"topic": sample(), "similarity": Report({"mse": 1.0})}))
    assert [path.name for path in paths] == [
        "dev.json",
        "dev-topic.json",
        "dev-topic-confusion.png",
        "dev-topic-precision-recall.png",
        "dev-similarity.json",
    ]


@pytest.mark.parametrize("labels", [1, 21, 150])
def test_pictures_of_any_number_of_labels(tmp_path: Path, labels: int) -> None:
    names = ["$x_y$", "日本", "_hidden", "long " * 30, *map(str, range(labels))][:labels]
    confusion = Confusion(names, [[int(x == y) * x for x in range(labels)] for y in range(labels)])
    curves = [Curve(name, [0.0, 0.5, 1.0], [1.0, 0.7, 0.2]) for name in names]
    for path in report.write(tmp_path, "$many$", Report({}, None, confusion, curves))[1:]:
        assert all(300 < pixels < 2500 for pixels in size(path))


def test_show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    rows: list[tuple[str, list[float | int]]] = [
        ("[b]odd[/b]", [0.5, 0.25, 1 / 3, 4]),
        ("macro avg", [0.5, 0.25, 1 / 3, 4]),
    ]
    topic = Report({"accuracy": 0.98765}, ScoreTable("labels", COLUMNS, rows))
    report.show("dev", merged({"topic": topic, "other": Report({})}))
    shown = capsys.readouterr().out
    lines = [
        [cell for cell in line.replace("│", " ").replace("┃", " ").split("  ") if cell] for line in shown.splitlines()
    ]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["accuracy", "0.9877"] in cells
    assert list(COLUMNS) in cells
    assert ["[b]odd[/b]", "0.5000", "0.2500", "0.3333", "4"] in cells
    assert shown.index("0.9877") < shown.index("precision") < shown.index("[b]odd") < shown.index("macro avg")
    assert "topic.accuracy" not in shown  # it is shown with its task
    assert "dev, topic" in shown
    assert "dev, other: nothing to score" in shown


def test_show_keeps_scores_that_no_part_has(capsys: pytest.CaptureFixture[str]) -> None:
    report.show("dev", Report({"loss": 2.0, "topic.loss": 1.5, "topic.f1": 0.5}, parts={"topic": Report({"f1": 0.5})}))
    shown = capsys.readouterr().out
    assert "topic.loss" in shown
    assert "topic.f1" not in shown
