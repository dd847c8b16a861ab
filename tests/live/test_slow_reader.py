# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""A reader that is slow, stopped, or gone: memory stays bounded, and in the end every event was
either delivered or reported as lost. Events come from the synthetic source at the full speed of a
CPU, so their exact number is known.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.live.conftest import Feed, Start, Trace
from tests.live.source import A, Answer, Sender, Source
from tests.support import (
    DEADLINE_S,
    Command,
    assert_balanced,
    memory_kib,
    ns_of,
    preload,
    run,
    status_of,
    wait_until,
    without_reports,
)

RECORD = 224  # bytes of the ring that one record of the source takes
RING = 2 << 20  # bytes, by default
FITS = RING // RECORD - 1  # records


def traced(bootstrap: Start, *options: str, **popen: object) -> Command:
    """Starts the command, which shows only the source's events because init executes nothing."""
    command = bootstrap("--json", "--pid", "1", *options, **popen)
    command.wait_for_tracing()
    return command


def accounting_of(out: bytes, err: str) -> tuple[list[int], int]:
    """The numbers of the records in JSON output, and how many were lost; all reports of losses
    must agree."""
    lines = without_reports(out)
    numbers = [e["pid"] for e in lines if e["event"] == "exec"]
    gaps = [e["count"] for e in lines if e["event"] == "lost"]
    assert len(numbers) + len(gaps) == len(lines)
    closing = re.findall(r"(\d+) of (\d+) events were lost: (\d+) found", err)
    if gaps or closing:
        lost = sum(gaps)
        assert [tuple(map(int, c)) for c in closing] == [(lost, len(numbers) + lost, lost)]
        assert list(map(int, re.findall(r"(\d+) events lost", err))) == gaps
    return numbers, sum(gaps)


def unread(pipe: int) -> int:
    """Bytes that wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def is_full(pipe: int) -> bool:
    """Whether no page of a pipe is free, so that its writer has to wait; some may be half empty."""
    writer = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [writer], [], 0)[1]
    finally:
        os.close(writer)


def wait_for_full(pipe: int) -> None:
    wait_until(lambda: is_full(pipe), lambda: unread(pipe))


FIRST = 1000  # records; more than a pipe holds


def block(command: Command, source: Source) -> None:
    """Sends the first records, and waits until the command waits for its reader."""
    source.sent(Sender(A, FIRST))
    assert command.process.stdout is not None
    wait_for_full(command.process.stdout.fileno())


def block_bit_by_bit(command: Command, source: Source) -> int:
    """The same for a ring that holds less than a pipe; returns how many records it sent."""
    assert command.process.stdout is not None
    pipe, sent = command.process.stdout.fileno(), 0

    def send_or_full() -> bool:
        nonlocal sent
        if not is_full(pipe):
            source.sent(Sender(A, 100))
            sent += 100
        return is_full(pipe)

    wait_until(send_or_full, lambda: unread(pipe))
    return sent


def read_and_end(command: Command, answer: Answer) -> tuple[list[int], int]:
    """The numbers of all records in the output, and the losses; both must agree with the source.

    It tells the command to end once all records that were not lost have come.
    """
    count = answer.produced - answer.lost
    out = command.read_until(lambda seen: seen.count(b'"event":"exec"') >= count)
    status, rest, err = command.end(signal.SIGTERM)
    assert status == 0
    numbers, lost = accounting_of(out + rest.encode(), err)
    assert (len(numbers), lost) == (count, answer.lost)
    return numbers, lost


# ---- Standard output ----


@pytest.mark.parametrize(("ring_size", "loses"), [("64K", True), ("64M", False)])
def test_blocked_output_counts_every_loss(
    bootstrap: Start, feed: Feed, ring_size: str, loses: bool
) -> None:
    command = traced(bootstrap, "--ring-size", ring_size)
    with feed(command.pid) as source:
        if loses:
            first = block_bit_by_bit(command, source)
        else:
            block(command, source)
            first = FIRST
        before = memory_kib(command.pid)
        answer = source.sent(Sender(A, 12_000))
        assert memory_kib(command.pid) - before < 1024
    numbers, lost = read_and_end(command, answer)
    assert answer.produced == first + 12_000
    if loses:
        assert lost > 0
    else:
        assert numbers == [*range(1, FIRST + 1), *range(1, 12_001)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_although_nobody_reads(
    bootstrap: Start, feed: Feed, number: signal.Signals
) -> None:
    command = traced(bootstrap)
    with feed(command.pid) as source:
        block(command, source)
    command.process.send_signal(number)
    assert command.process.wait(DEADLINE_S) == 74


def test_output_read_late_is_complete_despite_a_signal(bootstrap: Start, feed: Feed) -> None:
    """The signal interrupts a write that is waiting."""
    command = traced(bootstrap)
    with feed(command.pid) as source:
        block(command, source)
    _, out, err = command.end(signal.SIGTERM)
    assert accounting_of(out.encode(), err) == ([*range(1, FIRST + 1)], 0)


def test_non_blocking_output_loses_nothing(bootstrap: Start, feed: Feed) -> None:
    """Another process with the same pipe or terminal may have made it non-blocking."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb", buffering=0) as pipe:
        command = traced(bootstrap, stdout=writer)
        os.close(writer)
        command.process.stdout = pipe
        with feed(command.pid) as source:
            answer = source.sent(Sender(A, FIRST))
        wait_for_full(reader)
        assert read_and_end(command, answer) == ([*range(1, FIRST + 1)], 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("append", [True, False])
def test_a_full_disk_is_an_error_and_leaves_whole_lines(
    bootstrap: Start, feed: Feed, small_disk: Path, append: bool
) -> None:
    """The next run may append to them. All events that it could not write are counted."""
    file = small_disk / "events"
    with file.open("ab" if append else "wb") as output:
        command = traced(bootstrap, stdout=output)
    with feed(command.pid) as source:
        source.sent(Sender(A, FIRST))
    status, _, err = command.end()
    assert status == 74
    reason = "bootstrap: cannot write the output: No space left on device"
    told = re.fullmatch(rf"{reason}; up to (\d+) events are missing\n", err)
    assert told, err
    start, *events = [json.loads(line) for line in file.read_bytes().splitlines(keepends=True)]
    assert file.read_bytes().endswith(b"}\n")
    assert start["event"] == "trace_start"
    assert len(events) > 10
    assert [event["pid"] for event in events] == [*range(1, len(events) + 1)]
    assert FIRST - len(events) <= int(told[1]) <= FIRST


# ---- Stopped ----


def test_stopped_and_continued(bootstrap: Start, feed: Feed) -> None:
    command = traced(bootstrap)
    with feed(command.pid) as source:
        before = memory_kib(command.pid)
        command.stop()
        answer = source.sent(Sender(A, FITS))
        assert memory_kib(command.pid) - before < 1024
    command.process.send_signal(signal.SIGCONT)
    assert read_and_end(command, answer) == ([*range(1, FITS + 1)], 0)


def test_stopped_with_a_small_ring(bootstrap: Start, feed: Feed) -> None:
    command = traced(bootstrap, "--ring-size", "64K")
    with feed(command.pid) as source:
        command.stop()
        answer = source.sent(Sender(A, FITS))
    command.process.send_signal(signal.SIGCONT)
    numbers, lost = read_and_end(command, answer)
    assert lost > 0
    assert numbers == [*range(1, FITS - lost + 1)]


class Terminal:
    """An interactive shell on a pseudo-terminal; keeps its output."""

    def __init__(self) -> None:
        self.shown = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            environ = {**os.environ, "PS1": "$ ", "TERM": "dumb", "ENV": ""}
            os.execve("/bin/sh", ["sh", "-i"], environ)
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the last process on the terminal is gone
            while piece := os.read(self.master, 65536):
                self.shown += piece

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def child(self) -> int | None:
        """The shell's first child that runs Python."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, _, rest = stat.read_text().rpartition(")")
                if int(rest.split()[1]) == self.pid:
                    return int(name.split()[0])
        return None

    def end(self) -> None:
        child = self.child()
        for pid in (child, self.pid):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.thread.join(DEADLINE_S)
        os.close(self.master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    started = Terminal()
    yield started
    started.end()


def test_suspended_and_resumed_in_a_terminal(terminal: Terminal, feed: Feed) -> None:
    """Ctrl-Z, a storm, fg, Ctrl-C."""
    terminal.type(f"{sys.executable} -m pybootstrap --pid 1; echo status=$?\n".encode())
    wait_until(lambda: b"FILENAME/EXIT CODE" in terminal.shown, lambda: terminal.shown)
    pid = terminal.child()
    assert pid is not None
    terminal.type(b"\x1a")
    wait_until(lambda: status_of(pid)["State"].startswith("T"))
    with feed(pid) as source:
        source.sent(Sender(A, FIRST))
    terminal.type(b"fg\n")
    line = rb"EXEC +(\d+) +%d +/source" % A
    wait_until(lambda: len(re.findall(line, terminal.shown)) == FIRST)
    terminal.type(b"\x03")
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), lambda: terminal.shown[-200:])
    assert [*map(int, re.findall(line, terminal.shown))] == [*range(1, FIRST + 1)]
    assert b"Traceback" not in terminal.shown


# ---- Nobody reads ----


def test_memory_stays_bounded_while_nobody_reads(trace: Trace) -> None:
    with trace() as (tracer, source):
        before = memory_kib()
        source.sent(Sender(A, FITS))
        assert memory_kib() - before < 1024
        tracer.stop()
        events = list(tracer)
        assert_balanced(tracer, events)
        assert len(events) == tracer.stats.received == FITS


# ---- The clock ----

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* From the moment that the file $SET_BACK exists, the wall clock is an hour behind. */
int clock_gettime(clockid_t clock, struct timespec *t)
{
	static int (*real)(clockid_t, struct timespec *);
	int result;

	if (!real)
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	result = real(clock, t);
	if (clock == CLOCK_REALTIME && access(getenv("SET_BACK"), F_OK) == 0)
		t->tv_sec -= 3600;
	return result;
}
"""


def exec_of(pid: int) -> Callable[[bytes], object]:
    """For `read_until`: whether the EXEC of this process is there."""
    return lambda out: re.search(rb'"event":"exec".*"pid":%d,' % pid, out)


def test_the_clock_is_set_back(bootstrap: Start, tmp_path: Path) -> None:
    """Only the tracer's view of the clock, never the machine's."""
    set_back = tmp_path / "set-back"
    environ = {**os.environ, "LD_PRELOAD": preload(tmp_path, CLOCK), "SET_BACK": str(set_back)}
    command = bootstrap("--json", "--latency", "10", env=environ)
    command.wait_for_tracing()
    early = [run("/bin/sleep", "0.05")[0] for _ in range(3)]
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as across:
        out = command.read_until(exec_of(across.pid))
        began_ns = time.monotonic_ns()
        set_back.touch()
        late = [run("/bin/sleep", "0.05")[0] for _ in range(3)]
        lived_ns = time.monotonic_ns() - began_ns
    _, rest, _ = command.end(signal.SIGTERM)

    seen: dict[int, list[dict[str, Any]]] = {}
    for line in (out + rest.encode()).splitlines():
        event = json.loads(line)
        seen.setdefault(event.get("pid"), []).append(event)
    pids = [*early, across.pid, *late]
    assert all([e["event"] for e in seen[pid]] == ["exec", "exit"] for pid in pids)
    started = [seen[pid][0]["start_boottime_ns"] for pid in pids]
    assert started == sorted(started)
    for pid in pids:
        executed, ended = seen[pid]
        least = lived_ns if pid == across.pid else 50_000_000
        assert least <= ended["duration_ns"] < 3600 * 10**9
        passed = ns_of(ended["time"]) - ns_of(executed["time"])
        assert (passed < -3000 * 10**9) if pid == across.pid else (passed > 0)


def test_a_time_namespace() -> None:
    """Its CLOCK_BOOTTIME differs from the one that BPF programs see."""
    script = (
        "import subprocess, time\n"
        "from pybootstrap import Tracer\n"
        "with Tracer() as tracer:\n"
        "    before = time.time_ns()\n"
        "    subprocess.run(['/bin/true'], check=True)\n"
        "    tracer.stop()\n"
        "    times = [event.time_ns for event in tracer]\n"
        "    print(len(times) > 1, abs(times[-1] - before) < 3600 * 10**9)"
    )
    unshare = ["unshare", "--time", "--boottime", "86400", "--fork"]
    try:
        possible = subprocess.run([*unshare, "true"], capture_output=True, check=False)
    except OSError as error:
        pytest.skip(str(error))
    if possible.returncode != 0:
        pytest.skip(possible.stderr.decode())
    out = subprocess.run(
        [*unshare, sys.executable, "-c", script], stdout=subprocess.PIPE, check=True
    )
    assert out.stdout == b"True True\n"
