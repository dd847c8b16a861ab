# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""How late events are: the time from the kernel's time stamp until Python code has them.

Each reader is a process of its own (reader.py), one for each way to read, bound and load.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from measure import Load, Storms
from programs import SOURCES, BenchError
from report import grid, say

TIMER = "(timer)"  # no reader: how late the machine wakes a sleeping process
_WAYS = ("read", "fileno", "asyncio")
BOUNDS_MS = (100, 10)
_PERIOD_MS = 10  # of the timer
_EDGES = (0.25, 0.5, 0.75, 1.0)  # of the histogram, as shares of the bound
_END_LIMIT_S = 20.0


class Latency(NamedTuple):
    """What one reader saw under one load; times in ms."""

    way: str
    bound_ms: int
    load: str
    events: int
    median_ms: float
    p99_ms: float
    max_ms: float
    histogram: list[int]  # events up to each of _EDGES, and those later than the bound
    lost: int
    failure: str = ""

    @property
    def kept(self) -> bool | None:
        """Whether no event was later than the bound; None if there is no bound."""
        return None if self.way == TIMER else self.max_ms <= self.bound_ms


def loads(spawns: int, quick: bool) -> dict[str, Load]:
    """The loads, by name; the storm has `spawns` spawns."""
    by_rate = {5: 10, 50: 50, 500: 250} if quick else {5: 40, 50: 200, 500: 1000}
    paced = {f"{rate}/s": Load(count, rate=rate) for rate, count in by_rate.items()}
    return {**paced, "storm": Load(spawns)}


# ---- One reader ----


def measure(way: str, bound_ms: int, name: str, load: Load) -> Latency:
    """Runs one reader under one load. Raises BenchError if it fails or misses events."""
    command = [sys.executable, str(SOURCES / "reader.py"), way.strip("()"), str(bound_ms)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout
        if reader.stdout.readline() != "ready\n":
            raise BenchError(f"the reader ({way}) does not start: see above")
        with Storms(load) as storms:
            storms.run()
            time.sleep(bound_ms / 1000 + 0.1)  # so that the last events do not come by its end
        reader.terminate()
        said = json.loads(reader.communicate(timeout=_END_LIMIT_S)[0])
    except subprocess.TimeoutExpired:
        raise BenchError(f"the reader ({way}) does not end") from None
    finally:
        reader.kill()
        reader.communicate()
    late_ms = sorted(ns / 1e6 for ns in said["late_ns"])
    if way != TIMER and len(late_ms) + said["lost"] < 2 * load.pairs:
        raise BenchError(f"the reader ({way}) missed events: {len(late_ms)} of {2 * load.pairs}")
    return _latency(way, bound_ms, name, late_ms, said["lost"])


def _latency(way: str, bound_ms: int, name: str, late_ms: list[float], lost: int) -> Latency:
    """`late_ms` is sorted."""
    last = len(late_ms) - 1
    counts = [sum(late <= share * bound_ms for late in late_ms) for share in _EDGES]
    histogram = [b - a for a, b in zip([0, *counts], [*counts, len(late_ms)])]
    middle, p99 = late_ms[len(late_ms) // 2], late_ms[min(last, len(late_ms) * 99 // 100)]
    return Latency(way, bound_ms, name, len(late_ms), middle, p99, late_ms[-1], histogram, lost)


def _failed(way: str, bound_ms: int, name: str, failure: str) -> Latency:
    return Latency(way, bound_ms, name, 0, math.inf, math.inf, math.inf, [], 0, failure)


def measure_all(spawns: int, quick: bool) -> list[Latency]:
    """Runs every way to read with each bound, and the timer, under each load."""
    found = []
    readers = [*product(BOUNDS_MS, _WAYS), (_PERIOD_MS, TIMER)]
    for name, load in loads(spawns, quick).items():
        for bound_ms, way in readers:
            say(f"latency: {way}, {bound_ms} ms, {name}")
            try:
                found.append(measure(way, bound_ms, name, load))
            except BenchError as error:
                found.append(_failed(way, bound_ms, name, str(error)))
    return found


# ---- Table ----

NOTES = """

From the kernel's time stamp of an event to the moment that Python code has it, in ms; how many
events came within 1/4, 1/2, 3/4 and all of the bound, and how many later. (timer): how much later
than asked for a process wakes that just sleeps, which no reader can do better."""


def _cells(one: Latency) -> list[str]:
    if one.failure:
        return [one.way, f"failed: {one.failure} ({one.bound_ms} ms, {one.load})"]
    times = [f"{ms:.2f}" for ms in (one.median_ms, one.p99_ms, one.max_ms)]
    verdict = {True: "kept", False: "NOT kept", None: ""}[one.kept]
    counts = [str(one.events), *times, *map(str, one.histogram), str(one.lost)]
    return [one.way, str(one.bound_ms), one.load, *counts, verdict]


def table(latencies: Sequence[Latency]) -> str:
    """One line for each reader under each load."""
    shares = [f"<={share:g}" for share in _EDGES]
    header = ["reader", "bound", "load", "events", "median", "99 %", "max", *shares, "later"]
    return grid([[*header, "lost", ""], *map(_cells, latencies)])


def asdict(one: Latency) -> dict[str, Any]:
    """The figures, and whether the bound was kept."""
    return {**one._asdict(), "kept": one.kept}
