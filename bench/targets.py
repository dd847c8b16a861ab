# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The project's targets for its cost, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from everyday import Everyday
from latency import BOUNDS_MS, Latency
from report import Row, grid, median, spread

TEXT, JSON, FILTERED = "pybootstrap", "pybootstrap --json", "pybootstrap -d 10"
PER_EVENT = "pybootstrap, wake-up per event"
C_BOOTSTRAP = "C bootstrap"
UNTRACED = "untraced"
EXECSNOOP, EXITSNOOP, BOTH = "execsnoop", "exitsnoop", "execsnoop + exitsnoop"


@dataclass
class Facts:
    """Figures that are measured once per run, besides the rows."""

    idle_switches: int
    tracer_memory_mb: float
    lost_in_two_storms: int
    speeds: Mapping[str, float]  # of micro.py, per second


@dataclass
class Measured:
    """All that a run has measured, by tracer; targets of missing parts are not known."""

    rows: Mapping[str, Row] = field(default_factory=dict)
    everyday: Mapping[str, Everyday] = field(default_factory=dict)
    latencies: Sequence[Latency] = ()
    facts: Facts | None = None


_MAX_CHANCE = 0.05  # typical difference of two untraced storms above which wall times mean nothing
_MAX_OTHERS = 1.0  # other processes a second above which everyday rates mean nothing


class Target(NamedTuple):
    """One target; `met` is None if it could not be measured."""

    figure: str
    promised: str
    measured: str
    met: bool | None


def _at_most(figure: str, values: Sequence[float], limit: float, form: str) -> Target:
    """The median counts."""
    met = median(values) <= limit if values else None
    return Target(figure, f"<= {limit:{form}}", spread(values, form), met)


def _at_least(figure: str, values: Sequence[float], limit: float) -> Target:
    met = median(values) >= limit if values else None
    return Target(figure, f">= {limit:,.0f}", spread(values, ",.0f"), met)


def _against(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """The ratio within each round, because chance differs between rounds."""
    return [a / b for a, b in zip(own, other) if b > 0]


def _of_the_kernel(rows: Mapping[str, Row]) -> list[Target]:
    own, peers = rows[TEXT], rows[BOTH]
    per_event = _against(own.handler_us, rows[PER_EVENT].handler_us)
    return [
        _at_most("BPF time of an exec and exit, us", own.handler_us, 1.3, ".2f"),
        _at_most("the same with arguments", rows[JSON].handler_us, 1.8, ".2f"),
        _at_most("the same with -d 10", rows[FILTERED].handler_us, 0.6, ".2f"),
        _at_most("BPF time against a wake-up for each event", per_event, 0.1, ".3f"),
        *_of_a_spawn("wall time", own.slowdown, peers.slowdown, _noisy(rows[UNTRACED])),
        *_of_a_spawn("CPU time", own.cpu_slowdown, peers.cpu_slowdown, noisy=False),
    ]


def _noisy(untraced: Row) -> bool:
    """Whether the machine did so much else that wall times mean nothing."""
    return median([abs(more) for more in untraced.slowdown]) > _MAX_CHANCE


def _of_a_spawn(
    what: str, own: Sequence[float], peers: Sequence[float], noisy: bool
) -> list[Target]:
    if noisy:
        own = peers = []
    against = _against([median(own)], [median(peers)]) if own else []
    return [
        _at_most(f"extra {what} of a spawn, %", [100 * more for more in own], 5, ".1f"),
        _at_most("the same, against execsnoop + exitsnoop", against, 0.2, ".2f"),
    ]


def _against_c(everyday: Mapping[str, Everyday], rows: Mapping[str, Row]) -> list[Target]:
    own, original = everyday[TEXT], everyday[C_BOOTSTRAP]
    noisy = max(median(row.others) for row in (own, original)) > _MAX_OTHERS
    storm = _against(rows[TEXT].cpu_s, rows[C_BOOTSTRAP].cpu_s)
    found = []
    for rate, limit in ((5, 2), (50, 1), (500, 0.5)):
        ratios = [] if noisy else _against(own.cpu_us[rate], original.cpu_us[rate])
        found.append(_at_most(f"CPU against the C original, {rate}/s", ratios, limit, ".2f"))
    return [*found, _at_most("the same in a storm, start-up included", storm, 1, ".2f")]


def _of_the_command(rows: Mapping[str, Row]) -> list[Target]:
    own = rows[TEXT]
    start_ms = [1000 * cpu_s for cpu_s in own.start_cpu_s]
    peers = _against(own.cpu_s, rows[BOTH].cpu_s)
    return [
        _at_most("the same, against execsnoop + exitsnoop", peers, 0.5, ".2f"),
        _at_most("CPU of an event in a storm, us", own.event_us, 2.5, ".2f"),
        _at_most("start to first event, ms", own.first_ms, 45, ".0f"),
        _at_most("CPU of a start, ms", start_ms, 45, ".0f"),
        _at_most("peak memory of the command, MB", own.memory_mb, 25, ".1f"),
    ]


def _of_facts(facts: Facts | None) -> list[Target]:
    def one(name: str) -> list[float]:
        return [getattr(facts, name)] if facts else []

    def speed(what: str) -> list[float]:
        return [facts.speeds[what]] if facts else []

    return [
        _at_most("memory that a Tracer adds, MB", one("tracer_memory_mb"), 10, ".1f"),
        _at_least("records to events, a second", speed("record -> event"), 1e6),
        _at_least("text lines a second", speed("event -> text line"), 700_000),
        _at_least("JSON lines a second", speed("event -> JSON line"), 400_000),
        _at_most("switches to the idle command in 3 s", one("idle_switches"), 0, ".0f"),
        _at_most("lost under two storms at once", one("lost_in_two_storms"), 0, ".0f"),
    ]


def _of_latency(latencies: Sequence[Latency]) -> list[Target]:
    found = []
    for bound_ms in BOUNDS_MS:
        of_bound = [one for one in latencies if one.bound_ms == bound_ms and one.kept is not None]
        latest = [max(one.max_ms for one in of_bound)] if of_bound else []
        figure = f"latest event with a bound of {bound_ms} ms, ms"
        found.append(_at_most(figure, latest, bound_ms, ".2f"))
    return found


def targets(measured: Measured) -> list[Target]:
    """All targets."""
    wanted = (UNTRACED, TEXT, JSON, FILTERED, PER_EVENT, C_BOOTSTRAP, BOTH)
    rows = {name: measured.rows.get(name) or Row(name, None) for name in wanted}
    everyday = {name: measured.everyday.get(name) or Everyday(name, None) for name in wanted}
    return [
        *_of_the_kernel(rows),
        *_against_c(everyday, rows),
        *_of_the_command(rows),
        *_of_facts(measured.facts),
        *_of_latency(measured.latencies),
    ]


def table(all_targets: list[Target]) -> str:
    """Each target beside its value."""
    verdict = {True: "met", False: "NOT met", None: "not known"}
    cells = [(t.figure, t.promised, t.measured, verdict[t.met]) for t in all_targets]
    return grid([("figure", "target", "measured", ""), *cells])
