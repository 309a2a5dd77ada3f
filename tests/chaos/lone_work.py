"""Work of rank 0 that takes longer than the default time-outs, on two nodes and in real time: no alarm; and a rank that
is stopped meanwhile is named.

    python -m tests.chaos.lone_work FOLDER --minutes 40 --data ../shared/data/gsm8k/train.jsonl

The work is real: so many chats are encoded that it takes longer than that. Two light parents stand for two nodes. After
`--minutes` the rank that waits on the second node is stopped. The next start goes on with the encoding.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from tests.e2e.command import RANK_NAME, Workplace, about, until
from tests.e2e.nodes import children, two_nodes

CHATS_PER_SECOND = 3000  # more than one process encodes
NOTICED_SECONDS = 60.0


def write_chats(path: Path, source: Path, number: int) -> None:
    """The chats of `source` over and over, each of them another one by its number."""
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    with open(path, "w", encoding="utf-8") as file:
        for index in range(number):
            record = records[index % len(records)]
            file.write(json.dumps({"prompt": f"{index}: {record['question']}", "completion": record["answer"]}) + "\n")


def kept(place: Workplace) -> int:
    """Records whose encoding is on the disk."""
    [path] = (place.folder / "cache" / "distft" / "tokens").glob("*.part/progress.json")
    return int(json.loads(path.read_text())["records"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k/train.jsonl"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    place, run = Workplace(args.folder.absolute()), args.folder.absolute() / "long"
    base = place.folder / "first"
    if not base.exists():
        assert place.run("train", "recipe.yaml", "train.steps=1", "--run-dir", base).code == 0
        write_chats(place.folder / "many.jsonl", args.data, round(CHATS_PER_SECOND * 60 * args.minutes))
    settings = ("data.train=many.jsonl", f"model={{path: {base / 'base'}}}")  # engine.timeout: the default
    with two_nodes(place, run, *settings) as nodes:
        until(lambda: bool(list((place.folder / "cache" / "distft" / "tokens").glob("*.part"))), "it encodes", 1800.0)
        ends = time.monotonic() + 60 * args.minutes
        while time.monotonic() < ends:
            assert [parent.poll() for parent in nodes.parents] == [None, None], nodes.said(0) + nodes.said(1)
            time.sleep(1.0)
        encoded = kept(place)
        [waiting] = children(nodes.parents[1].pid, f"{RANK_NAME}1")
        waiting.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        codes = nodes.codes(NOTICED_SECONDS + 60.0)
        noticed = time.monotonic() - stopped
    cause = about(run)["attempts"][-1]["cause"]
    with two_nodes(place, run, *settings) as nodes:
        until(lambda: kept(place) > encoded, "the next start goes on with the encoding", 900.0)
    found = {"minutes": args.minutes, "encoded": encoded, "codes": codes, "cause": cause, "seconds": round(noticed, 1)}
    print(json.dumps(found))
    return 0 if cause.startswith("hang: rank 1 on ") and noticed < NOTICED_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
