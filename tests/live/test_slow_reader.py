# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""A reader that is slow, stopped, or gone: the machine's processes run on, memory stays bounded,
and afterwards every event was either given out or said to be lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from pybootstrap import Event, ExecEvent, ExitEvent, LostEvent, Tracer
from tests.support import DEADLINE_S, Command, exits, ns_of, run

Start = Callable[..., Command]


class Storm:
    """A shell that starts children and counts them; each is an EXIT with the shell as parent."""

    def __init__(self, count: int) -> None:
        script = f"i=0; while [ $i -lt {count} ]; do (:); i=$((i+1)); done; echo $i"
        shell = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE)
        out, _ = shell.communicate(timeout=DEADLINE_S)
        self.pid, self.count = shell.pid, int(out)
        assert (shell.returncode, self.count) == (0, count)

    def ends_in(self, lines: list[dict[str, Any]]) -> int:
        return sum(e["event"] == "exit" and e["ppid"] == self.pid for e in lines)


def memory_kib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def wait_for_tracing(command: Command) -> None:
    """Until it has its two programs attached; it has then still written nothing."""

    def attached() -> bool:
        assert command.process.poll() is None
        links = 0
        for info in Path(f"/proc/{command.process.pid}/fdinfo").glob("*"):
            with contextlib.suppress(OSError):
                links += "link_id:" in info.read_text()
        return links >= 2

    wait_until(attached, "not attached")


def books_of(out: bytes, err: bytes) -> tuple[list[dict[str, Any]], int]:
    """The events of JSON output, and how many were lost; stream and closing line must agree."""
    lines = [json.loads(line) for line in out.splitlines()]
    events = [e for e in lines if e["event"] != "lost"]
    lost = sum(e["count"] for e in lines if e["event"] == "lost")
    closing = re.findall(rb"(\d+) of (\d+) events were lost: (\d+) found", err)
    if lost or closing:
        assert [tuple(map(int, c)) for c in closing] == [(lost, len(events) + lost, lost)]
        said = re.findall(rb"(\d+) events? lost", err)
        assert sum(map(int, said)) == lost
    return events, lost


# ---- Standard output ----


def blocked_for(command: Command, storms: int) -> tuple[list[dict[str, Any]], int, list[Storm]]:
    """Storms while nobody reads the output, then all of it, and the end."""
    wait_for_tracing(command)
    done = [Storm(100)]
    time.sleep(0.2)
    before = memory_kib(command.process.pid)
    done += [Storm(1500) for _ in range(storms)]
    assert memory_kib(command.process.pid) - before < 8192
    timer = threading.Timer(1.0, command.process.send_signal, [signal.SIGTERM])
    timer.start()
    out, err = command.process.communicate(timeout=DEADLINE_S)
    timer.join()
    assert command.process.returncode == 0
    events, lost = books_of(out, err)
    return events, lost, done


def test_blocked_output_loses_no_count(bootstrap: Start) -> None:
    events, lost, storms = blocked_for(bootstrap("--json", "--ring-size", "64K"), 2)
    assert lost > 0
    ends = sum(storm.ends_in(events) for storm in storms)
    total = sum(storm.count for storm in storms)
    assert ends < total <= ends + lost


def test_blocked_output_and_a_large_ring_lose_nothing(bootstrap: Start) -> None:
    events, lost, storms = blocked_for(bootstrap("--json", "--ring-size", "64M"), 2)
    assert lost == 0
    assert [storm.ends_in(events) for storm in storms] == [storm.count for storm in storms]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_although_nobody_reads(bootstrap: Start, number: signal.Signals) -> None:
    command = bootstrap("--json")
    wait_for_tracing(command)
    Storm(1000)  # more than a pipe holds
    time.sleep(0.3)
    command.process.send_signal(number)
    assert command.process.wait(DEADLINE_S) == 74


def test_output_read_late_is_whole_although_a_signal_came(bootstrap: Start) -> None:
    """The signal interrupts a write that had to wait."""
    command = bootstrap("--json")
    wait_for_tracing(command)
    storm = Storm(1000)
    time.sleep(0.3)
    command.process.send_signal(signal.SIGTERM)
    out, err = command.process.communicate(timeout=DEADLINE_S)
    events, lost = books_of(out, err)
    assert (storm.ends_in(events), lost) == (storm.count, 0)


def test_non_blocking_output_loses_nothing(bootstrap: Start) -> None:
    """As when somebody else, who has the same pipe or terminal, has set that."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    command = bootstrap("--json", stdout=writer)
    os.close(writer)
    wait_for_tracing(command)
    storm = Storm(1000)
    time.sleep(0.3)
    timer = threading.Timer(0.5, command.process.send_signal, [signal.SIGTERM])
    timer.start()
    with os.fdopen(reader, "rb") as pipe:
        out = pipe.read()
    timer.join()
    _, err = command.process.communicate(timeout=DEADLINE_S)
    events, lost = books_of(out, err)
    assert (storm.ends_in(events), lost) == (storm.count, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_disk_that_gets_full(bootstrap: Start, small_disk: Path) -> None:
    file = small_disk / "events"
    with file.open("wb") as output:
        command = bootstrap("--json", stdout=output)
    wait_for_tracing(command)
    Storm(1000)
    status, _, err = command.end()
    assert status == 74
    assert "No space left on device" in err
    assert "Traceback" not in err
    whole, _, _ = file.read_bytes().rpartition(b"\n")
    assert len([json.loads(line) for line in whole.split(b"\n")]) > 10


# ---- Stopped ----


def test_stopped_and_continued(bootstrap: Start) -> None:
    command = bootstrap("--json")
    wait_for_tracing(command)
    before = memory_kib(command.process.pid)
    command.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(command.process.pid) == "T", "not stopped")
    storm = Storm(2000)
    assert memory_kib(command.process.pid) - before < 1024
    command.process.send_signal(signal.SIGCONT)
    timer = threading.Timer(1.0, command.process.send_signal, [signal.SIGTERM])
    timer.start()
    out, err = command.process.communicate(timeout=DEADLINE_S)
    timer.join()
    events, lost = books_of(out, err)
    assert (storm.ends_in(events), lost) == (storm.count, 0)


def test_stopped_with_a_small_ring(bootstrap: Start) -> None:
    command = bootstrap("--json", "--ring-size", "64K")
    wait_for_tracing(command)
    command.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(command.process.pid) == "T", "not stopped")
    storm = Storm(2000)
    command.process.send_signal(signal.SIGCONT)
    timer = threading.Timer(1.0, command.process.send_signal, [signal.SIGTERM])
    timer.start()
    out, err = command.process.communicate(timeout=DEADLINE_S)
    timer.join()
    events, lost = books_of(out, err)
    assert lost > 0
    assert storm.count - lost <= storm.ends_in(events) < storm.count


class Terminal:
    """An interactive shell on a pseudo-terminal; keeps what it shows."""

    def __init__(self) -> None:
        self.shown = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            environ = {**os.environ, "PS1": "$ ", "TERM": "dumb", "ENV": ""}
            os.execve("/bin/sh", ["sh", "-i"], environ)
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the last process on it is gone
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


def test_suspended_and_resumed_in_a_terminal(terminal: Terminal) -> None:
    """Ctrl-Z, a storm, fg, Ctrl-C."""
    terminal.type(f"{sys.executable} -m pybootstrap; echo status=$?\n".encode())
    wait_until(lambda: b"FILENAME/EXIT CODE" in terminal.shown, "no header")
    pid = terminal.child()
    assert pid is not None
    terminal.type(b"\x1a")
    wait_until(lambda: state_of(pid) == "T", "not suspended")
    storm = Storm(500)
    alone, _ = run("/bin/true")
    terminal.type(b"fg\n")
    wait_until(lambda: re.search(rb" %d +%d " % (alone, os.getpid()), terminal.shown), "not shown")
    terminal.type(b"\x03")
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "Ctrl-C did not end it")
    assert len(re.findall(rb"EXIT .* %d +\[0\]" % storm.pid, terminal.shown)) == storm.count
    assert b"Traceback" not in terminal.shown


# ---- Callbacks, and those who do not read ----


def assert_balanced(tracer: Tracer, events: list[Event]) -> int:
    """After the end; returns how many were lost."""
    stats = tracer.stats
    lost = sum(e.count for e in events if isinstance(e, LostEvent))
    assert stats.received == sum(not isinstance(e, LostEvent) for e in events)
    assert stats.lost == lost
    assert stats.produced == stats.received + stats.lost
    return lost


def test_a_callback_that_sleeps() -> None:
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        if len(seen) <= 3:
            time.sleep(0.5)

    storms: list[Storm] = []

    def storm_and_stop() -> None:
        storms.extend(Storm(500) for _ in range(3))
        tracer.stop()

    with Tracer(on_event=on_event, ring_size=65536) as tracer:
        load = threading.Thread(target=storm_and_stop)
        load.start()
        tracer.run()
        load.join()
        lost = assert_balanced(tracer, seen)
    for storm in storms:
        ends = sum(isinstance(e, ExitEvent) and e.ppid == storm.pid for e in seen)
        assert storm.count - lost <= ends <= storm.count


def test_nobody_reads_and_memory_stays() -> None:
    with Tracer() as tracer:
        before = memory_kib(os.getpid())
        storm = Storm(3000)
        assert memory_kib(os.getpid()) - before < 1024
        tracer.stop()
        events = list(tracer)
        assert assert_balanced(tracer, events) == 0
    assert sum(isinstance(e, ExitEvent) and e.ppid == storm.pid for e in events) == storm.count


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


def test_the_clock_is_set_back(bootstrap: Start, tmp_path: Path) -> None:
    """The tracer's view of it; never the machine's."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    source, library, set_back = (tmp_path / name for name in ("clock.c", "clock.so", "set-back"))
    source.write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    environ = {**os.environ, "LD_PRELOAD": str(library), "SET_BACK": str(set_back)}
    command = bootstrap("--json", "--latency", "10", env=environ)
    wait_for_tracing(command)
    early = [run("/bin/sleep", "0.05")[0] for _ in range(3)]
    time.sleep(0.3)
    across = os.posix_spawn("/bin/sleep", ["sleep", "0.3"], os.environ)
    time.sleep(0.1)
    set_back.touch()
    os.waitpid(across, 0)
    late = [run("/bin/sleep", "0.05")[0] for _ in range(3)]
    time.sleep(0.3)
    _, out, _ = command.end(signal.SIGTERM)

    seen: dict[int, list[dict[str, Any]]] = {}
    for line in out.splitlines():
        event = json.loads(line)
        seen.setdefault(event.get("pid"), []).append(event)
    pids = [*early, across, *late]
    assert all([e["event"] for e in seen[pid]] == ["exec", "exit"] for pid in pids)
    started = [seen[pid][0]["start_boottime_ns"] for pid in pids]
    assert started == sorted(started)
    for pid in pids:
        executed, ended = seen[pid]
        least = 300_000_000 if pid == across else 50_000_000
        assert least <= ended["duration_ns"] < 3600 * 10**9
        passed = ns_of(ended["time"]) - ns_of(executed["time"])
        assert (passed < -3000 * 10**9) if pid == across else (passed > 0)


def test_the_events_of_a_process_are_in_order() -> None:
    with Tracer() as tracer:
        pids = {run("/bin/true")[0] for _ in range(30)}
        tracer.stop()
        events = list(tracer)
    for pid in pids:
        kinds = [type(e) for e in events if not isinstance(e, LostEvent) and e.pid == pid]
        assert kinds == [ExecEvent, ExitEvent]
    assert len(exits(events, pids)) == 30


def test_a_time_namespace() -> None:
    """Its CLOCK_BOOTTIME is not the one that the kernel's programs see."""
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
