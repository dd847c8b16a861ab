# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What a tracer uses at realistic rates: nothing at all, and a few processes a second.

Each process is an exec and an exit right after it. Start-up does not count: each window opens when
the tracer waits for events, and closes when it waits again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from measure import Contender, Load, Running, Storms
from programs import BenchError
from report import grid, median, say, spread
from rounds import in_turn

RATES = (5, 50, 500)  # processes a second
IDLE = 0  # the rate of a window without processes; its figures are per second
_SPAWNS = {5: 40, 50: 200, 500: 1000}
_QUICK_SPAWNS = {5: 10, 50: 50, 500: 250}
_IDLE_S = 5.0
_QUICK_IDLE_S = 1.0


def _by_rate() -> dict[int, list[float]]:
    return {rate: [] for rate in (IDLE, *RATES)}


@dataclass
class Everyday:
    """All that was measured of one tracer: for each rate, a value for each round."""

    name: str
    lines: int | None  # expected for each exec+exit pair; None: not known
    cpu_us: dict[int, list[float]] = field(default_factory=_by_rate)  # for each process
    switches: dict[int, list[float]] = field(default_factory=_by_rate)  # the same
    others: list[float] = field(default_factory=list)  # per second; see Window
    lost: int | None = None
    failure: str = ""

    def asdict(self) -> dict[str, Any]:
        """All values, and the medians for each rate."""
        medians = {
            name: {rate: median(values) for rate, values in by_rate.items() if values}
            for name, by_rate in (("cpu_us", self.cpu_us), ("switches", self.switches))
        }
        return {**asdict(self), "medians": medians}


# ---- Windows of time ----


class Window(NamedTuple):
    """What happened between two moments."""

    cpu_us: float  # of the tracer
    switches: int  # to it
    others: float  # processes and threads a second that neither the tracer nor the load started


class _Open:
    """An open window."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._begin = time.monotonic()
        self._forks = _forks()
        self._usage = running.usage()

    def close(self, spawns: int) -> Window:
        """Closes the window, in which the load spawned this many processes."""
        usage, seconds = self._running.usage(), time.monotonic() - self._begin
        return Window(
            (usage.cpu_s - self._usage.cpu_s) * 1e6,
            usage.switches - self._usage.switches,
            (_forks() - self._forks - spawns) / seconds,
        )


def _forks() -> int:
    """Processes and threads that were created on this machine since its start."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("processes"):
            return int(line.split()[1])
    raise AssertionError("/proc/stat has no line 'processes'")


def _idle(running: Running, seconds: float) -> Window:
    window = _Open(running)
    time.sleep(seconds)
    return window.close(0)


def _under(running: Running, load: Load) -> tuple[Window, list[str]]:
    """The window of a load, and the names of its processes."""
    with Storms(load) as storms:
        running.await_quiet()  # it may still process the storm's own exec
        window = _Open(running)
        names = storms.run().names
        running.await_quiet()
        return window.close(load.pairs), names


# ---- Rounds ----


def measure(row: Everyday, contender: Contender, quick: bool) -> None:
    """One round of a contender, at all rates; adds its figures to the row."""
    idle_s, spawns = (_QUICK_IDLE_S, _QUICK_SPAWNS) if quick else (_IDLE_S, _SPAWNS)
    names: list[str] = []
    with Running(contender) as running:
        running.settle()
        _add(row, IDLE, _idle(running, idle_s), idle_s)
        for rate in RATES:
            window, used = _under(running, Load(spawns[rate], rate=rate))
            _add(row, rate, window, spawns[rate])
            names += used
        running.end()
        delivered = running.delivered(names)
    if contender.lines:
        row.lost = (row.lost or 0) + contender.lines * sum(spawns.values()) - delivered


def _add(row: Everyday, rate: int, window: Window, divisor: float) -> None:
    row.cpu_us[rate].append(window.cpu_us / divisor)
    row.switches[rate].append(window.switches / divisor)
    row.others.append(window.others)


def compare(contenders: Sequence[Contender], rounds: int, quick: bool) -> list[Everyday]:
    """The rows of a table."""
    rows = {c.name: Everyday(c.name, c.lines) for c in contenders}
    for contender in chain(*in_turn(contenders, rounds)):
        row = rows[contender.name]
        if row.failure:
            continue
        say(f"{contender.name}: everyday rates")
        try:
            measure(row, contender, quick)
        except BenchError as error:
            row.failure = str(error)
    say("")
    return list(rows.values())


# ---- Table ----

NOTES = """

For each process, at so many processes a second, the tracer's CPU time (us) and how often it was
switched to (sw); idle: the same for each second without any. others: processes and threads that
something else started meanwhile, a second, which the tracer also had to report; where that is
usually more than 1, the targets of these rates are not judged."""


def _cells(row: Everyday) -> list[str]:
    if row.failure:
        return [row.name, f"failed: {row.failure}"]
    cells = [row.name]
    for rate in (IDLE, *RATES):
        cells += [spread(row.cpu_us[rate], ".0f"), spread(row.switches[rate], ".1f")]
    lost = "-" if row.lost is None else f"{row.lost:,}"
    return [*cells, spread(row.others, ".1f"), lost]


def table(rows: Sequence[Everyday]) -> str:
    """One line for each tracer: median (smallest..largest)."""
    rates = [f"{rate}/s" if rate else "idle" for rate in (IDLE, *RATES)]
    header = [f"{rate} {what}" for rate in rates for what in ("us", "sw")]
    return grid([["tracer", *header, "others", "lost"], *map(_cells, rows)])
