# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Questions about a tracer that one run each answers: how soon, how idle, how large."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from measure import Contender, Running
from programs import BUILD, ROOT, BenchError, bootstrap

_LIMIT_S = 20.0
_PAUSE_S = 0.0004  # between the processes of which the tracer has to see one


class First(NamedTuple):
    """The first event of a tracer, in ms from its start."""

    recorded_ms: float  # when the process began that the event is about
    printed_ms: float  # when its line came


# ---- Start to first event ----


def first_event(contender: Contender) -> First:
    """How soon after its start a tracer sees processes, and says so.

    The tracer writes to a terminal, as most keep back what they write to a file. Of several
    commands the slowest counts.
    """
    firsts = [_first_event(command) for command in contender.commands]
    return First(max(f.recorded_ms for f in firsts), max(f.printed_ms for f in firsts))


def _first_event(command: Sequence[str]) -> First:
    master, slave = pty.openpty()
    begin = time.monotonic()
    tracer = subprocess.Popen(command, stdout=slave, stderr=slave, cwd=ROOT)
    os.close(slave)
    try:
        spawned, number = _spawn_until_seen(master, begin + _LIMIT_S)
        seen = time.monotonic()
    finally:
        tracer.send_signal(signal.SIGINT)
        _drain_until_ended(master, tracer)
        os.close(master)
    if number is None:
        raise BenchError(f"{command[0]} printed no event")
    return First((spawned[number] - begin) * 1000, (seen - begin) * 1000)


def _spawn_until_seen(fd: int, limit: float) -> tuple[list[float], int | None]:
    """Starts a short process about every half millisecond, each under a name with its number.

    Returns when each began (time.monotonic), and the number of the first that a line from `fd` is
    about.
    """
    spawned: list[float] = []
    said = b""
    while time.monotonic() < limit:
        spawned.append(_spawn_numbered(len(spawned)))
        if select.select([fd], [], [], _PAUSE_S)[0]:
            try:
                said += os.read(fd, 65536)
            except OSError:  # the other end is closed
                break
            whole_lines = said[: said.rfind(b"\n") + 1]
            if found := re.search(rb"\bfirst-([0-9]+)", whole_lines):
                return spawned, int(found[1])
    return spawned, None


def _spawn_numbered(number: int) -> float:
    """Runs ./nothing under the name "first-NUMBER" to its end; returns when it began."""
    path = BUILD / f"first-{number}"
    path.unlink(missing_ok=True)
    path.symlink_to("nothing")
    try:
        begin = time.monotonic()
        os.waitpid(os.posix_spawn(path, [path.name], {}), 0)
    finally:
        path.unlink()
    return begin


def _drain_until_ended(fd: int, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + _LIMIT_S
    while process.poll() is None:
        if time.monotonic() > limit:
            process.kill()
        if select.select([fd], [], [], 0.01)[0]:
            try:
                os.read(fd, 65536)
            except OSError:
                process.wait()


# ---- Idle ----


def idle_switches() -> int:
    """How often `bootstrap` is switched to in 3 s in which no event passes its filter."""
    command = [*bootstrap(), "--duration", str(10**9)]
    with Running(Contender("idle", [command], 0)) as running:
        running.settle()
        before = running.usage()
        time.sleep(3)
        return running.usage().switches - before.switches


# ---- Memory ----

_SCRIPT = """
{start}
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(line.split()[1])
"""
_TRACER = "from pybootstrap import Tracer; tracer = Tracer().start(); tracer.read(1)"


def tracer_memory_kb() -> int:
    """What a started Tracer adds to the peak memory of an interpreter, in KiB."""
    return _script_memory_kb(_TRACER) - _script_memory_kb("import time; time.sleep(0)")


def _script_memory_kb(start: str) -> int:
    script = [sys.executable, "-W", "ignore", "-c", _SCRIPT.format(start=start)]
    return int(subprocess.run(script, capture_output=True, check=True, cwd=ROOT).stdout)
