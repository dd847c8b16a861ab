# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The ceiling of reader, decoder and renderer, with records that need no processes.

It starts a Tracer whose filter lets no real event pass. A separate program (synthetic.c) then sends
records into that Tracer's ring from another CPU, and counts for itself how many it sent and how
many found the ring full. So the reader's counters can be checked to the record.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

from programs import BUILD, BenchError, build_synthetic, cpus

from pybootstrap import LostEvent, Tracer
from pybootstrap.engine._native import ffi, lib
from pybootstrap.engine.render_json import JsonRenderer
from pybootstrap.events import Event
from pybootstrap.render import TextRenderer

_BUFFER_SIZE = 256 * 1024  # bytes
_WAIT_S = 0.05
_NOTHING_REAL = 1e12  # ms: no process is that old
_LATENCY_MS = 10
_PATIENCE_S = 2.0  # how long to wait for records that do not come
_RINGBUF = "27"  # enum bpf_map_type: BPF_MAP_TYPE_RINGBUF
_SHARES = (0.5, 0.8, 1.2)  # of the ceiling, as far as the source can reach it

Turn = Callable[[Tracer], int]  # reads once; returns how many losses were reported


class Outcome(NamedTuple):
    """One stage under one rate."""

    stage: str
    offered: float  # records a second that the source had to send
    received: float  # records a second that got through
    ceiling: float  # records that got through for each second of CPU time of the reader
    lost: int  # records that found the ring full, as the source counts
    reported: int  # the sum of all LostEvents; -1 where nothing is decoded
    exact: bool  # every record that the source counted was received or lost


# ---- Stages ----


def _losses(events: Sequence[Event]) -> int:
    if LostEvent not in set(map(type, events)):
        return 0
    return sum(event.count for event in events if isinstance(event, LostEvent))


def _read(buffer: Any) -> Turn:
    """The shim alone: it copies records to a buffer, and nothing reads them."""
    taken: Counter[Tracer] = Counter()

    def turn(tracer: Tracer) -> int:
        wait_ms = int(_WAIT_S * 1000)
        size = lib.shim_read(tracer._shim, buffer, _BUFFER_SIZE, wait_ms, False, taken[tracer])
        if size < 0:
            raise BenchError(f"shim_read: {os.strerror(-size)}")
        taken[tracer] += size > 0
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
        "+ JSON": _render(JsonRenderer(Tracer.events()).render, descriptor),
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


class _Source:
    """The running source; it counts what it sends."""

    def __init__(self, rate: float, seconds: float) -> None:
        (ring,) = _ring_ids()
        command = [str(BUILD / "synthetic"), *map(str, (ring, rate, seconds, cpus()[-1]))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def sending(self) -> bool:
        """Whether it has not printed its counters yet."""
        assert self._process.stdout
        return not select.select([self._process.stdout], [], [], 0)[0]

    def counters(self) -> dict[str, int]:
        """Its next output: "produced", "lost" and "wall_ns". Raises BenchError if it failed."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("the synthetic source failed: see above")
        counters: dict[str, int] = json.loads(line)
        return counters

    def send_last(self) -> None:
        """Lets the source run once more."""
        assert self._process.stdin
        self._process.stdin.close()

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


def _catch_up(tracer: Tracer, turn: Turn, counters: dict[str, int]) -> int:
    """Reads until everything sent is received or lost, or nothing more comes.

    Returns how many losses were reported.
    """
    reported, limit = 0, time.monotonic() + _PATIENCE_S
    while tracer.stats.received + counters["lost"] < counters["produced"]:
        before = tracer.stats.received
        reported += turn(tracer)
        if tracer.stats.received > before:
            limit = time.monotonic() + _PATIENCE_S
        elif time.monotonic() > limit:
            break
    return reported


def measure(stage: str, turn: Turn, rate: float, seconds: float) -> Outcome:
    """Reads as fast as it can while the source sends `rate` records a second (0: no limit)."""
    with Tracer(min_duration_ms=_NOTHING_REAL, max_latency_ms=_LATENCY_MS) as tracer:
        with _Source(rate, seconds) as source:
            began = time.process_time()
            reported = 0
            while source.sending():
                reported += turn(tracer)
            sent = source.counters()
            reported += _catch_up(tracer, turn, sent)
            received, cpu_s = tracer.stats.received, time.process_time() - began
            source.send_last()
            final = source.counters()
            reported += _catch_up(tracer, turn, final)
        received_all = tracer.stats.received
    wall_s = sent["wall_ns"] / 1e9
    return Outcome(
        stage,
        sent["produced"] / wall_s,
        (sent["produced"] - sent["lost"]) / wall_s,
        received / cpu_s,
        final["lost"],
        -1 if stage == "shim_read" else reported,
        received_all + final["lost"] == final["produced"],
    )


def measure_all(seconds: float) -> list[Outcome]:
    """Measures each stage at full speed, then at shares of the rate that got through."""
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
    lines = [f"{'stage':<18} " + " ".join(f"{name:>10}" for name in header) + "  counters"]
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
