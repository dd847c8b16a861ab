# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Figures as a table, as JSON and as a picture."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
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
        """Lines that are missing, over all rounds; None when that cannot be known."""
        if not self.lines:
            return None
        return self.lines * self.pairs * len(self.delivered) - sum(self.delivered)

    @property
    def event_us(self) -> list[float]:
        """The tracer's CPU time under the storm for an event; a pair is two events."""
        return [cpu_s * 1e6 / (2 * self.pairs) for cpu_s in self.load_cpu_s]

    def asdict(self) -> dict[str, Any]:
        """All values, and the medians of those that are lists."""
        lists = {**asdict(self), "event_us": self.event_us}
        medians = {k: statistics.median(v) for k, v in lists.items() if isinstance(v, list) and v}
        return {**lists, "lost": self.lost, "medians": medians}


def median(values: Sequence[float]) -> float:
    """The median; not a number when there are no values."""
    return statistics.median(values) if values else float("nan")


def spread(values: Sequence[float], form: str) -> str:
    """Median and range, such as "5.1 (4.0..7.9)"; a dash when there is nothing."""
    if not values:
        return "-"
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}}..{max(values):{form}})"


# ---- Progress ----


def say(text: str) -> None:
    """Replaces the line about what is being done, on a terminal."""
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
    """Rows of cells in columns: the first to the left, the others to the right."""
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


# ---- Picture ----

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.small { font-size: 11px; fill: #57606a }
.own { fill: #2da44e } .peer { fill: #8c959f } .range { stroke: #57606a; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9ea7b3 } .range { stroke: #c9d1d9 }
}
"""
_BAR, _GAP, _LEFT, _WIDTH = 18, 8, 240, 800  # px
_PANEL = 210  # px: the longest bar


def _bar(place: tuple[int, int], values: Sequence[float], largest: float, kind: str) -> str:
    x, y = place
    if not values:
        return f'<text class="small" x="{x}" y="{y + 13}">not known</text>'
    scale = _PANEL / largest if largest > 0 else 0.0
    low, middle, high = (max(0.0, v) * scale for v in (min(values), median(values), max(values)))
    centre = y + _BAR / 2
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{middle:.1f}" height="{_BAR}" rx="2"/>'
        f'<path class="range" d="M{x + low:.1f} {centre}H{x + high:.1f}"/>'
        f'<text x="{x + max(middle, high) + 6:.1f}" y="{y + 13}">'
        f"{median(values):.2g}</text>"
    )


def svg(rows: Sequence[Row], subtitle: str) -> str:
    """A picture for README: what each tracer costs those it watches, and itself."""
    shown = [row for row in rows if row.cpu_s and not row.failure and row.name != "untraced"]
    slow = {row.name: [100 * s for s in row.slowdown] for row in shown}
    cpu = {row.name: row.cpu_s for row in shown}
    most_slow = max((max(v) for v in slow.values() if v), default=1.0)
    most_cpu = max((max(v) for v in cpu.values() if v), default=1.0)
    second = _LEFT + _PANEL + 70
    height = 56 + len(shown) * (_BAR + _GAP) + 26
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>Cost of tracing every exec and exit</title><style>{_STYLE}</style>",
        f'<text x="{_LEFT}" y="20">a spawn takes longer by, %</text>',
        f'<text x="{second}" y="20">CPU of the tracer, s</text>',
        f'<text class="small" x="{_LEFT}" y="38">median of the rounds; line: their range</text>',
    ]
    for number, row in enumerate(shown):
        y = 50 + number * (_BAR + _GAP)
        kind = "own" if row.name.startswith("pybootstrap") else "peer"
        parts += [
            f'<text x="{_LEFT - 10}" y="{y + 13}" text-anchor="end">{escape(row.name)}</text>',
            _bar((_LEFT, y), slow[row.name], most_slow, kind),
            _bar((second, y), cpu[row.name], most_cpu, kind),
        ]
    parts.append(f'<text class="small" x="10" y="{height - 10}">{escape(subtitle)}</text></svg>')
    return "\n".join(parts) + "\n"
