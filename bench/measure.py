# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""One tracer under one storm: what it costs the processes and itself, and what it delivers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from programs import BUILD, ROOT, BenchError, cpus

_QUIET_S = 0.25  # longer than any tracer here gathers events before it looks at them
_QUIET_SHARE = 0.1  # of a CPU: a tracer that starts or is behind uses much more
_QUIET_LIMIT_S = 20.0
_END_LIMIT_S = 10.0
_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


@dataclass(frozen=True)
class Load:
    """What a storm consists of."""

    spawns: int = 20_000  # by each storm
    storms: int = 1  # each on a core of its own
    idle: int = 0  # live processes held meanwhile, over all storms
    rate: float = 0  # processes a second of each storm, evenly spaced; 0: as fast as it can

    @property
    def pairs(self) -> int:
        """How many processes exec and exit, including the idle ones."""
        return self.spawns * self.storms + self.idle


@dataclass(frozen=True)
class Contender:
    """A tracer: one command, or several that run together."""

    name: str
    commands: Sequence[Sequence[str]]
    lines: int | None  # that it should print for each exec+exit pair, 0: none; None: not known


class Storm(NamedTuple):
    """What the storms of a load reported; means over them."""

    names: list[str]  # of their processes
    spawn_ns: float  # wall time of a spawn
    cpu_ns: float  # CPU time of a spawn, including the kernel's work for it


class Handlers(NamedTuple):
    """Run-time statistics of BPF programs."""

    run_ns: int
    runs: int


class Usage(NamedTuple):
    """What a tracer's processes have used since they were started."""

    cpu_s: float  # user and system time
    switches: int  # context switches, voluntary or not


class Result(NamedTuple):
    """One run of a contender."""

    spawn_ns: float
    spawn_cpu_ns: float
    start_cpu_s: float  # user and system time of the tracer until it waits for events
    load_cpu_s: float  # the same under the load
    cpu_s: float  # the same from start to end
    memory_kb: int  # its largest resident set (VmHWM)
    delivered: int  # lines about the processes of the storm
    handler_ns: float  # BPF run time for each exec+exit pair; 0 unless requested


# ---- Storms ----


class Storms:
    """The storms of a load, each on a CPU: the last CPU first, as interrupts prefer the first."""

    def __init__(self, load: Load) -> None:
        chosen = cpus()[::-1]
        period_us = round(1e6 / load.rate) if load.rate else 0
        numbers = {"-n": load.spawns, "-i": load.idle // load.storms, "-p": period_us}
        options = [str(word) for option in numbers.items() for word in option]
        self._processes = [
            subprocess.Popen(
                [BUILD / "storm", *options, "-c", str(chosen[number % len(chosen)])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(load.storms)
        ]

    def run(self) -> Storm:
        """Lets the storms begin, and waits until their last processes are gone.

        The storms themselves live until the `with` statement ends. Raises BenchError when one
        fails.
        """
        for process in self._processes:
            assert process.stdin
            with contextlib.suppress(BrokenPipeError):  # it has failed
                process.stdin.write("\n")
                process.stdin.flush()
        lines = [process.stdout.readline() for process in self._processes if process.stdout]
        if not all(lines):
            raise BenchError("the storm failed: see above")
        said = [json.loads(line) for line in lines]
        cpu_ns = [(s["user_us"] + s["system_us"]) * 1000 / max(s["spawns"], 1) for s in said]
        return Storm(
            [s["name"] for s in said],
            sum(s["spawn_ns"] for s in said) / len(said),
            sum(cpu_ns) / len(said),
        )

    def __enter__(self) -> Storms:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            process.terminate()
            process.communicate()


# ---- A running tracer ----


class Running:
    """The processes of a contender, from start to end; their output goes to files."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._outputs: list[IO[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for number, command in enumerate(contender.commands):
                self._start(number, command)
        except OSError as error:
            self.__exit__()
            raise BenchError(f"{contender.name} does not start: {error}") from None

    def _start(self, number: int, command: Sequence[str]) -> None:
        self._outputs.append((BUILD / f"output-{number}").open("wb+"))
        with (BUILD / f"errors-{number}").open("wb") as errors:
            process = subprocess.Popen(command, stdout=self._outputs[-1], stderr=errors, cwd=ROOT)
        self._processes.append(process)

    def settle(self) -> None:
        """Waits until all have loaded a BPF program and wait for events."""
        limit = time.monotonic() + _QUIET_LIMIT_S
        while not all(map(self._loaded, self._processes)):
            self._check_alive()
            if time.monotonic() > limit:
                raise BenchError(f"{self.contender.name} loads no BPF program")
            time.sleep(0.01)
        self.await_quiet()

    def await_quiet(self) -> None:
        """Waits until all events are read: until the tracer uses little CPU for a while."""
        if not self._processes:
            return
        limit = time.monotonic() + _QUIET_LIMIT_S
        before, used_s = self.usage().cpu_s, math.inf
        while used_s > _QUIET_SHARE * _QUIET_S * len(self._processes):
            if time.monotonic() > limit:
                raise BenchError(f"{self.contender.name} does not come to rest")
            time.sleep(_QUIET_S)
            now = self.usage().cpu_s
            before, used_s = now, now - before

    def _check_alive(self) -> None:
        for number, process in enumerate(self._processes):
            if process.poll() is not None:
                raise BenchError(f"{self.contender.name} has ended: {_last_words(number)}")

    @staticmethod
    def _loaded(process: subprocess.Popen[bytes]) -> bool:
        return bool(_programs(process.pid))

    def usage(self) -> Usage:
        """What all processes have used so far. Raises BenchError when one has ended."""
        self._check_alive()
        pids = [process.pid for process in self._processes]
        return Usage(sum(map(_cpu_s, pids)), sum(map(_switches, pids)))

    def memory_kb(self) -> int:
        """The largest resident set so far, summed over the processes."""
        return sum(_status_number(str(process.pid), "VmHWM") for process in self._processes)

    def handlers(self) -> Handlers:
        """The kernel's statistics for the BPF programs of all processes so far."""
        programs: dict[int, Handlers] = {}
        for process in self._processes:
            programs.update(_programs(process.pid))
        counted = programs.values()
        return Handlers(sum(p.run_ns for p in counted), sum(p.runs for p in counted))

    def end(self) -> float:
        """Ends all processes with SIGINT; returns the CPU time they used, in seconds."""
        return sum([_end(process) for process in self._processes])

    def delivered(self, names: Sequence[str]) -> int:
        """How many lines of output are about processes of these names."""
        wanted = [name.encode() for name in names]
        count = 0
        for output in self._outputs:
            output.seek(0)
            count += sum(any(name in line for name in wanted) for line in output)
        return count

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()
        for output in self._outputs:
            output.close()


def _last_words(number: int) -> str:
    lines = (BUILD / f"errors-{number}").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"


def _end(process: subprocess.Popen[bytes]) -> float:
    """Ends a process, if necessary by SIGKILL; returns its CPU time in s, 0 if it had ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return 0.0
        process.send_signal(number)
        limit = time.monotonic() + _END_LIMIT_S
        while time.monotonic() < limit:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return usage.ru_utime + usage.ru_stime
            time.sleep(0.005)
    raise BenchError(f"process {process.pid} cannot be ended")


# ---- Figures from /proc ----


def _cpu_s(pid: int) -> float:
    """User and system time in ns (/proc has only ticks), including threads that have ended."""
    process_clock = (~pid << 3) | 2  # as clock_getcpuclockid(3) makes it
    return time.clock_gettime(process_clock)


def _status_number(process: str, *names: str) -> int:
    """The sum of these numbers of proc_pid_status(5), such as "VmHWM", in its own units.

    `process` is a process id, or "PID/task/TID".
    """
    total = 0
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in names:
            total += int(value.split()[0])
    return total


def _switches(pid: int) -> int:
    """Context switches of the current threads of a process."""
    names = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):  # a thread that has ended by now
            total += _status_number(f"{pid}/task/{task}", *names)
    return total


def _programs(pid: int) -> dict[int, Handlers]:
    """The BPF programs that a process holds descriptors for, by id."""
    found = {}
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            lines = info.read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            if "run_cnt" in fields:
                counted = Handlers(int(fields["run_time_ns"]), int(fields["run_cnt"]))
                found[int(fields["prog_id"])] = counted
    return found


@contextlib.contextmanager
def bpf_stats() -> Iterator[None]:
    """Lets the kernel time every run of a BPF program, which has a cost of its own."""
    before = _STATS.read_text()
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text(before)


# ---- Measurements ----


def measure(contender: Contender, load: Load) -> Result:
    """Runs one storm under this contender; one without commands is the untraced case."""
    with Running(contender) as running:
        running.settle()
        start, before = running.usage(), running.handlers()
        with Storms(load) as storms:
            storm = storms.run()
            running.await_quiet()
            done, after = running.usage(), running.handlers()
            memory_kb = running.memory_kb()
        cpu_s = running.end()
        delivered = running.delivered(storm.names)
    return Result(
        spawn_ns=storm.spawn_ns,
        spawn_cpu_ns=storm.cpu_ns,
        start_cpu_s=start.cpu_s,
        load_cpu_s=done.cpu_s - start.cpu_s,
        cpu_s=cpu_s,
        memory_kb=memory_kb,
        delivered=delivered,
        handler_ns=(after.run_ns - before.run_ns) / load.pairs,
    )
