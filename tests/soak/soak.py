# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Two tracers under a mixed load for a long time: soak.py [--minutes M]. As root.

One is the command, whose JSON this program reads and counts; the other is a Tracer in a Python
program of its own. The load consists of a steady hundred processes a second, bursts, long and odd
names, processes that live for a while, and pauses. Every 30 seconds the program prints a row for
each tracer. At the end it checks the counters, also against the number of processes that the load
itself started.

The exit status is 1 if events are unaccounted for, or if a tracer's memory or descriptors have
grown beyond the bounds below since it warmed up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
GROWTH_KIB = 4096  # of VmRSS since the warm-up; the events of one batch can take this much
WARM_UP_S = 60.0  # caches fill, the allocator settles
TICKS = os.sysconf("SC_CLK_TCK")

# The tracer in Python: reads until SIGTERM, and prints its counters on SIGUSR1 and at the end.
TRACER = """
import json, os, signal, sys
from pybootstrap import ExitEvent, LostEvent, Tracer
asked, stopped, load = False, False, int(sys.argv[1])
count = {"events": 0, "reported_lost": 0, "ends": 0}

def ask(*_):
    global asked
    asked = True

def stop(*_):
    global stopped
    stopped = True
    tracer.stop()

def say():
    print(json.dumps({**count, **tracer.stats._asdict()}), flush=True)

with Tracer() as tracer:
    signal.signal(signal.SIGUSR1, ask)
    signal.signal(signal.SIGTERM, stop)
    print(json.dumps({"ready": True}), flush=True)
    while True:
        events = tracer.read(timeout=1)
        if stopped and not events:
            break
        for event in events:
            if isinstance(event, LostEvent):
                count["reported_lost"] += event.count
            else:
                count["events"] += 1
                count["ends"] += (
                    isinstance(event, ExitEvent)
                    and event.ppid == load
                    and event.filename in ("/bin/true", "/bin/sleep")
                )
        if asked:
            asked = False
            say()
    say()
"""


# ---- What a process uses ----


class Use(NamedTuple):
    rss_kib: int
    descriptors: int
    cpu_s: float


def use_of(pid: int) -> Use:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Use(
        int(found[1]) if found else 0,
        len(os.listdir(f"/proc/{pid}/fd")),
        (int(fields[11]) + int(fields[12])) / TICKS,
    )


# ---- The two tracers ----


class Traced:
    """A tracing process; a thread of ours counts what it writes."""

    name = ""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.events = self.reported_lost = self.ends = 0
        self.counters: dict[str, int] = {}
        self.stderr = b""
        self.warm: Use | None = None
        self.worst: Use | None = None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.threads = [
            threading.Thread(target=self.read, args=[self.process.stdout]),
            threading.Thread(target=self.read_stderr, args=[self.process.stderr]),
        ]
        for thread in self.threads:
            thread.start()

    def read(self, lines: IO[bytes]) -> None:
        raise NotImplementedError

    def read_stderr(self, lines: IO[bytes]) -> None:
        for line in lines:
            self.stderr = (self.stderr + line)[-10_000:]

    def measure(self, warm: bool) -> Use:
        use = use_of(self.process.pid)
        if warm and self.warm is None:
            self.warm = use
        if warm:
            worst = self.worst or use
            self.worst = Use(
                max(use.rss_kib, worst.rss_kib), max(use.descriptors, worst.descriptors), use.cpu_s
            )
        return use

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self.threads:
            thread.join()

    def problems(self, started: int) -> list[str]:
        """What is wrong, in sentences; the load started `started` processes."""
        found = []
        if self.process.returncode != 0:
            found.append(f"exit status {self.process.returncode}: {self.stderr.decode()[-500:]}")
        if self.warm and self.worst:
            grown = self.worst.rss_kib - self.warm.rss_kib
            if grown > GROWTH_KIB:
                found.append(f"memory grew by {grown} KiB, more than {GROWTH_KIB}")
            if self.worst.descriptors > self.warm.descriptors:
                found.append(f"descriptors: {self.warm.descriptors}, then {self.worst.descriptors}")
        if not started - self.reported_lost <= self.ends <= started:
            found.append(f"{self.ends} of {started} ends seen, {self.reported_lost} lost")
        return found


class CommandTraced(Traced):
    """The command. The losses it reports at its end are compared with those in its stream."""

    name = "command"

    def __init__(self, load: int) -> None:
        self.load = load
        self.reports: list[dict[str, Any]] = []
        super().__init__("-m", "pybootstrap", "--json")

    def read(self, lines: IO[bytes]) -> None:
        for line in lines:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "lost":
                self.reported_lost += event["count"]
            elif event["event"].startswith("trace_"):
                self.reports.append(event)
            else:
                self.events += 1
                self.ends += (
                    event["event"] == "exit"
                    and event["ppid"] == self.load
                    and event["filename"] in {"/bin/true", "/bin/sleep"}
                )

    def problems(self, started: int) -> list[str]:
        found = super().problems(started)
        counted = self.reports[-1]["counters"]
        seen = {"written": self.events, "lost": self.reported_lost}
        if seen.items() - counted.items() or counted["produced"] != sum(seen.values()):
            found.append(f"the last report has {counted}, seen {seen}")
        closing = re.search(rb"(\d+) of (\d+) events were lost", self.stderr)
        if closing and int(closing[2]) != self.events + self.reported_lost:
            found.append(f"produced {closing[2].decode()}, seen {self.events}+{self.reported_lost}")
        if closing and int(closing[1]) != self.reported_lost:
            found.append(f"lost {closing[1].decode()}, reported in the stream {self.reported_lost}")
        if self.reported_lost and not closing:
            found.append("events were lost, which was not reported at the end")
        return found


class TracerTraced(Traced):
    """The Tracer in a program; its counters are its `stats`."""

    name = "Tracer"

    def __init__(self, load: int) -> None:
        self.ready = threading.Event()
        super().__init__("-c", TRACER, str(load))

    def read(self, lines: IO[bytes]) -> None:
        for line in lines:
            self.counters = json.loads(line)
            self.ready.set()
            self.events = self.counters.get("events", 0)
            self.reported_lost = self.counters.get("reported_lost", 0)
            self.ends = self.counters.get("ends", 0)

    def measure(self, warm: bool) -> Use:
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(1.5)
        return super().measure(warm)

    def problems(self, started: int) -> list[str]:
        found = super().problems(started)
        counters = self.counters
        if counters.get("produced") != counters.get("received", 0) + counters.get("lost", 0):
            found.append(f"the counters do not balance: {counters}")
        if (counters.get("received"), counters.get("lost")) != (self.events, self.reported_lost):
            found.append(
                f"counted {self.events}, {self.reported_lost} lost; the counters are {counters}"
            )
        return found


# ---- The load ----

ODD = ["\x1b[31m", "a\nb", os.fsdecode(b"\xff\xfe"), "\u202ex", "", "'$(id)"]


class Load(threading.Thread):
    """Starts processes as children of this program, waits for each, and counts them."""

    def __init__(self, end: float, seed: int) -> None:
        super().__init__()
        self.end = end
        self.random = random.Random(seed)
        self.started = 0
        self.stopping = False
        self.alive: list[tuple[float, int]] = []  # when to end it, and its pid

    def run(self) -> None:
        try:
            while not self.stopping and time.monotonic() < self.end:
                self.act()
        finally:
            self.end_those_due(float("inf"))

    def act(self) -> None:
        kind = self.random.randrange(20)
        if kind == 0:  # pause
            self.wait(self.random.uniform(2, 8))
        elif kind == 1:  # burst
            for _ in range(self.random.randrange(200, 600)):
                self.short()
        elif kind == 2:  # some live for a while
            for _ in range(20):
                due = time.monotonic() + self.random.uniform(1, 30)
                self.alive.append((due, self.spawn("/bin/sleep", ["sleep", "120"])))
        elif kind == 3:  # much text
            for _ in range(20):
                words = ["true", *self.random.choices(ODD, k=30), "x" * self.random.randrange(9000)]
                self.reap(self.spawn("/bin/true", words))
        else:  # steadily, about a hundred a second
            for _ in range(100):
                self.short()
                self.wait(0.008)
        self.end_those_due(time.monotonic())

    def wait(self, seconds: float) -> None:
        end = min(time.monotonic() + seconds, self.end)
        while not self.stopping and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))

    def spawn(self, program: str, argv: list[str]) -> int:
        self.started += 1
        return os.posix_spawn(program, argv, {})

    def reap(self, pid: int) -> None:
        os.waitpid(pid, 0)

    def short(self) -> None:
        self.reap(self.spawn("/bin/true", ["true", str(self.started)]))

    def end_those_due(self, now: float) -> None:
        for due, pid in self.alive:
            if due <= now:
                os.kill(pid, signal.SIGTERM)
                self.reap(pid)
        self.alive = [(due, pid) for due, pid in self.alive if due > now]


# ---- The run ----


def print_rows(minutes: float, tracers: list[Traced], warm: bool) -> None:
    for tracer in tracers:
        use = tracer.measure(warm)
        print(
            f"| {minutes:7.1f} | {tracer.name:<7} | {tracer.events:>9} | {tracer.reported_lost:>6} "
            f"| {use.rss_kib:>8} | {use.descriptors:>4} | {use.cpu_s:>7.2f} |",
            flush=True,
        )


HEADER = """\
| minutes | tracer  |    events |   lost | RSS, KiB |  fds |  CPU, s |
| ------: | :------ | --------: | -----: | -------: | ---: | ------: |"""


def soak(seconds: float, every: float, seed: int) -> int:
    begin = time.monotonic()
    load = Load(begin + seconds, seed)
    tracers: list[Traced] = []
    try:
        python = TracerTraced(os.getpid())
        tracers.append(python)
        tracers.append(CommandTraced(os.getpid()))
        if not python.ready.wait(60):
            print("the Tracer did not start", file=sys.stderr)
            return 1
        time.sleep(3)  # the command prints nothing until there is an event
        load.start()
        print(HEADER, flush=True)
        while load.is_alive():
            load.join(every)
            passed = time.monotonic() - begin
            print_rows(passed / 60, tracers, warm=passed >= min(WARM_UP_S, seconds / 3))
        time.sleep(2)
    finally:
        load.stopping = True
        if load.ident:
            load.join()
        for tracer in tracers:
            tracer.end()
    wrong = [
        f"{tracer.name}: {problem}"
        for tracer in tracers
        for problem in tracer.problems(load.started)
    ]
    for tracer in tracers:
        grown = tracer.worst.rss_kib - tracer.warm.rss_kib if tracer.warm and tracer.worst else 0
        print(
            f"{tracer.name}: {tracer.events} events and {tracer.reported_lost} lost; "
            f"{tracer.ends} ends of the {load.started} processes that were started; "
            f"memory at most {grown} KiB more than after the warm-up"
        )
    print(f"Tracer's counters: {python.counters}")
    for problem in wrong:
        print(f"WRONG: {problem}")
    print("soak: FAILED" if wrong else "soak: passed")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run two tracers under load for a long time.")
    parser.add_argument("--minutes", type=float, default=30, metavar="M")
    parser.add_argument("--every", type=float, default=30, metavar="S", help="seconds between rows")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the load")
    options = parser.parse_args()
    return soak(options.minutes * 60, options.every, options.seed)


if __name__ == "__main__":
    sys.exit(main())
