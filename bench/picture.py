# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Draws the figures as the picture of README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from everyday import RATES, Everyday
from report import Row, median

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.small { font-size: 11px; fill: #57606a } .title { font-weight: 600 }
.own { fill: #2da44e } .peer { fill: #8c959f } .range { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9ea7b3 } .range { stroke: #e6edf3 }
}
"""
_BAR, _LINE = 18, 26  # px: a bar, and from one to the next
_LEFT, _WIDTH = 240, 800  # px: where the panels begin, and end
_LABEL = 70  # px: room for the number after the longest bar

Values = Mapping[str, Sequence[float]]  # by tracer; a value from each round


class _Section(NamedTuple):
    """Panels beside each other, each with a scale of its own and a line for each tracer."""

    title: str
    tracers: Sequence[str]
    panels: Mapping[str, Values]  # by title

    @property
    def height(self) -> int:
        return 62 + len(self.tracers) * _LINE


def _number(value: float) -> str:
    """Two significant digits, or all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def _text(place: tuple[float, float], text: str, more: str = "") -> str:
    return f'<text x="{place[0]:.1f}" y="{place[1]:.1f}"{more}>{escape(text)}</text>'


def _bar(place: tuple[float, float], values: Sequence[float], scale: float, kind: str) -> str:
    """The median, with a line over the range of the rounds; `scale` is in px."""
    x, y = place
    if not values:
        return _text((x, y + 13), "not known", ' class="small"')
    low, middle, high = (max(0.0, v) * scale for v in (min(values), median(values), max(values)))
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{middle:.1f}" height="{_BAR}" rx="2"/>'
        f'<path class="range" d="M{x + low:.1f} {y + _BAR / 2}H{x + high:.1f}"/>'
        + _text((x + max(middle, high) + 6, y + 13), _number(median(values)))
    )


def _panel(place: tuple[float, float], width: float, section: _Section, title: str) -> list[str]:
    x, y = place
    values = section.panels[title]
    largest = max((max(v) for v in values.values() if v), default=0.0)
    scale = (width - _LABEL) / largest if largest > 0 else 0.0
    parts = [_text((x, y + 42), title, ' class="small"')]
    for number, name in enumerate(section.tracers):
        kind = "own" if name.startswith("pybootstrap") else "peer"
        parts.append(_bar((x, y + 50 + number * _LINE), values.get(name, ()), scale, kind))
    return parts


def _section(y: int, section: _Section) -> list[str]:
    width = (_WIDTH - _LEFT) / len(section.panels)
    parts = [_text((_LEFT, y + 22), section.title, ' class="title"')]
    for number, name in enumerate(section.tracers):
        middle = y + 63 + number * _LINE
        parts.append(_text((_LEFT - 10, middle), name, ' text-anchor="end"'))
    for number, title in enumerate(section.panels):
        parts += _panel((_LEFT + number * width, y), width, section, title)
    return parts


def _storm(rows: Sequence[Row]) -> _Section:
    """Leaves out tracers that filter, because they have less to do."""
    shown = [row for row in rows if row.cpu_s and not row.failure and row.lines != 0]
    slowdown = {row.name: [100 * more for more in row.slowdown] for row in shown}
    return _Section(
        "In a storm of processes",
        [row.name for row in shown],
        {
            "a spawn takes longer by, %": slowdown,
            "CPU of the tracer, s": {row.name: row.cpu_s for row in shown},
        },
    )


def _everyday(rows: Sequence[Everyday]) -> _Section:
    shown = [row for row in rows if not row.failure]
    return _Section(
        "CPU of the tracer for one process, µs",
        [row.name for row in shown],
        {f"{rate} a second": {row.name: row.cpu_us[rate] for row in shown} for rate in RATES},
    )


def svg(rows: Sequence[Row], everyday: Sequence[Everyday], subtitle: str) -> str:
    """The costs of each tracer, for the processes it watches and in itself."""
    sections = [s for s in (_storm(rows), _everyday(everyday)) if s.tracers]
    height = sum(section.height for section in sections) + 44
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>Cost of tracing every exec and exit</title><style>{_STYLE}</style>",
    ]
    y = 0
    for section in sections:
        parts += _section(y, section)
        y += section.height
    notes = ("Median of the rounds, and their range; each panel has its own scale.", subtitle)
    for number, note in enumerate(notes):
        parts.append(_text((10, y + 16 + 16 * number), note, ' class="small"'))
    return "\n".join([*parts, "</svg>"]) + "\n"
