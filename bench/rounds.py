# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Compares tracers under storms, in interleaved rounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import probes
import programs
from measure import Contender, Load, Result, bpf_stats, measure
from programs import BenchError
from report import Row, grid, median, say

_UNTRACED = Contender("untraced", [], 0)


def _add(row: Row, result: Result, before: Result, after: Result) -> None:
    """The increase over the mean of two untraced storms."""
    row.slowdown.append(2 * result.spawn_ns / (before.spawn_ns + after.spawn_ns) - 1)
    spawn_cpu_ns = before.spawn_cpu_ns + after.spawn_cpu_ns
    row.cpu_slowdown.append(2 * result.spawn_cpu_ns / spawn_cpu_ns - 1)
    row.cpu_s.append(result.cpu_s)
    row.start_cpu_s.append(result.start_cpu_s)
    row.load_cpu_s.append(result.load_cpu_s)
    row.memory_mb.append(result.memory_kb / 1024)
    row.delivered.append(result.delivered)


def _measure_round(contenders: Sequence[Contender], rows: dict[str, Row], load: Load) -> None:
    """Runs each contender once, between two untraced storms right before and after it."""
    untraced, before = rows[_UNTRACED.name], measure(_UNTRACED, load)
    for contender in contenders:
        row = rows[contender.name]
        if row.failure:
            continue
        say(f"{contender.name}: {load}")
        try:
            result = measure(contender, load)
        except BenchError as error:
            row.failure = str(error)
            continue
        after = measure(_UNTRACED, load)
        _add(row, result, before, after)
        untraced.slowdown.append(after.spawn_ns / before.spawn_ns - 1)
        untraced.cpu_slowdown.append(after.spawn_cpu_ns / before.spawn_cpu_ns - 1)
        before = after


def in_turn(contenders: Sequence[Contender], rounds: int) -> Iterator[Sequence[Contender]]:
    """The contenders in an order that rotates with each round."""
    for number in range(rounds):
        start = number % max(len(contenders), 1)
        yield [*contenders[start:], *contenders[:start]]


def _measure_more(contenders: Sequence[Contender], rows: dict[str, Row], spawns: int) -> None:
    """Measures what would disturb the rounds: BPF statistics, and the time to the first event."""
    for contender in contenders:
        row = rows[contender.name]
        if row.failure:
            continue
        say(f"{contender.name}: BPF time and first event")
        with contextlib.suppress(BenchError):
            with bpf_stats():
                row.handler_us.append(measure(contender, Load(spawns)).handler_ns / 1000)
            if contender.lines == 0:
                continue
            first = probes.first_event(contender)
            row.first_ms.append(first.recorded_ms)
            row.printed_ms.append(first.printed_ms)


def compare(contenders: Sequence[Contender], load: Load, rounds: int, more: bool) -> list[Row]:
    """The rows of a table; `more` adds what does not depend on the load."""
    rows = {c.name: Row(c.name, c.lines, load.pairs) for c in (_UNTRACED, *contenders)}
    for order in in_turn(contenders, rounds):
        _measure_round(order, rows, load)
        if more:
            _measure_more(order, rows, max(load.spawns // 4, 1000))
    say("")
    return list(rows.values())


# ---- How cost grows ----


def scale_loads(quick: bool) -> list[Load]:
    """More spawns, more cores, more live processes."""
    spawns = (1_000, 5_000) if quick else (1_000, 10_000, 100_000)
    idle = (0, 2_000) if quick else (0, 5_000, 20_000)
    storms = (1, 2) if len(programs.cpus()) > 1 else (1,)
    return [Load(n, s, i) for i in idle for s in storms for n in spawns]


def _scale_cells(load: Load, row: Row) -> list[str]:
    return [
        row.name,
        f"{load.spawns:,}",
        str(load.storms),
        f"{load.idle:,}",
        row.failure or f"{100 * median(row.slowdown):.1f}",
        f"{100 * median(row.cpu_slowdown):.1f}",
        f"{median(row.cpu_s):.2f}",
        f"{median(row.memory_mb):.1f}",
        "-" if row.lost is None else f"{row.lost:,}",
    ]


def scale(contenders: Sequence[Contender], quick: bool) -> tuple[str, list[dict[str, Any]]]:
    """How cost grows: as a table, and as data."""
    header = ["tracer", "spawns", "cores", "idle", "spawn +%", "spawn CPU +%", "tracer CPU s"]
    cells, data = [[*header, "memory MB", "lost"]], []
    for load in scale_loads(quick):
        for row in compare(contenders, load, 1 if quick else 3, more=False):
            if row.name != "untraced":
                cells.append(_scale_cells(load, row))
                data.append({"load": vars(load), **row.asdict()})
    return grid(cells), data
