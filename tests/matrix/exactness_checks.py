# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The checks of guest.py that compare every event with what wait4(2) returned: tests/exactness.

When a kernel is checked, the program built from its behave.c is beside this file.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from checking import Check

from tests.exactness import workload

BEHAVE = Path(__file__).with_name("behave")
SEED = 1
GENERATED = 300  # the minimum number of processes of the generated workload
SHOWN = 5  # differences in a detail
# An emulated CPU takes this much longer between an EXIT and the real end of the process.
EMULATED = 50


def allow_for_emulation() -> None:
    """Widen the bounds of usage by what emulation costs."""
    workload.CPU_SLACK_US *= EMULATED
    workload.CPU_SLACK_US_PER_MB *= EMULATED


def compared(scripts: list[Any], parallel: int, **settings: Any) -> str:
    """Run scripts under a Tracer; fail with the first differences, or return how many agreed."""
    with workload.Site(BEHAVE) as site:
        recording = workload.record(site, scripts, parallel, **settings)
    stats = recording.stats
    args = settings.get("args", True)
    found = [str(one) for one in workload.compare(recording.events, recording.witness, args=args)]
    if stats.produced != stats.received + stats.lost or stats.lost:
        found.insert(0, f"the counters: {stats}")
    assert not found, f"{len(found)} differences, missed {stats.missed}: " + "; ".join(
        found[:SHOWN]
    )
    partial = sum(getattr(event, "usage_partial", False) for event in recording.events)
    said = f"{len(recording.witness.processes)} processes, {len(recording.events)} events"
    return said + (f", usage of {partial} in part" if partial else "") + f", missed {stats.missed}"


def check_traps() -> str:
    """The behaviours that other tracers get wrong, each alone and some at once."""
    return compared(list(workload.TRAPS.values()), parallel=4)


def check_generated() -> str:
    """Random behaviours."""
    return compared(workload.plan(SEED, GENERATED), parallel=8)


def check_no_args() -> str:
    """The same without arguments, which makes the programs differ."""
    return compared(workload.plan(SEED + 10**6, GENERATED // 3), parallel=8, args=False)


def check_crowds() -> str:
    """64 threads that exit at once, in three ways, 50 times each."""
    ways = [workload.Script.of(f"crowd 64 {how}") for how in ("each", "group", "pexit")]
    return compared(ways * 50, parallel=2)


def check_races() -> str:
    """Leaders that exit first, and execs while threads end, 50 times each."""
    return compared(list(itertools.chain.from_iterable([workload.RACES.values()] * 50)), parallel=4)


CHECKS: tuple[Check, ...] = (
    check_traps, check_generated, check_no_args, check_crowds, check_races,
)  # fmt: skip
