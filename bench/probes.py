# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Figures that take one run of a tracer each: time to the first event, idling, memory."""

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
_PAUSE_S = 0.0004  # between the processes, one of which the tracer sees first


class First(NamedTuple):
    """The first event of a tracer, in ms since its start."""

    recorded_ms: float  # when the event's process began
    printed_ms: float  # when its line was printed


# ---- Start to first event ----


def first_event(contender: Contender) -> First:
    """How soon after its start a tracer sees processes, and reports them.

    The tracer writes to a terminal, because most tracers buffer what they write to a file. The
    slowest of several commands counts.
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
    """Starts a short process about every half millisecond, each with its number in its name.

    Returns when each began (time.monotonic), and the number of the first one in the output from
    `fd`.
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
    """Context switches to `bootstrap` in 3 s in which no event passes its filter."""
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
    """The peak memory that a started Tracer adds to an interpreter, in KiB."""
    return _script_memory_kb(_TRACER) - _script_memory_kb("import time; time.sleep(0)")


def _script_memory_kb(start: str) -> int:
    script = [sys.executable, "-W", "ignore", "-c", _SCRIPT.format(start=start)]
    return int(subprocess.run(script, capture_output=True, check=True, cwd=ROOT).stdout)
