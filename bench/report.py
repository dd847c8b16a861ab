# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Figures as a table and as JSON."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Row:
    """All that was measured of one tracer: a value for each round."""

    name: str
    lines: int | None  # expected of each exec+exit pair, 0: none; None: not known
    pairs: int = 0  # of each round
    slowdown: list[float] = field(default_factory=list)  # wall time of a spawn, 0.1: 10 % more
    cpu_slowdown: list[float] = field(default_factory=list)  # the same of a spawn's CPU time
    cpu_s: list[float] = field(default_factory=list)  # of the tracer, from start to end
    start_cpu_s: list[float] = field(default_factory=list)  # the same of the start alone
    load_cpu_s: list[float] = field(default_factory=list)  # and of the storm alone
    handler_us: list[float] = field(default_factory=list)  # BPF time for an exec+exit pair
    memory_mb: list[float] = field(default_factory=list)  # peak
    first_ms: list[float] = field(default_factory=list)  # start to first event, as it happens
    printed_ms: list[float] = field(default_factory=list)  # and until its line is printed
    delivered: list[int] = field(default_factory=list)  # lines
    failure: str = ""

    @property
    def lost(self) -> int | None:
        """The number of missing lines over all rounds; None if it is not known."""
        if not self.lines:
            return None
        return self.lines * self.pairs * len(self.delivered) - sum(self.delivered)

    @property
    def event_us(self) -> list[float]:
        """The tracer's CPU time per event under the storm; a pair is two events."""
        return [cpu_s * 1e6 / (2 * self.pairs) for cpu_s in self.load_cpu_s]

    def asdict(self) -> dict[str, Any]:
        """All values, and the medians of those that are lists."""
        lists = {**asdict(self), "event_us": self.event_us}
        medians = {k: statistics.median(v) for k, v in lists.items() if isinstance(v, list) and v}
        return {**lists, "lost": self.lost, "medians": medians}


def median(values: Sequence[float]) -> float:
    """The median; NaN without values."""
    return statistics.median(values) if values else float("nan")


def spread(values: Sequence[float], form: str) -> str:
    """Median and range, such as "5.1 (4.0..7.9)"; a dash without values."""
    if not values:
        return "-"
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}}..{max(values):{form}})"


# ---- Progress ----


def say(text: str) -> None:
    """Replaces the progress line, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# ---- Table ----

_HEADER = (
    "tracer",
    "spawn +%",
    "spawn CPU +%",
    "tracer CPU s",
    "start CPU ms",
    "us/event",
    "BPF us/pair",
    "memory MB",
    "first event ms",
    "printed ms",
    "lines/pair",
    "lost",
)


def _cells(row: Row) -> list[str]:
    if row.failure:
        return [row.name, f"failed: {row.failure}"]
    rounds = max(len(row.delivered), 1)
    lines = sum(row.delivered) / (max(row.pairs, 1) * rounds)
    return [
        row.name,
        spread([100 * s for s in row.slowdown], ".1f"),
        spread([100 * s for s in row.cpu_slowdown], ".1f"),
        spread(row.cpu_s, ".2f"),
        spread([1000 * s for s in row.start_cpu_s], ".0f"),
        spread(row.event_us, ".1f"),
        spread(row.handler_us, ".2f"),
        spread(row.memory_mb, ".1f"),
        spread(row.first_ms, ".0f"),
        spread(row.printed_ms, ".0f"),
        f"{lines:.2f}" if row.delivered else "-",
        "-" if row.lost is None else f"{row.lost:,}",
    ]


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, the first aligned left, the others right."""
    whole = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[i]) for row in whole) for i in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for row in rows:
        if len(row) < len(widths):
            lines.append(f"{row[0]:<{widths[0]}}  {row[1]}")
            continue
        rest = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join([f"{row[0]:<{widths[0]}}", *rest]).rstrip())
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """One line for each tracer: median (smallest..largest)."""
    return grid([_HEADER, *map(_cells, rows)])
