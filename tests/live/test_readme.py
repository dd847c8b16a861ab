# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The first command and the Python snippets of README run as written and print events."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import DEADLINE_S

README = Path(__file__).parents[2] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def test_the_first_command_shows_events_on_an_idle_machine() -> None:
    """It runs commands itself, which end with it."""
    # Hide the variables of a "make test" that may have started us.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    shown = subprocess.run(
        ["make", "run", "ARGS="],
        cwd=README.parent,
        env=env,
        capture_output=True,
        check=True,
        text=True,
        timeout=DEADLINE_S,
    ).stdout
    header = shown.index("TIME     EVENT")
    assert len(shown[header:].splitlines()) == 7
    assert "/bin/false" in shown[header:]


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 3


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet(snippet: str, tmp_path: Path) -> None:
    """Within the deadline it prints a process that has a word of ours among its arguments."""
    word = f"{os.getpid()}.0"
    script = tmp_path / "snippet.py"
    script.write_text(snippet)
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=env, text=True)
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    ended = threading.Event()

    def keep_working() -> None:
        while not ended.is_set():
            subprocess.run(["/bin/sh", "-c", "sleep 0.1", word], check=True)

    worker = threading.Thread(target=keep_working)
    worker.start()
    try:
        assert process.stdout is not None
        assert any(word in line for line in process.stdout), "it ended, or printed nothing in time"
    finally:
        ended.set()
        worker.join()
        watchdog.cancel()
        process.kill()
        process.communicate()
