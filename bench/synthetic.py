# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The ceiling of reader, decoder and renderer, with records that no process has to make.

A Tracer is started whose filter lets no real event pass. A program of its own (synthetic.c) then
sends records into that Tracer's ring from another CPU, and keeps its own books: how many it sent,
and how many found the ring full. So all that the reader says can be checked to the record.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

from programs import BUILD, BenchError, build_synthetic, cpus

from pybootstrap import LostEvent, Tracer
from pybootstrap._native import ffi, lib
from pybootstrap.events import Event
from pybootstrap.render import TextRenderer
from pybootstrap.render_json import render_json

_BUFFER_SIZE = 256 * 1024  # bytes
_WAIT_S = 0.05
_NOTHING_REAL = 1e12  # ms: no process is that old
_LATENCY_MS = 10
_RINGBUF = "27"  # enum bpf_map_type: BPF_MAP_TYPE_RINGBUF
_SHARES = (0.5, 0.8, 1.2)  # of the ceiling, as far as the source can reach it

Turn = Callable[[Tracer], int]  # reads once; returns how many losses were reported


class Outcome(NamedTuple):
    """One stage under one rate."""

    stage: str
    offered: float  # records a second that the source had to send
    received: float  # records a second that got through
    ceiling: float  # records that got through for each second of CPU time of the reader
    lost: int  # records that found the ring full, by the source's books
    reported: int  # the sum of all LostEvents; -1 where nothing is decoded
    exact: bool  # every record the source counted was received, or is among the lost


# ---- Stages ----


def _losses(events: Sequence[Event]) -> int:
    if LostEvent not in set(map(type, events)):
        return 0
    return sum(event.count for event in events if isinstance(event, LostEvent))


def _read(buffer: Any) -> Turn:
    """The shim alone: records are copied to a buffer, and no one looks at them."""

    def turn(tracer: Tracer) -> int:
        size = lib.shim_read(tracer._shim, buffer, _BUFFER_SIZE, int(_WAIT_S * 1000))
        if size < 0:
            raise BenchError(f"shim_read: {os.strerror(-size)}")
        return 0

    return turn


def _decode(tracer: Tracer) -> int:
    return _losses(tracer.read(_WAIT_S))


def _render(render: Callable[[Sequence[Event]], str], descriptor: int) -> Turn:
    def turn(tracer: Tracer) -> int:
        events = tracer.read(_WAIT_S)
        os.write(descriptor, render(events).encode())
        return _losses(events)

    return turn


def _stages(descriptor: int) -> dict[str, Turn]:
    return {
        "shim_read": _read(ffi.new("char[]", _BUFFER_SIZE)),
        "Tracer.read": _decode,
        "+ text": _render(TextRenderer().render, descriptor),
        "+ text, arguments": _render(TextRenderer(args=True).render, descriptor),
        "+ JSON": _render(render_json, descriptor),
    }


# ---- The source ----


def _ring_ids() -> set[int]:
    """The ids of the ring buffer maps that this process holds."""
    found = set()
    for info in Path("/proc/self/fdinfo").iterdir():
        try:
            text = info.read_text()
        except OSError:  # the descriptor of the directory itself
            continue
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if fields.get("map_type", "").strip() == _RINGBUF:
            found.add(int(fields["map_id"]))
    return found


def _start_source(tracer_rings: set[int], rate: float, seconds: float) -> subprocess.Popen[str]:
    (ring,) = tracer_rings
    settings = [ring, _LATENCY_MS, rate, seconds, cpus()[-1]]
    command = [str(BUILD / "synthetic"), *map(str, settings)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def measure(stage: str, turn: Turn, rate: float, seconds: float) -> Outcome:
    """Reads as fast as it can while the source sends `rate` records a second (0: no limit)."""
    with Tracer(min_duration_ms=_NOTHING_REAL, max_latency_ms=_LATENCY_MS) as tracer:
        source = _start_source(_ring_ids(), rate, seconds)
        began = time.process_time()
        reported = 0
        while source.poll() is None:
            reported += turn(tracer)
        output, _ = source.communicate()
        if source.returncode:
            raise BenchError("the synthetic source failed: see above")
        books = json.loads(output)
        while tracer.stats.received + books["lost"] < books["produced"]:
            before = tracer.stats.received
            reported += turn(tracer)
            if tracer.stats.received == before:
                break  # the books do not agree
        received, cpu_s = tracer.stats.received, time.process_time() - began
    wall_s = books["wall_ns"] / 1e9
    in_time = books["offered"] - books["lost"]
    return Outcome(
        stage,
        books["offered"] / wall_s,
        in_time / wall_s,
        received / cpu_s,
        books["lost"],
        -1 if stage == "shim_read" else reported,
        received + books["lost"] == books["produced"],
    )


def measure_all(seconds: float) -> list[Outcome]:
    """Each stage: as fast as the source can, then at shares of what got through then."""
    build_synthetic()
    outcomes = []
    with Path(os.devnull).open("wb") as output:
        for stage, turn in _stages(output.fileno()).items():
            flood = measure(stage, turn, 0, seconds)
            most = min(flood.ceiling, flood.offered)
            rates = [most * share for share in _SHARES]
            outcomes += [flood, *(measure(stage, turn, rate, seconds) for rate in rates)]
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as text."""
    header = ("offered/s", "received/s", "per CPU s", "lost", "reported")
    lines = [f"{'stage':<18} " + " ".join(f"{name:>10}" for name in header) + "  books"]
    for o in outcomes:
        reported = "-" if o.reported < 0 else f"{o.reported:,}"
        lines.append(
            f"{o.stage:<18} {o.offered:>10,.0f} {o.received:>10,.0f} {o.ceiling:>10,.0f} "
            f"{o.lost:>10,} {reported:>10}  {'exact' if o.exact else 'WRONG'}"
        )
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2, help="length of each run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    try:
        outcomes = measure_all(options.seconds)
    except BenchError as error:
        print(f"synthetic.py: {error}", file=sys.stderr)
        return 1
    print(table(outcomes))
    if options.json:
        options.json.write_text(json.dumps([o._asdict() for o in outcomes], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
