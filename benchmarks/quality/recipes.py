"""The commands that the recipes' comments give for real data, as they stand there, for a few steps each.

    python benchmarks/quality/recipes.py FOLDER        minutes; FOLDER holds the runs and what they said

A command counts as working when it trains, evaluates and exports. One whose data are not in ../shared/data is skipped.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml
from commands import DISTFT, ROOT, table

STEPS = 4
SHORT = f"train.steps={STEPS} train.epochs=null train.warmup=1 train.eval_every={STEPS}"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(DISTFT).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}


def shell_of(recipe: Path) -> str | None:
    """What the comments have people type: after a colon, or the lines that are set in; some need no override."""
    if "shared/data" in yaml.safe_dump(yaml.safe_load(recipe.read_text())):
        return f"distft train configs/{recipe.name}"
    comments = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    said = "\n".join(re.sub(r"^#   ?", "", line) for line in comments if line.startswith("#   "))
    if "distft train" not in said:
        said = "\n".join(found[0] for line in comments if (found := re.search(r"distft train .*", line)))
    return said or None


def tried(recipe: Path, folder: Path) -> tuple[str, str]:
    """(what came of it, the last line that it printed)."""
    shell = shell_of(recipe)
    if shell is None:
        return "names none", ""
    if missing := [path for path in re.findall(r"[\w./-]+\.json\b", shell) if not (ROOT / path).exists()]:
        return "skipped", f"{missing[0]} is not there"
    run = folder / recipe.stem
    shell = re.sub(r"(?m)^distft train .*", rf"\g<0> {SHORT} --run-dir={run}", shell)
    done = subprocess.run(
        ["bash", "-e", "-c", shell], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    (folder / f"{recipe.stem}.log").write_text(f"{shell}\n{done.stdout}{done.stderr}")
    last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-1]
    return ("works" if done.returncode == 0 and (run / "final").is_dir() else f"exit code {done.returncode}"), last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True)
    rows = []
    for recipe in sorted((ROOT / "configs").glob("*.yaml")):
        rows.append([recipe.name, *tried(recipe, folder)])
        print(f"{recipe.name}: {rows[-1][1]} ({rows[-1][2]})", flush=True)
    print(table(["recipe", "", "said at last"], rows))
    return 1 if any(row[1].startswith("exit code") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
