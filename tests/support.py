# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Helpers for all tests. No pytest, because the guests of tests/matrix lack it."""

from __future__ import annotations

import calendar
import contextlib
import functools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable
from unittest import SkipTest

from pybootstrap import Event, ExecEvent, ExitEvent, LostEvent, Tracer
from pybootstrap.engine.check import kernel_version
from pybootstrap.engine.decoder import Decoder
from pybootstrap.engine.events import make_decoder
from pybootstrap.events import TYPES, ProcessEvent

DEADLINE_S = 60.0  # far longer than anything takes, even emulated: who reaches it has failed
ONE_HOUR_MS = 3_600_000  # a minimum duration with which a Tracer gets no events


# ---- Waiting ----


def wait_until(
    true: Callable[[], object], seen: Callable[[], object] = str, every_s: float = 0.01
) -> None:
    """Polls until `true()` holds. Fails after DEADLINE_S with what `seen()` returns."""
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, f"not within {DEADLINE_S} s: {seen()}"
        time.sleep(every_s)


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """The end for writing of a pipe that is full, and that nobody reads."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


def run_until(true: Callable[[], object]) -> list[int]:
    """Runs processes until `true()` holds; returns their pids."""
    pids: list[int] = []

    def ran() -> bool:
        pids.append(run("true")[0])
        return bool(true())

    wait_until(ran)
    return pids


# System call numbers on x86-64, and on other architectures that have the call.
_CALLS = {"epoll": {"232", "281", "22"}, "poll": {"7", "271", "73"}, "write": {"1", "64"}}


def waits_in(call: str, pid: int | None, thread: int | None = None) -> bool:
    """Whether a thread (default: the first) of a process (None: ours) sleeps in a system call."""
    of = f"/proc/{pid or 'self'}"
    words = Path(f"{of}/task/{thread or pid or os.getpid()}/syscall").read_text().split()
    return words[0] in _CALLS[call]


@contextlib.contextmanager
def once_asleep(act: Callable[[], object]) -> Iterator[None]:
    """Has another thread call `act()` as soon as the calling thread sleeps in a read."""
    reader = threading.get_native_id()

    def wait_and_act() -> None:
        wait_until(lambda: waits_in("epoll", None, reader))
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    try:
        yield
    finally:
        join(thread)


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


# ---- Processes ----


def run(*argv: str, **popen: Any) -> tuple[int, int]:
    """Runs a program to its end; returns its pid and its status as wait4(2) does."""
    path = shutil.which(argv[0])
    assert path, f"there is no program {argv[0]}"
    if popen:
        with subprocess.Popen(argv, executable=path, **popen) as child:
            status = child.wait(DEADLINE_S)
        return child.pid, status << 8 if status >= 0 else -status
    pid = os.posix_spawn(path, argv, os.environ)
    return pid, os.wait4(pid, 0)[1]


def status_of(pid: int | str = "self") -> dict[str, str]:
    """The fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def memory_kib(pid: int | str = "self") -> int:
    return int(status_of(pid)["VmRSS"].split()[0])


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def preload(directory: Path, source: str, *defined: str) -> str:
    """Compiles C source into a library for LD_PRELOAD. Raises SkipTest without a compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise SkipTest("no C compiler")
    file, library = directory / "preload.c", directory / "preload.so"
    file.write_text(source)
    options = ["-shared", "-fPIC", *(f"-D{name}" for name in defined)]
    subprocess.run([compiler, *options, file, "-o", library, "-ldl"], check=True)
    return str(library)


class Command:
    """A running command, by default `bootstrap`, which ends with the `with` block."""

    def __init__(
        self, *arguments: str, program: Sequence[str] = ("-m", "pybootstrap"), **popen: object
    ) -> None:
        self.process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, *program, *arguments],
            # Unbuffered, because communicate() does not see what a buffer holds.
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0, **popen},
        )
        self.pid = self.process.pid

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def wait_for_header(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(b"TIME "), (line, self.end(signal.SIGKILL))

    def wait_for_tracing(self) -> None:
        """Waits until its two programs are attached; it may have written nothing by then."""

        def attached() -> bool:
            assert self.process.poll() is None, self.end()
            return len([n for kind, n in held_by(self.pid) if kind == "link"]) >= 2

        wait_until(attached)

    def read_until(self, done: Callable[[bytes], object]) -> bytes:
        """Reads whole lines of standard output until `done(output)` holds."""
        assert self.process.stdout is not None
        out, end = b"", time.monotonic() + DEADLINE_S
        while not (out.endswith(b"\n") and done(out)):
            left = end - time.monotonic()
            assert left > 0, out[-2000:]
            if select.select([self.process.stdout], [], [], left)[0]:
                piece = os.read(self.process.stdout.fileno(), 1 << 16)
                assert piece, f"it ended: {self.end()}"
                out += piece
        return out

    def stop(self) -> None:
        """Sends SIGSTOP and waits until the process is stopped."""
        self.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: status_of(self.pid)["State"].startswith("T"))

    def end(self, signal: int | None = None) -> tuple[int, str, str]:
        """Sends the signal, if one is given, and returns the status and remaining output."""
        if signal is not None:
            self.process.send_signal(signal)
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, (out or b"").decode(), (err or b"").decode()


# ---- Signals ----


@contextlib.contextmanager
def handler(number: signal.Signals, disposition: Any) -> Iterator[None]:
    """Sets a signal's handler, or SIG_DFL or SIG_IGN, which processes started meanwhile inherit."""
    before = signal.signal(number, disposition)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def alarms(function: Callable[..., Any], first_s: float, every_s: float = 0) -> Iterator[None]:
    """Handles SIGALRM, sent after `first_s` and then every `every_s`."""
    with handler(signal.SIGALRM, function):
        signal.setitimer(signal.ITIMER_REAL, first_s, every_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


# ---- Events ----


def collect(
    tracer: Tracer, done: Callable[[list[Event]], object], within_s: float = DEADLINE_S
) -> list[Event]:
    """Reads until `done(events so far)` holds."""
    events: list[Event] = []
    end = time.monotonic() + within_s
    while not done(events):
        assert time.monotonic() < end, f"not seen in {within_s} s; seen: {events[-20:]}"
        events += tracer.read(timeout=0.5)
    return events


def poll_until(tracer: Tracer, true: Callable[[], object]) -> int:
    """Polls the Tracer until `true()` holds; returns how many events the callback got."""
    handed = 0
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, f"not in {DEADLINE_S} s; {handed} events came"
        handed += tracer.poll(timeout=0.5)
    return handed


def of_pids(events: list[Event], pids: set[int]) -> list[ExecEvent | ExitEvent]:
    return [e for e in events if not isinstance(e, LostEvent) and e.pid in pids]


def exits(events: list[Event], pids: set[int]) -> list[ExitEvent]:
    return [e for e in of_pids(events, pids) if isinstance(e, ExitEvent)]


def execs(events: list[Event], pids: set[int]) -> list[ExecEvent]:
    return [e for e in of_pids(events, pids) if isinstance(e, ExecEvent)]


def until_exit(*pids: int) -> Callable[[list[Event]], bool]:
    """For `collect`: whether each of these processes was seen to end."""
    return lambda events: {e.pid for e in exits(events, set(pids))} == set(pids)


def lost(events: list[Event]) -> int:
    return sum(e.count for e in events if isinstance(e, LostEvent))


def accounted(events: list[Event]) -> int:
    """How many events the BPF programs produced for these, including lost ones."""
    return sum(e.count if isinstance(e, LostEvent) else 1 for e in events)


def assert_balanced(tracer: Tracer, events: list[Event]) -> None:
    """At the end, the kernel's counters agree with the events received and those reported lost."""
    stats = tracer.stats
    received = sum(not isinstance(e, LostEvent) for e in events)
    assert (stats.received, stats.lost) == (received, lost(events)), stats
    assert stats.produced == stats.received + stats.lost, stats


# ---- What is in the kernel ----

_IDS = re.compile(r"^(prog|map|link)_id:\t(\d+)$", re.MULTILINE)


def bpftool(*words: str) -> Any:
    """Returns bpftool's answer. Raises SkipTest without bpftool."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    found = shutil.which("bpftool", path=path)
    if found is None:
        raise SkipTest("there is no bpftool")
    done = subprocess.run([found, "--json", *words], capture_output=True, check=False)
    assert done.returncode == 0, f"bpftool {words}: {done.stdout!r}{done.stderr!r}"
    return json.loads(done.stdout or "[]")


def programs_here() -> int:
    """How many programs a Tracer loads on this kernel: two, or from Linux 7.0 on four."""
    return 4 if kernel_version() >= (7, 0) else 2


def held_by(pid: int | str = "self") -> set[tuple[str, int]]:
    """Kinds and ids of the BPF objects that a process ("[0-9]*": any process) has open."""
    held: set[tuple[str, int]] = set()
    for info in Path("/proc").glob(f"{pid}/fdinfo/*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            held.update((kind, int(number)) for kind, number in _IDS.findall(info.read_text()))
    return held


@functools.cache
def names() -> tuple[set[str], set[str]]:
    """The names of our programs and maps, from the BPF sources, as the kernel shows them."""
    sources = Path(__file__).parents[1] / "bpf"
    text = "".join(path.read_text() for path in sources.glob("*.[ch]"))
    programs = re.findall(r'^SEC\("tp_btf/\w+"\)\nint (\w+)\(', text, re.MULTILINE)
    maps = re.findall(r'^\} (\w+) SEC\("\.maps"\);', text, re.MULTILINE)
    maps += ["bootstra.rodata", "bootstra.bss", "bootstra.data"]
    return set(programs), {name[:15] for name in maps}


def in_kernel() -> set[tuple[str, int]]:
    """Kinds and ids of all programs, maps and links in the kernel that have our names."""
    of_programs, of_maps = names()
    programs = {p["id"] for p in bpftool("prog", "list") if p.get("name") in of_programs}
    maps = {m["id"] for m in bpftool("map", "list") if m.get("name") in of_maps}
    links = {k["id"] for k in bpftool("link", "list") if k.get("prog_id") in programs}
    kinds = {"prog": programs, "map": maps, "link": links}
    return {(kind, number) for kind, numbers in kinds.items() for number in numbers}


def wait_until_gone(held: set[tuple[str, int]]) -> None:
    """Waits until none of these objects is in the kernel."""

    def left() -> set[tuple[str, int]]:
        kinds = ("prog", "map", "link")
        return held & {(kind, one["id"]) for kind in kinds for one in bpftool(kind, "list")}

    wait_until(lambda: not left(), left)


def assert_nothing_is_left() -> None:
    """Waits, because the kernel frees objects a little after their last descriptor is closed."""

    def left() -> set[tuple[str, int]]:
        return in_kernel() - held_by("[0-9]*")

    wait_until(lambda: not left(), left)


# ---- cgroups ----


@contextlib.contextmanager
def new_cgroup(name: str, controller: str = "") -> Iterator[Path]:
    """Makes a cgroup (v1 if that has the controller); at the end kills and removes all below it.

    Raises SkipTest if that is not possible.
    """
    path = _cgroup_root(controller) / f"pybootstrap-{os.getpid()}-{name}"
    try:
        path.mkdir()
    except OSError as error:
        raise SkipTest(f"cannot make a cgroup: {error}") from None
    try:
        yield path
    finally:
        wait_until(lambda: _removed(path))


def _cgroup_root(controller: str) -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup" and controller in options.split(","):
            return Path(mount)
        control = Path(mount) / "cgroup.subtree_control"
        if kind == "cgroup2" and (not controller or controller in control.read_text().split()):
            return Path(mount)
    raise SkipTest(f"no cgroup hierarchy {controller and 'with the controller ' + controller}")


def _removed(path: Path) -> bool:
    """Kills its processes and tries to remove it; an ended process may keep it busy briefly."""
    with contextlib.suppress(OSError):
        for pid in (path / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        for below in path.iterdir():
            if below.is_dir():
                below.rmdir()
        path.rmdir()
    return not path.exists()


# ---- Records as the BPF programs send them ----


def new_decoder() -> Decoder:
    return make_decoder(Tracer.events())


def _encoded(event: type[ProcessEvent], fields: dict[str, Any], tail: bytes) -> bytes:
    """Encodes a record; its members are given as `process__pid=1`."""
    members: dict[str, Any] = {"header": {"kind": event.KIND}, "process": {}, "usage": {}}
    members["header"]["size"] = event.HEAD_SIZE + len(tail)
    for path, value in fields.items():
        *parents, last = path.split("__")
        target = members
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    record = TYPES.struct(f"{event.NAME}_record")
    return record.encode({key: members[key] for key in members if key in record.members}) + tail


def _record(event: type[ProcessEvent], filename: bytes | None, args: Any, fields: Any) -> bytes:
    name = b"" if filename is None else filename + b"\0"
    tail = b"".join(arg + b"\0" for arg in args or ())
    sizes = {"text__filename_size": len(name), "text__args_size": len(tail)}
    return _encoded(event, {**sizes, **fields}, name + tail)


def exec_record(
    filename: bytes = b"/usr/bin/sleep",
    args: tuple[bytes, ...] = (b"sleep", b"1"),
    **fields: Any,
) -> bytes:
    """An exec record; other members are given as `process__pid=1`."""
    return _record(ExecEvent, filename, args, fields)


def exit_record(
    filename: bytes | None = b"/usr/bin/sleep",
    args: tuple[bytes, ...] | None = (b"sleep", b"1"),
    **fields: Any,
) -> bytes:
    """An exit record; other members are given as `status=256`."""
    return _record(ExitEvent, filename, args, fields)


# ---- JSON objects ----


def without_reports(out: str | bytes) -> list[dict[str, Any]]:
    """The events and losses in the JSON of a whole run, whose reports must agree with them."""
    start, *between, end = [json.loads(line) for line in out.splitlines()]
    reports = [start, *(o for o in between if o["event"] == "trace_status"), end]
    others = [o for o in between if o["event"] != "trace_status"]
    assert (start["event"], end["event"]) == ("trace_start", "trace_end"), (start, end)
    assert len({(r["run_id"], r["boot_id"], r["host"]) for r in reports}) == 1, reports
    counted = end["counters"]
    losses = sum(o["count"] for o in others if o["event"] == "lost")
    assert counted["written"] == sum(o["event"] != "lost" for o in others), counted
    if end["reason"] == "signal":
        assert counted["lost"] == losses, counted
        assert counted["produced"] == counted["written"] + losses, counted
    return others


def exact_bytes(fields: dict[str, Any], name: str) -> Any:
    """The bytes behind a text member of a `--json` object, or behind each of a list of texts."""
    exact = fields.get(f"{name}_base64")
    if isinstance(fields[name], list):
        return list(map(b64decode, exact)) if exact else [text.encode() for text in fields[name]]
    return b64decode(exact) if exact else fields[name].encode()


def ns_of(stamp: str | None) -> int:
    """An RFC 3339 time in ns since the epoch; 0 for None."""
    if stamp is None:
        return 0
    seconds = calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
    return seconds * 10**9 + int(stamp[20:29])
