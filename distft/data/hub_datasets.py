"""Data sets of the hub: the files of one configuration, and their rows by `datasets`, from the hub's cache alone.

The library's own way asks the hub at every start, and where that fails takes whatever it has loaded last of a data set,
of any commit. So it is given a folder here, in which all that a configuration needs is known to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distft.data import hub
from distft.data.hub_errors import about
from distft.errors import UserError, first_line, no_space
from distft.run.commits import Repository
from distft.run.files import complete_folder

CARD, OTHER_CARD = "README.md", ".huggingface.yaml"
DESCRIPTIONS = (CARD, OTHER_CARD, "dataset_infos.json")
ALWAYS = ".gitattributes"  # the client warns if a pattern finds nothing
CONFIGS, INFOS = "configs", "dataset_info"  # keys of a card

Config = Mapping[str, Any]


def load(repository: Repository, config: str | None, split: str) -> Any:
    """A split of a data set of `datasets`.

    Args:
        config: name of its configuration; None: the only one, or the default.

    Raises:
        UserError: there is no such data set, revision, configuration or split, or it cannot be downloaded or read.
    """
    import datasets

    commit = hub.commit_of(repository)
    card = card_of(hub.fetch(repository, commit, [*DESCRIPTIONS, ALWAYS]))
    chosen = chosen_of(configs_of(card), config, repository)
    only = None if chosen is None else [*DESCRIPTIONS, *patterns_of(chosen)]
    folder = hub.fetch(repository, commit, only)
    if chosen is not None and len(configs_of(card)) > 1:
        # `datasets` also looks for the files of the first configuration, whichever is asked for
        root = Path(datasets.config.HF_DATASETS_CACHE) / "distft" / repository.name.replace("/", "--")
        folder = alone(folder, card, chosen, root / str(chosen["config_name"]) / commit)
    try:
        return datasets.load_dataset(str(folder), None if chosen is None else chosen["config_name"], split=split)
    except Exception as error:  # noqa: BLE001 - of datasets, or of the file formats
        if is_full(error):
            where = datasets.config.HF_DATASETS_CACHE
            raise UserError(
                f"{about(repository)} does not fit on the disk of the cache of `datasets` ({where}); free some space, "
                "or set HF_DATASETS_CACHE"
            ) from None
        which = f"split {split!r}" + (f" and data.hub_config {config!r}" if config else "")
        raise UserError(f"{about(repository)} cannot be loaded with {which}: {first_line(error)}") from None


def card_of(folder: Path) -> dict[str, Any]:
    """What the cards of a data set say in YAML; empty if there is none, or nothing in it."""
    found: dict[str, Any] = {}
    for name in (CARD, OTHER_CARD):
        try:
            text = (folder / name).read_text(encoding="utf-8")
            if name == CARD:
                text = text.removeprefix("---").split("\n---", 1)[0] if text.startswith("---") else ""
            read = yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError):  # what is wrong with it is said where the data are loaded
            continue
        found |= read if isinstance(read, dict) else {}
    return found


def configs_of(card: Mapping[str, Any]) -> list[Config]:
    """The configurations of a card, in its order."""
    listed = card.get(CONFIGS)
    return [one for one in listed if isinstance(one, dict) and "config_name" in one] if isinstance(listed, list) else []


def chosen_of(configs: Sequence[Config], name: str | None, repository: Repository) -> Config | None:
    """The configuration that is asked for; None: the card names none, so there is one of all files.

    Raises:
        UserError: it has none of that name, or several and no default.
    """
    if not configs:
        return None
    if name is None:
        fit = [one for one in configs if len(configs) == 1 or one["config_name"] == "default" or one.get("default")]
    else:
        fit = [one for one in configs if one["config_name"] == name]
    if not fit:
        names = ", ".join(str(one["config_name"]) for one in configs)
        wrong = "has several configurations" if name is None else f"has no configuration {name!r}"
        raise UserError(f"{about(repository)} {wrong}; set data.hub_config to one of {names}")
    return fit[0]


def patterns_of(config: Config) -> list[str]:
    """Patterns, as `snapshot_download` has them, for the files of a configuration and perhaps some more."""
    folder, named = str(config.get("data_dir") or ""), list(_patterns(config.get("data_files")))
    if not named:
        return [f"{folder.strip('/')}/*"] if folder else ["*"]
    found = []
    for pattern in named:
        path = "/".join(part for part in f"{folder}/{pattern}".split("/") if part not in ("", "."))
        found += [path, path.replace("**/", "")]  # which may stand for no folder at all
    return found


def _patterns(files: Any) -> Iterator[str]:
    """Of what a card may say: a pattern, or a list of them or of splits with their `path`."""
    if isinstance(files, str):
        yield files
    elif isinstance(files, dict):
        yield from _patterns(files["path"] if "path" in files else list(files.values()))
    elif isinstance(files, list):
        for one in files:
            yield from _patterns(one)


def alone(folder: Path, card: Mapping[str, Any], config: Config, place: Path) -> Path:
    """A folder like a snapshot of which one configuration is all there is: links to its files, and a card about it."""
    infos = card.get(INFOS)
    if isinstance(infos, list):
        infos = [one for one in infos if one.get("config_name", "default") == config["config_name"]]
    about_it = {**card, CONFIGS: [config], INFOS: infos}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (CARD, OTHER_CARD)]
    if not all((place / file.relative_to(folder)).exists() for file in files):
        with complete_folder(place) as staged:
            for file in files:
                link = staged / file.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
            text = yaml.safe_dump({key: value for key, value in about_it.items() if value}, sort_keys=False)
            (staged / CARD).write_text(f"---\n{text}---\n", encoding="utf-8")
    return place


def is_full(error: BaseException | None) -> bool:
    """Whether a disk was full, according to an error or what it came from."""
    while error is not None:
        if isinstance(error, OSError) and (no_space(error) or "Not enough disk space" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
