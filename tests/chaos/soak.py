"""`make soak TRIALS=150 SEED=1`: trials of two kills each, drawn from a seed; FOLDER/report.json has every one.

python -m tests.chaos.soak FOLDER --seed 1 --trials 150
python -m tests.chaos.soak FOLDER --seed 1 --only 17       one of them again
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from tests.chaos.plan import trial
from tests.chaos.trial import Ground, Result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to go on with a soak")
    parser.add_argument("--only", type=int)
    parser.add_argument("--workers", type=int, default=2, help="trials side by side")
    args = parser.parse_args()
    ground, results = Ground(args.folder.absolute()), []
    first, last = (args.first, args.first + args.trials) if args.only is None else (args.only, args.only + 1)

    def one(number: int) -> tuple[Result, float]:
        began = time.monotonic()
        return ground.run(trial(args.seed, number)), time.monotonic() - began

    with ThreadPoolExecutor(args.workers) as pool:
        for done in as_completed([pool.submit(one, number) for number in range(first, last)]):
            result, seconds = done.result()
            results.append(result)
            kills = "; ".join(map(str, result.trial.kills))
            verdict = f"WRONG: {'; '.join(result.wrong)}" if result.wrong else "as if nothing had happened"
            print(
                f"{result.trial.number} {result.trial.configuration}: {kills}: {verdict} ({seconds:.0f} s)", flush=True
            )
            report(args.folder, args.seed, sorted(results, key=lambda found: found.trial.number))
            if not result.wrong:
                shutil.rmtree(ground.place.folder / f"trial-{result.trial.number}")
    return 0 if all(not result.wrong for result in results) else 1


def report(folder: Path, seed: int, results: list[Result]) -> None:
    kills = [kill for result in results for kill in result.trial.kills]
    summary = {
        "seed": seed,
        "trials": len(results),
        "kills planned": len(kills),
        "kills that hit": sum(result.killed for result in results),
        "of them planned in a save": sum(kill.in_save for kill in kills),
        "steps trained twice": sum(result.lost for result in results),
        "wrong": [result.trial.number for result in results if result.wrong],
    }
    content = {**summary, "results": [asdict(result) for result in results]}
    (folder / "report.json").write_text(json.dumps(content, indent=1))
    print(json.dumps(summary), flush=True) if len(results) % 10 == 0 else None


if __name__ == "__main__":
    sys.exit(main())
