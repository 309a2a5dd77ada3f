"""A process that talks to the hub for a test: its libraries read HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE at import.

It reads one order per line from its input, an object of JSON, and answers each in a line of its output.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


class Client:
    """The process, seen from a test."""

    def __init__(self, address: str, home: Path, offline: bool = False) -> None:
        self.home = home
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": address,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "PYTHONPATH": str(ROOT),
        }
        self._said = open(home.with_name(f"{home.name}-{offline}.err"), "w+")  # noqa: SIM115 - until it is closed
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.data.hub_client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            text=True,
            cwd=home.parent,
        )

    def order(self, what: str, **how: Any) -> Any:
        """What was found. AssertionError with the sentence if it was an error."""
        answer = self._ask({"what": what, **how})
        assert "error" not in answer, answer["error"]
        return answer["found"]

    def error(self, what: str, **how: Any) -> str:
        """The sentence in which it was refused."""
        answer = self._ask({"what": what, **how})
        assert "error" in answer, f"no error, but {answer}"
        return str(answer["error"])

    def said(self) -> str:
        """What it has written for people."""
        self._said.seek(0)
        return self._said.read()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._said.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"it has ended:\n{self.said()}"
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    """Answer until the input ends."""
    from distft.errors import Preempted, UserError

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing of a library gets among the answers
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = {"found": carry_out(order)}
        except UserError as error:
            answer = {"error": str(error)}
        except Preempted as error:
            answer = {"error": f"stopped: {error}"}
        print(json.dumps(answer), file=out, flush=True)


def carry_out(order: dict[str, Any]) -> Any:
    from distft.data import hub, hub_datasets
    from distft.process import stop_signals
    from distft.run.commits import Repository

    hub.WAITS = (0.05, 0.05, 0.05)
    hub.TIMEOUT = order.get("timeout", 30.0)
    hub.SILENCE = 2 * hub.TIMEOUT
    os.environ.pop("HF_TOKEN", None)
    if (token := order.get("token")) is not None:
        os.environ["HF_TOKEN"] = token
    repository = Repository(order.get("kind", "dataset"), order["name"], order.get("revision"))
    if order["what"] == "commit":
        return hub.commit_of(repository)
    if order["what"] == "fetch":
        if (seconds := order.get("stop")) is not None:
            stop_signals.listen()
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return str(hub.fetch(repository, hub.commit_of(repository), order.get("only")))
    loaded = hub_datasets.load(repository, order.get("config"), order.get("split", "train"))
    return {"rows": list(loaded), "features": {name: type(one).__name__ for name, one in loaded.features.items()}}


if __name__ == "__main__":
    main()
