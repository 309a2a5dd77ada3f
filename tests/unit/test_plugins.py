"""What installed packages add: found by name, one at a time, and no name twice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distft import plugins
from distft.errors import UserError

GROUP = plugins.LAUNCHERS


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, code: str, launchers: dict[str, str]) -> None:
    """A distribution `package` of one module, found as pip's are until the test ends."""
    site, module = folder / f"site-{package}", package.replace("-", "_")
    about = site / f"{module}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    points = "".join(f"{name} = {value}\n" for name, value in launchers.items())
    (about / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")
    (site / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(site))


def test_the_own_launchers_are_found() -> None:
    assert {"local", "slurm"} <= set(plugins.names(GROUP))
    assert plugins.find(GROUP, "local", "launcher").__name__ == "LocalLauncher"


def test_only_the_one_that_is_named_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "cloud-a", "VALUE = 3\n", launchers={"a": "cloud_a:VALUE"})
    install(tmp_path, monkeypatch, "cloud-b", "raise SystemExit('imported')\n", launchers={"b": "cloud_b:VALUE"})
    assert plugins.find(GROUP, "a", "launcher") == 3
    assert plugins.names(GROUP) == ["a", "b", "local", "slurm"]
    assert "cloud_b" not in sys.modules


def test_an_unknown_name_is_told_the_nearest_and_all() -> None:
    with pytest.raises(UserError) as caught:
        plugins.find(GROUP, "slrum", "launcher")
    assert str(caught.value) == "no launcher is called 'slrum'; did you mean slurm? installed: local, slurm"
    with pytest.raises(UserError, match=r"^no tracker is called 'x'; installed: none$"):
        plugins.find("distft.nothing", "x", "tracker")


def test_a_name_of_two_packages_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "cloud-c", "VALUE = 3\n", launchers={"c": "cloud_c:VALUE"})
    install(tmp_path / "other", monkeypatch, "cloud-c", "VALUE = 3\n", launchers={"c": "cloud_c:VALUE"})
    assert plugins.find(GROUP, "c", "launcher") == 3  # one package, found twice
    install(tmp_path, monkeypatch, "zoo-cloud", "", launchers={"c": "json:loads"})
    with pytest.raises(UserError, match=r"^the packages cloud-c and zoo-cloud both provide a launcher 'c'; uninst"):
        plugins.find(GROUP, "c", "launcher")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import gone_for_good", "ModuleNotFoundError: No module named 'gone_for_good'"),
        ("", "has no attribute 'VALUE'"),
    ],
)
def test_a_package_that_cannot_be_imported_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str
) -> None:
    monkeypatch.delitem(sys.modules, "cloud_d", raising=False)
    install(tmp_path, monkeypatch, "cloud-d", code, launchers={"d": "cloud_d:VALUE"})
    with pytest.raises(UserError) as caught:
        plugins.find(GROUP, "d", "launcher")
    assert "the launcher 'd' of the package cloud-d cannot be loaded from cloud_d:VALUE (" in str(caught.value)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
