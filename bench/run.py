# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What tracing costs: this project beside others, in interleaved rounds on this machine.

It takes root, and a machine that does little else. It reports, and never fails for being slow.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import everyday
import micro
import probes
import programs
import synthetic
from measure import Contender, Load, measure
from programs import BenchError
from report import Row, say, svg, table
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
    targets,
)
from targets import table as target_table

_EVERYDAY = {TEXT, C_BOOTSTRAP, BOTH}  # who is measured at everyday rates
_BPFTRACE = """
tracepoint:sched:sched_process_exec { printf("EXEC %-16s %d\\n", comm, pid); }
tracepoint:sched:sched_process_exit /pid == tid/ { printf("EXIT %-16s %d\\n", comm, pid); }
"""
_NOTES = """

Median (smallest..largest). spawn +%: wall time of a spawn; spawn CPU +%: its CPU time, which other
work on the machine disturbs less; us/event: the tracer's CPU time under the storm; untraced: the
second of two storms against the first, so how much chance there is in each figure. Where that is
more than 10 %, the targets that are wall times of a spawn are not judged. first event: from the
start of the tracer to that of the first process that it reports; printed: to that line.
"""


# ---- Who takes part ----


def own_contenders() -> list[Contender]:
    """The project, in the ways it can be run."""
    per_event = [sys.executable, str(programs.SOURCES / "per_event.py")]
    return [
        Contender(TEXT, [programs.bootstrap()], 2),
        Contender(JSON, [[*programs.bootstrap(), "--json"]], 2),
        Contender(FILTERED, [[*programs.bootstrap(), "-d", "10"]], 0),
        Contender(PER_EVENT, [per_event], 2),
    ]


def peer_contenders(missing: Sequence[str]) -> list[Contender]:
    """The others, as far as they are installed."""
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


# ---- Facts ----


def _speed_figures(repeats: int) -> dict[str, float]:
    return {s.what: s.per_second for s in micro.measure_all(2000, repeats)}


def measure_facts(load: Load, repeats: int) -> Facts:
    """What needs a run of its own."""
    say("idle cost, memory")
    two = Load(load.spawns, storms=min(2, len(programs.cpus())))
    under_two = measure(Contender(TEXT, [programs.bootstrap()], 2), two)
    return Facts(
        idle_switches=probes.idle_switches(),
        tracer_memory_mb=probes.tracer_memory_kb() / 1024,
        lost_in_two_storms=2 * two.pairs - under_two.delivered,
        speeds=_speed_figures(repeats),
    )


def _ceiling(figures: dict[str, Any], seconds: float) -> str:
    """How many records a second reader, decoder and renderer can take; a table."""
    say("synthetic records")
    try:
        outcomes = synthetic.measure_all(seconds)
    except BenchError as error:
        return f"no synthetic records: {error}"
    finally:
        say("")
    figures["synthetic"] = [outcome._asdict() for outcome in outcomes]
    return synthetic.table(outcomes)


# ---- The command line ----


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="rounds of each tracer (5; with --quick 2)")
    parser.add_argument("--spawns", type=int, help="spawns of a storm (20000; --quick: 4000)")
    parser.add_argument("--quick", action="store_true", help="a short run, for a first look")
    parser.add_argument("--scale", action="store_true", help="also how cost grows: takes long")
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


def _write_files(options: argparse.Namespace, rows: Sequence[Row], figures: dict[str, Any]) -> None:
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.svg:
        about = figures["machine"]
        subtitle = f"{options.spawns:,} spawns on one core, {options.rounds} rounds; "
        subtitle += f"{about['kernel']}, {about['cores']} cores of {about['cpu']}"
        options.svg.write_text(svg(rows, subtitle))


def _report(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    programs.as_users_run()
    programs.build_storm()
    contenders, load = _contenders(options), Load(options.spawns)
    figures: dict[str, Any] = {"machine": programs.machine(), "load": vars(load)}
    print("\n".join(f"{name}: {value}" for name, value in figures["machine"].items()))
    print(f"storm: {load.spawns:,} spawns on one core; {options.rounds} rounds\n", flush=True)
    rows = compare(contenders, load, options.rounds, more=True)
    print(table(rows) + _NOTES, flush=True)
    figures["rows"] = [row.asdict() for row in rows]
    everyday_rows = everyday.compare(
        [c for c in contenders if c.name in _EVERYDAY or c in options.peer],
        options.rounds,
        options.quick,
    )
    print(everyday.table(everyday_rows) + everyday.NOTES, flush=True)
    figures["everyday"] = [row.asdict() for row in everyday_rows]
    if options.scale:
        some = [c for c in contenders if c.name in {TEXT, PER_EVENT, C_BOOTSTRAP, BOTH}]
        text, figures["scale"] = scale(some, options.quick)
        print(text, "\n", flush=True)
    print(_ceiling(figures, 0.3 if options.quick else 1.0), "\n", flush=True)
    facts = measure_facts(load, 5 if options.quick else 15)
    promised = targets({row.name: row for row in rows}, facts)
    figures["facts"], figures["targets"] = vars(facts), [t._asdict() for t in promised]
    print(target_table(promised))
    print(f"\n{time.monotonic() - begin:.0f} s")
    _write_files(options, rows, figures)


def main() -> int:
    """The command line."""
    options = _options()
    if os.geteuid():
        print("bench/run.py: tracing takes root: try 'sudo make bench'", file=sys.stderr)
        return 77
    try:
        with programs.tracefs():
            _report(options)
    except BenchError as error:
        print(f"bench/run.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
