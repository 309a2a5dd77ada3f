"""Nobody reads any more, and nothing happens."""

from __future__ import annotations

import subprocess
import sys

import pytest

WRITES = """
import sys
from distft.process.streams import tolerate_closed_streams
tolerate_closed_streams()
for _ in range(3):
    print("x" * 5000, flush=True)
    print("y" * 5000, file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.parametrize("redirection", ["| true", "2>/dev/full >/dev/full", "2>&- >&-", ">/dev/null 2>/dev/null"])
def test_a_command_goes_on_when_nobody_reads_it(redirection: str) -> None:
    shell = f'set -o pipefail; "$0" -c "$1" {redirection}'
    done = subprocess.run(["bash", "-c", shell, sys.executable, WRITES], capture_output=True, check=False, timeout=60)
    assert done.returncode == 7
    assert b"Traceback" not in done.stderr


def test_a_terminal_of_another_encoding_is_still_there() -> None:
    begin = "from distft.process.streams import tolerate_closed_streams as begin; begin()"
    code = f"{begin}; print('gr\\u00fc\\u017c'); print('after')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONIOENCODING": "latin-1"}, timeout=60
    )
    assert done.stdout.decode("latin-1").split() == ["gr\u00fc\\u017c", "after"]
