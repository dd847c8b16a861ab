# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""All tests here load real BPF programs. What is right is decided by wait4, /proc and counters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from pybootstrap import Event, ExecEvent, ExitEvent, LostEvent, Tracer

# What the BPF object has, by the names that the kernel shows: of maps 15 bytes.
_BPF = "".join(path.read_text() for path in (Path(__file__).parents[2] / "bpf").glob("*.[ch]"))
PROGRAMS = re.findall(r'^SEC\("tp_btf/\w+"\)\nint (\w+)\(', _BPF, re.MULTILINE)
MAPS = [name[:15] for name in re.findall(r'^\} (\w+) SEC\("\.maps"\);', _BPF, re.MULTILINE)]
MAPS += ["bootstra.rodata", "bootstra.bss", "bootstra.data"]

DEADLINE_S = 30.0  # far more than anything here takes; a test that needs it has failed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.kernel)


def run(*argv: str, **spawn: object) -> tuple[int, int]:
    """Runs a program to its end; its pid and its status as wait4(2) gives it."""
    pid = os.posix_spawn(argv[0], argv, os.environ, **spawn)  # type: ignore[arg-type]
    _, status, _ = os.wait4(pid, 0)
    return pid, status


def collect(tracer: Tracer, done: Callable[[list[Event]], bool]) -> list[Event]:
    """Reads until done(events so far) is true; fails when it is not within DEADLINE_S."""
    events: list[Event] = []
    end = time.monotonic() + DEADLINE_S
    while not done(events):
        assert time.monotonic() < end, f"not seen in {DEADLINE_S} s; seen: {events[-20:]}"
        events += tracer.read(timeout=0.5)
    return events


def of_pids(events: list[Event], pids: set[int]) -> list[ExecEvent | ExitEvent]:
    return [e for e in events if not isinstance(e, LostEvent) and e.pid in pids]


def exits(events: list[Event], pids: set[int]) -> list[ExitEvent]:
    return [e for e in of_pids(events, pids) if isinstance(e, ExitEvent)]


def execs(events: list[Event], pids: set[int]) -> list[ExecEvent]:
    return [e for e in of_pids(events, pids) if isinstance(e, ExecEvent)]


def until_exit(*pids: int) -> Callable[[list[Event]], bool]:
    """For `collect`: every one of these processes was seen to end."""
    return lambda events: {e.pid for e in exits(events, set(pids))} == set(pids)


class Command:
    """A running `bootstrap` command, which ends with the test."""

    def __init__(self, *arguments: str, **popen: object) -> None:
        self.process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-m", "pybootstrap", *arguments],
            # Unbuffered, because communicate() does not see what a buffer holds.
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0, **popen},
        )

    def wait_for_header(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith(b"TIME ")

    def end(self, signal: int | None = None) -> tuple[int, str, str]:
        """Status and remaining output, after the signal if one is given."""
        if signal is not None:
            self.process.send_signal(signal)
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, (out or b"").decode(), (err or b"").decode()


@pytest.fixture
def bootstrap() -> Iterator[Callable[..., Command]]:
    """Starts the command; whatever still runs at the end of the test is killed, by pid."""
    started: list[Command] = []

    def start(*arguments: str, **popen: object) -> Command:
        started.append(Command(*arguments, **popen))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            command.process.kill()
        command.process.communicate()
