# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Measures what tracing costs: this project beside others, in interleaved rounds on this machine.

It needs root and a machine that does little else. It reports, and never fails for being slow.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import everyday
import latency
import micro
import probes
import programs
import synthetic
from measure import Contender, Load, measure
from picture import svg
from programs import BenchError
from report import say, table
from rounds import compare, scale
from targets import (
    BOTH,
    C_BOOTSTRAP,
    EXECSNOOP,
    EXITSNOOP,
    FILTERED,
    JSON,
    PER_EVENT,
    TEXT,
    Facts,
    Measured,
    targets,
)
from targets import table as target_table

_EVERYDAY = {TEXT, C_BOOTSTRAP, BOTH}  # the tracers measured at everyday rates
_PARTS = ("storm", "everyday", "scale", "ceiling", "latency", "facts")
_BPFTRACE = """
tracepoint:sched:sched_process_exec { printf("EXEC %-16s %d\\n", comm, pid); }
tracepoint:sched:sched_process_exit /pid == tid/ { printf("EXIT %-16s %d\\n", comm, pid); }
"""
_NOTES = """

Median (smallest..largest). spawn +%: wall time of a spawn; spawn CPU +%: its CPU time, which other
work on the machine disturbs less; us/event: the tracer's CPU time under the storm; untraced: a
storm against the one before, so how much chance there is in each figure; where they usually differ
by more than 5 %, the targets that are wall times of a spawn are not judged. first event: from the
start of the tracer to that of the first process that it reports; printed: to that line."""


# ---- Contenders ----


def own_contenders() -> list[Contender]:
    """The project with its various options."""
    per_event = [sys.executable, str(programs.SOURCES / "per_event.py")]
    return [
        Contender(TEXT, [programs.bootstrap()], 2),
        Contender(JSON, [[*programs.bootstrap(), "--json"]], 2),
        Contender(FILTERED, [[*programs.bootstrap(), "-d", "10"]], 0),
        Contender(PER_EVENT, [per_event], 2),
    ]


def peer_contenders(missing: Sequence[str]) -> list[Contender]:
    """The other tracers that are installed."""
    paths = {peer: programs.find(peer) or peer for peer in programs.PEERS}
    execsnoop, exitsnoop = [paths["execsnoop"]], [paths["exitsnoop"]]
    peers = [
        Contender(EXECSNOOP, [execsnoop], 1),
        Contender(EXITSNOOP, [exitsnoop], 1),
        Contender(BOTH, [execsnoop, exitsnoop], 2),
        Contender("bpftrace", [[paths["bpftrace"], "-e", _BPFTRACE]], 2),
    ]
    absent = {paths[peer] for peer in missing}
    return [p for p in peers if not any(command[0] in absent for command in p.commands)]


def _c_bootstrap(path: str) -> Contender:
    if not os.access(path, os.X_OK):
        raise argparse.ArgumentTypeError(f"{path!r} is not an executable file")
    return Contender(C_BOOTSTRAP, [[os.path.abspath(path)]], 2)


def _extra_peer(text: str) -> Contender:
    name, equals, command = text.partition("=")
    if not (name and equals and command.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMAND")
    return Contender(name, [shlex.split(command)], None)


# ---- What is measured ----


class _Bench:
    """One run: prints what it measures, and keeps it as figures and for the targets."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.contenders = _contenders(options)
        self.load = Load(options.spawns)
        self.figures: dict[str, Any] = {"machine": programs.machine(), "load": vars(self.load)}
        self.measured = Measured()
        print("\n".join(f"{name}: {value}" for name, value in self.figures["machine"].items()))
        print(f"storm: {options.spawns:,} spawns on one core; {options.rounds} rounds\n")

    def storm(self) -> str:
        """Measures all contenders under a storm on one core."""
        rows = compare(self.contenders, self.load, self.options.rounds, more=True)
        self.figures["rows"] = [row.asdict() for row in rows]
        self.measured.rows = {row.name: row for row in rows}
        return table(rows) + _NOTES

    def everyday(self) -> str:
        """Measures some contenders at low rates."""
        some = [c for c in self.contenders if c.name in _EVERYDAY or c in self.options.peer]
        rows = everyday.compare(some, self.options.rounds, self.options.quick)
        self.figures["everyday"] = [row.asdict() for row in rows]
        self.measured.everyday = {row.name: row for row in rows}
        return everyday.table(rows) + everyday.NOTES

    def scale(self) -> str:
        """How cost grows."""
        some = [c for c in self.contenders if c.name in {TEXT, PER_EVENT, C_BOOTSTRAP, BOTH}]
        text, self.figures["scale"] = scale(some, self.options.quick)
        return text

    def latency(self) -> str:
        """How late events are."""
        latencies = latency.measure_all(self.options.spawns, self.options.quick)
        self.figures["latency"] = [latency.asdict(one) for one in latencies]
        self.measured.latencies = latencies
        return latency.table(latencies) + latency.NOTES

    def ceiling(self) -> str:
        """How many records a second reader, decoder and renderer can take."""
        say("synthetic records")
        outcomes = synthetic.measure_all(0.3 if self.options.quick else 1.0)
        self.figures["synthetic"] = [outcome._asdict() for outcome in outcomes]
        return synthetic.table(outcomes)

    def facts(self) -> str:
        """Measures what needs a run of its own, for the targets."""
        say("idle cost, memory, speeds")
        two = Load(self.load.spawns, storms=min(2, len(programs.cpus())))
        under_two = measure(Contender(TEXT, [programs.bootstrap()], 2), two)
        speeds = micro.measure_all(2000, 5 if self.options.quick else 15)
        self.measured.facts = Facts(
            idle_switches=probes.idle_switches(),
            tracer_memory_mb=probes.tracer_memory_kb() / 1024,
            lost_in_two_storms=2 * two.pairs - under_two.delivered,
            speeds={speed.what: speed.per_second for speed in speeds},
        )
        self.figures["facts"] = vars(self.measured.facts)
        return ""

    def run(self) -> None:
        """Measures the requested parts; if one fails, the others still run."""
        for part in self.options.part:
            try:
                text = getattr(self, part)()
            except BenchError as error:
                text = f"{part}: {error}"
            say("")
            if text:
                print(text, "\n", flush=True)
        promised = targets(self.measured)
        self.figures["targets"] = [target._asdict() for target in promised]
        print(target_table(promised))


# ---- The command line ----


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="rounds of each tracer (5; with --quick 2)")
    parser.add_argument("--spawns", type=int, help="spawns of a storm (20000; --quick: 4000)")
    parser.add_argument("--quick", action="store_true", help="a short run, for a first look")
    parser.add_argument("--scale", action="store_true", help="also how cost grows: takes long")
    parser.add_argument("--part", action="append", choices=_PARTS, help="only these measurements")
    parser.add_argument("--only", action="append", metavar="NAME", help="only these tracers")
    parser.add_argument(
        "--c-bootstrap",
        type=_c_bootstrap,
        metavar="FILE",
        help="compare with the C original too: the program that 'make bootstrap' in examples/c "
        "of github.com/libbpf/libbpf-bootstrap builds",
    )
    parser.add_argument(
        "--peer",
        action="append",
        type=_extra_peer,
        default=[],
        metavar="NAME=COMMAND",
        help="another tracer; it should print comm, a line for each event",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the picture there")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.spawns = options.spawns or (4_000 if options.quick else 20_000)
    options.part = options.part or [part for part in _PARTS if part != "scale" or options.scale]
    return options


def _contenders(options: argparse.Namespace) -> list[Contender]:
    missing = programs.install_peers()
    if missing:
        print(
            f"{', '.join(missing)} not found: install {' and '.join(programs.PACKAGES)} "
            "to compare with them",
            file=sys.stderr,
        )
    original = [options.c_bootstrap] if options.c_bootstrap else []
    everyone = [*own_contenders(), *original, *peer_contenders(missing), *options.peer]
    only = options.only or [c.name for c in everyone]
    if unknown := set(only).difference(c.name for c in everyone):
        raise BenchError(f"no tracer here is called {unknown.pop()!r}")
    return [c for c in everyone if c.name in only]


def _write_files(bench: _Bench) -> None:
    options = bench.options
    if options.json:
        options.json.write_text(json.dumps(bench.figures, indent=1) + "\n")
    if options.svg:
        about = bench.figures["machine"]
        subtitle = f"{options.spawns:,} spawns on one core, {options.rounds} rounds; "
        subtitle += f"{about['kernel']}, {about['cores']} cores of {about['cpu']}"
        rows, rates = bench.measured.rows.values(), bench.measured.everyday.values()
        options.svg.write_text(svg([*rows], [*rates], subtitle))


def _report(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    programs.as_users_run()
    programs.build_storm()
    bench = _Bench(options)
    bench.run()
    print(f"\n{time.monotonic() - begin:.0f} s")
    _write_files(bench)


def main() -> int:
    """The command line."""
    options = _options()
    if os.geteuid():
        print("bench/run.py: tracing takes root: try 'sudo make bench'", file=sys.stderr)
        return 77
    # Exit by an exception, so that tracers are ended and tracefs is unmounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench/run.py: terminated"))
    try:
        with programs.tracefs():
            _report(options)
    except BenchError as error:
        print(f"bench/run.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
