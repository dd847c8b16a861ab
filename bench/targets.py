# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What the project promises about its cost, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from report import Row, grid, median

TEXT, JSON, FILTERED = "pybootstrap", "pybootstrap --json", "pybootstrap -d 10"
PER_EVENT = "pybootstrap, wake-up per event"
C_BOOTSTRAP = "C bootstrap"
UNTRACED = "untraced"
EXECSNOOP, EXITSNOOP, BOTH = "execsnoop", "exitsnoop", "execsnoop + exitsnoop"


@dataclass
class Facts:
    """What is measured once a run, beside the rows."""

    idle_switches: int
    tracer_memory_mb: float
    lost_in_two_storms: int
    speeds: Mapping[str, float]  # of micro.py, per second


_MAX_CHANCE = 0.1  # difference of two untraced storms above which wall times say nothing


class Target(NamedTuple):
    """One promise; `met` is None when it could not be measured."""

    figure: str
    promised: str
    measured: str
    met: bool | None


def _at_most(figure: str, value: float, limit: float, form: str, unit: str = "") -> Target:
    met = None if value != value else value <= limit  # noqa: PLR0124 (not a number)
    return Target(figure, f"<= {limit:{form}}{unit}", f"{value:{form}}{unit}", met)


def _at_least(figure: str, value: float, limit: float) -> Target:
    return Target(figure, f">= {limit:,.0f}/s", f"{value:,.0f}/s", value >= limit)


def _noisy(row: Row) -> bool:
    """Whether the machine did so much else that wall times say nothing."""
    return max(map(abs, row.slowdown), default=0) > _MAX_CHANCE


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else float("nan")


def _of_the_kernel(rows: Mapping[str, Row]) -> list[Target]:
    own, each = median(rows[TEXT].handler_us), median(rows[PER_EVENT].handler_us)
    slow, peers = median(rows[TEXT].slowdown), median(rows[BOTH].slowdown)
    if _noisy(rows[UNTRACED]):
        slow = peers = float("nan")
    cpu_slow, cpu_peers = median(rows[TEXT].cpu_slowdown), median(rows[BOTH].cpu_slowdown)
    return [
        _at_most("BPF time for a pair, against per-event wake-ups", _ratio(own, each), 0.1, ".3f"),
        _at_most("BPF time for a pair", own, 1.5, ".2f", " us"),
        _at_most("extra wall time of a spawn", 100 * slow, 5, ".1f", " %"),
        _at_most("the same, against execsnoop + exitsnoop", _ratio(slow, peers), 0.2, ".2f"),
        _at_most("extra CPU time of a spawn", 100 * cpu_slow, 5, ".1f", " %"),
        _at_most("the same, against the peers", _ratio(cpu_slow, cpu_peers), 0.2, ".2f"),
    ]


def _of_the_command(rows: Mapping[str, Row]) -> list[Target]:
    own, both = rows[TEXT], rows[BOTH]
    first = median(own.first_ms)
    against = _ratio(first, median(rows[EXECSNOOP].first_ms))
    cpu = _ratio(median(own.cpu_s), median(both.cpu_s))
    return [
        _at_most("CPU of the command, against both peers", cpu, 0.5, ".2f"),
        _at_most("CPU of the command under storm", median(own.event_us), 2.5, ".2f", " us/event"),
        _at_most("start to first event", first, 60, ".0f", " ms"),
        _at_most("the same, against execsnoop", against, 2.5, ".1f"),
        _at_most("peak memory of the command", median(own.memory_mb), 25, ".1f", " MB"),
    ]


def _of_facts(facts: Facts) -> list[Target]:
    speeds = facts.speeds
    return [
        _at_most("memory that a Tracer adds", facts.tracer_memory_mb, 10, ".1f", " MB"),
        _at_least("record to event", speeds["record -> event"], 1e6),
        _at_least("text lines", speeds["event -> text line"], 700_000),
        _at_least("JSON lines", speeds["event -> JSON line"], 400_000),
        _at_most("switches to the idle command in 3 s", facts.idle_switches, 0, "d"),
        _at_most("lost under two storms at once", facts.lost_in_two_storms, 0, "d"),
    ]


def targets(rows: Mapping[str, Row], facts: Facts) -> list[Target]:
    """All promises. A row that was not measured gives figures that are not known."""
    wanted = (UNTRACED, TEXT, PER_EVENT, EXECSNOOP, EXITSNOOP, BOTH)
    known = {name: rows.get(name) or Row(name, None) for name in wanted}
    return [*_of_the_kernel(known), *_of_the_command(known), *_of_facts(facts)]


def table(all_targets: list[Target]) -> str:
    """Each promise beside its value."""
    verdict = {True: "met", False: "NOT met", None: "not known"}
    cells = [(t.figure, t.promised, t.measured, verdict[t.met]) for t in all_targets]
    return grid([("figure", "target", "measured", ""), *cells])
