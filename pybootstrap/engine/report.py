# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What a command says about itself in its output: that it traces, since when, and its counters.

Without these, a collector cannot tell a machine where nothing happens from one that is not traced.
"""

from __future__ import annotations

import os
import time

from pybootstrap._typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from pybootstrap.engine.tracer import Tracer

__all__ = ["STATUS_S", "Report", "Reporter"]

STATUS_S = 60
"""Seconds between two reports of a running command."""


class Report(NamedTuple):
    """The state of a run of a command, at its start, every minute, and at its end.

    Between the times of the first and the last report, each event that passes the filters is either
    in the output or counted. At the end `produced == written + lost`, unless `reason` is not
    "signal"; then the rest was not written. Up to `missed` events more were not produced.
    """

    name: str
    """The command."""
    version: str
    """Its version."""
    run_id: str
    """A random UUID, the same in all reports of a run."""
    host: str
    """The machine's host name (nodename of uname(2))."""
    boot_id: str | None
    """A UUID that the kernel chooses when it boots; None if /proc does not show it."""
    time_ns: int
    """When the counters were read; at the end, when the programs were detached. Wall clock, ns
    since the epoch."""
    settings: dict[str, Any]
    """The command's options by name, those that were not given included."""
    counters: dict[str, int]
    """The members of `Tracer.stats`, and `written`: events in the output before this report."""
    reason: str | None
    """What ended the run: "signal", "count" (-n) or "error"; None before the end."""


class Reporter:
    """Makes the reports of one run.

    Args:
        name, version: of the command.
        given: its parsed arguments.
        tracer: not started yet.
    """

    def __init__(self, name: str, version: str, given: argparse.Namespace, tracer: Tracer) -> None:
        self._tracer = tracer
        settings = _settings(given, tracer)
        self._fixed = (name, version, _uuid(), os.uname().nodename, _boot_id())
        self._settings = settings

    def report(self, written: int) -> Report:
        """A report now, when `written` events were written."""
        return self._report(time.time_ns(), written, None)

    def final(self, written: int, reason: str) -> Report:
        """The last report; detaches the programs if that was not done yet."""
        return self._report(self._tracer._detach(), written, reason)

    def _report(self, time_ns: int, written: int, reason: str | None) -> Report:
        counters = {**_counters(self._tracer.stats), "written": written}
        return Report(*self._fixed, time_ns, self._settings, counters, reason)


def _settings(given: argparse.Namespace, tracer: Tracer) -> dict[str, Any]:
    """All options by name. A value that is not text, a number or a list of these becomes text."""
    settings = {
        name: [_plain(item) for item in value] if isinstance(value, list) else _plain(value)
        for name, value in vars(given).items()
        if name not in ("check", "version")
    }
    settings["ring_size"] = tracer._ring_size
    return settings


def _plain(value: object) -> object:
    known = value is None or isinstance(value, (bool, int, float, str))
    return value if known else str(value)


def _counters(stats: Any) -> dict[str, int]:
    """The counters that every Tracer has, and any other integer among a tool's own `stats`."""
    every = {name: getattr(stats, name) for name in ("produced", "received", "lost", "missed")}
    own = stats._asdict() if hasattr(stats, "_asdict") else {}
    return {**every, **{name: value for name, value in own.items() if type(value) is int}}


def _uuid() -> str:
    """A random UUID (version 4), made here because importing uuid takes 5 ms."""
    number = int.from_bytes(os.urandom(16), "big")
    number = number & ~(0xF << 76) & ~(3 << 62) | 4 << 76 | 2 << 62
    digits = f"{number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _boot_id() -> str | None:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return None
