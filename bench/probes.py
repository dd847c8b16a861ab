# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Questions about a tracer that one run each answers: how soon, how idle, how large."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from measure import Contender, Load, start_storms, status_number, storm_results
from programs import ROOT, BenchError, bootstrap

_LIMIT_S = 20.0

# ---- Start to first event ----


def first_event_ms(contender: Contender) -> float:
    """From the start of a tracer to its first line about a process, in ms.

    A process starts and ends every half millisecond meanwhile. The tracer writes to a terminal, as
    most keep back what they write to a file. Of several commands the slowest counts.
    """
    return max(_first_event_ms(command) for command in contender.commands)


def _first_event_ms(command: Sequence[str]) -> float:
    storms = start_storms(Load(spawns=20_000), pause_us=500)
    master, slave = pty.openpty()
    begin = time.monotonic()
    tracer = subprocess.Popen(command, stdout=slave, stderr=slave, cwd=ROOT)
    os.close(slave)
    try:
        seen = _await_text(master, b"nothing-", begin + _LIMIT_S)
    finally:
        tracer.send_signal(signal.SIGINT)
        _drain_until_ended(master, tracer)
        os.close(master)
        for storm in storms:
            storm.terminate()
        storm_results(storms)
    if not seen:
        raise BenchError(f"{command[0]} printed no event")
    return (seen - begin) * 1000


def _await_text(fd: int, text: bytes, limit: float) -> float:
    """When `text` came in (time.monotonic, seconds); 0 when it did not until `limit`."""
    said = b""
    while text not in said:
        if not select.select([fd], [], [], max(0.0, limit - time.monotonic()))[0]:
            return 0.0
        try:
            said = said[-len(text) :] + os.read(fd, 65536)
        except OSError:  # the other end is closed
            return 0.0
    return time.monotonic()


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


def idle_wakeups(seconds: float = 3.0) -> int:
    """How often `bootstrap` was switched to in this time, when no event passes its filter."""
    command = [*bootstrap(), "--duration", str(10**9)]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    names = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    time.sleep(1)
    before = status_number(tracer.pid, *names)
    time.sleep(seconds)
    switches = status_number(tracer.pid, *names) - before
    tracer.send_signal(signal.SIGINT)
    tracer.wait()
    return switches


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
