# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""How fast the Python side alone is: from records in memory to events, text and JSON; and imports.

Events decode a field when it is read, so decoding is shown with and without reading all fields.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

from programs import as_users_run

from pybootstrap import ExecEvent, ExitEvent, Tracer
from pybootstrap.engine.decoder import Decoder
from pybootstrap.engine.events import make_decoder
from pybootstrap.engine.render_json import JsonRenderer
from pybootstrap.events import TYPES, Event
from pybootstrap.render import TextRenderer

_PROGRAMS = (
    ("/usr/bin/sh", ("sh", "-c", "test -e /etc/os-release && echo yes")),
    ("/usr/bin/gcc", ("gcc", "-O2", "-Wall", "-Iinclude", "-c", "main.c", "-o", "main.o")),
    ("/usr/bin/git", ("git", "status", "--porcelain")),
    ("/usr/bin/true", ("true",)),
    ("/opt/söme/bin/run-parts", ("run-parts", "--report", "/etc/cron hourly")),
)


class Speed(NamedTuple):
    """One measurement: the median of its repeats, and the slowest and fastest."""

    what: str
    per_second: float
    slowest: float
    fastest: float


# ---- Records ----


def _process(number: int, comm: str) -> dict[str, Any]:
    return {
        "start_boottime_ns": 10**12 + number,
        "cgroup_id": 4242,
        "pid": 1000 + number,
        "ppid": 1000,
        "uid": 1000,
        "gid": 1000,
        "sid": 900,
        "ns_pid": 1000 + number,
        "comm": comm.encode()[:15],
    }


def _record(kind: str, number: int, with_args: bool, **more: Any) -> bytes:
    """The bytes of one record, as `shim_read` returns them."""
    filename, args = _PROGRAMS[number % len(_PROGRAMS)]
    shown = (filename, *(args if with_args else ()))
    tail = b"".join(part.encode() + b"\0" for part in shown)
    if kind == "exit" and not with_args:
        shown, tail = (), b""
    filename_size = len(filename.encode()) + 1 if shown else 0
    event = ExecEvent if kind == "exec" else ExitEvent
    header = {
        "size": event.HEAD_SIZE + len(tail),
        "kind": event.KIND,
        "time_ns": 1_700_000_000 * 10**9 + number * 100_000,
    }
    process = _process(number, filename.rpartition("/")[2])
    text = {"filename_size": filename_size, "args_size": len(tail) - filename_size}
    members = {"header": header, "process": process, "text": text, **more}
    return TYPES.struct(f"{kind}_record").encode(members) + tail


def batch(pairs: int, with_args: bool) -> bytes:
    """The records of this many processes that start and end."""
    records = []
    for number in range(pairs):
        records.append(_record("exec", number, with_args))
        status = (0, 256, 9)[number % 10 % 3]
        ran_ns = 1_500_000 * (number % 100)
        records.append(_record("exit", number, with_args, duration_ns=ran_ns, status=status))
    return b"".join(records)


# ---- Measuring ----


def _decoder() -> Decoder:
    return make_decoder(Tracer.events())


def _speed(what: str, items: int, work: Callable[[], object], repeats: int) -> Speed:
    """Items a second; each repeat does the work once."""
    speeds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        speeds.append(items / (time.perf_counter() - begin))
    return Speed(what, statistics.median(speeds), min(speeds), max(speeds))


def _read_all(events: Sequence[Event]) -> None:
    for event in events:
        if isinstance(event, (ExecEvent, ExitEvent)):
            event.asdict()


def _read_columns(events: Sequence[Event]) -> None:
    """Reads the fields that the default text shows."""
    for event in events:
        if isinstance(event, ExecEvent):
            _ = event.time_ns, event.comm, event.pid, event.ppid, event.filename
        elif isinstance(event, ExitEvent):
            _ = event.time_ns, event.comm, event.pid, event.ppid, event.exit_code
            _ = event.duration_ns, event.signal


def measure_all(pairs: int, repeats: int) -> list[Speed]:
    """All speeds, over a batch of this many exec+exit pairs."""
    plain, full = batch(pairs, False), batch(pairs, True)
    plain_events, full_events = _decoder().decode(plain), _decoder().decode(full)
    short, long, count = TextRenderer().render, TextRenderer(args=True).render, len(plain_events)
    render_json = JsonRenderer(Tracer.events()).render
    work: dict[str, Callable[[], object]] = {
        "record -> event": lambda: _decoder().decode(plain),
        "record -> event, with arguments": lambda: _decoder().decode(full),
        "... and the columns of the text read": lambda: _read_columns(_decoder().decode(plain)),
        "... and every field read": lambda: _read_all(_decoder().decode(full)),
        "event -> text line": lambda: short(plain_events),
        "event -> text line with arguments": lambda: long(full_events),
        "event -> JSON line": lambda: render_json(full_events),
        "record -> text line": lambda: short(_decoder().decode(plain)),
        "record -> JSON line": lambda: render_json(_decoder().decode(full)),
    }
    return [_speed(what, count, run, repeats) for what, run in work.items()]


_IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def import_ms(module: str, repeats: int) -> float:
    """The median time in ms to import a module in a fresh interpreter."""
    command = [sys.executable, "-c", _IMPORT.format(module)]
    runs = [subprocess.run(command, capture_output=True, check=True) for _ in range(repeats)]
    return statistics.median(float(run.stdout) for run in runs) * 1000


# ---- The command line ----


def table(speeds: Sequence[Speed]) -> str:
    """The speeds as text."""
    lines = [f"{'what':<38} {'per second':>11}   {'slowest .. fastest':>22}"]
    lines += [
        f"{s.what:<38} {s.per_second:>11,.0f}   {s.slowest:>10,.0f} .. {s.fastest:>9,.0f}"
        for s in speeds
    ]
    return "\n".join(lines)


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=2000, help="exec+exit pairs in a batch")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    as_users_run()
    speeds = measure_all(options.pairs, options.repeats)
    modules = ("pybootstrap", "pybootstrap.cli", "pybootstrap.render", "asyncio")
    imports = {module: import_ms(module, options.repeats) for module in modules}
    print(table(speeds))
    for module, took_ms in imports.items():
        print(f"import {module:<31} {took_ms:>8.1f} ms")
    if options.json:
        figures = {"speeds": [s._asdict() for s in speeds], "import_ms": imports}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
