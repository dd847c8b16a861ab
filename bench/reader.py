# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Reads events in one of the ways that the API has, and notes how late each is delivered.

    reader.py HOW BOUND_MS

It prints "ready" and, after SIGTERM, one JSON object: how late each event was (ns), and how many
were lost. HOW "timer" reads nothing: it sleeps for BOUND_MS again and again and notes how much
longer that took, which is the machine's own share of the lateness.
"""

from __future__ import annotations

import asyncio
import json
import select
import signal
import sys
import time

from pybootstrap import Tracer
from pybootstrap.events import Event, LostEvent

_late_ns: list[int] = []
_told_to_end = False


def _note(events: list[Event]) -> None:
    """The time from the kernel's time stamp of an event until now."""
    now = time.time_ns()
    _late_ns.extend(now - event.time_ns for event in events if not isinstance(event, LostEvent))


def _end_on_sigterm(tracer: Tracer | None) -> None:
    def end(*_: object) -> None:
        global _told_to_end  # noqa: PLW0603
        _told_to_end = True
        if tracer:
            tracer.stop()

    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)


def _read(tracer: Tracer) -> None:
    while events := tracer.read():
        _note(events)


def _select(tracer: Tracer) -> None:
    while not _told_to_end:
        select.select([tracer], [], [])
        _note(tracer.read(0))


def _iterate(tracer: Tracer) -> None:
    async def iterate() -> None:
        async for event in tracer:
            _note([event])

    asyncio.run(iterate())


def _sleep(bound_ms: float) -> None:
    while not _told_to_end:
        begin = time.monotonic_ns()
        time.sleep(bound_ms / 1000)
        _late_ns.append(time.monotonic_ns() - begin - int(bound_ms * 1e6))


_WAYS = {"read": _read, "fileno": _select, "asyncio": _iterate}


def main() -> None:
    """The command line."""
    how, bound_ms = sys.argv[1], float(sys.argv[2])
    lost = 0
    if how == "timer":
        _end_on_sigterm(None)
        _sleep(bound_ms)
    else:
        with Tracer(args=False, max_latency_ms=bound_ms) as tracer:
            _end_on_sigterm(tracer)
            _WAYS[how](tracer)
            lost = tracer.stats.lost
    print(json.dumps({"late_ns": _late_ns, "lost": lost}))


if __name__ == "__main__":
    main()
