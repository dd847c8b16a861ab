# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Figures as a picture, for README."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from report import Row, median

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
