# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The checks of guest.py that load the package: settings, filters, losses, and the command."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from checking import LIMIT, Check, CheckSkippedError, require

from pybootstrap import Event, ExecEvent, ExitEvent, LostEvent, Stats, Tracer
from pybootstrap.errors import BootstrapError

COMMAND = (sys.executable, "-m", "pybootstrap")
MANY = 64  # values that one filter takes
OTHER_USER = 12345
SHELLS, EACH = 4, 300  # shells at once, and how many processes each starts
# Processes of the storm, and the size of the ring that they must overflow.
STORM, TINY_RING = 400, 64 * 1024  # processes; bytes, the smallest there is
EX_NOPERM = 77


def program(name: str) -> str:
    """Return the path of a program of this machine."""
    path = shutil.which(name)
    require(path, f"there is no program {name}")
    assert path is not None
    return path


def run(*command: str, **options: Any) -> tuple[int, int]:
    """Run a program to its end; return its pid and its exit status (below 0: the signal)."""
    with subprocess.Popen([program(command[0]), *command[1:]], **options) as child:
        return child.pid, child.wait(LIMIT)


def traced(work: Callable[[], Any], **settings: Any) -> tuple[Any, list[Event], Stats]:
    """Do some work under a Tracer; return its result, all events, and the books at the end."""
    with Tracer(**settings) as tracer:
        result = work()
        tracer.stop()
        return result, list(tracer), tracer.stats


def summary(events: Sequence[Event], pids: Sequence[int]) -> list[tuple[str, int]]:
    """Return kind and pid of the events of these processes, in order."""
    return [
        ("exec" if isinstance(event, ExecEvent) else "exit", event.pid)
        for event in events
        if not isinstance(event, LostEvent) and event.pid in pids
    ]


# ---- Loading ----


def all_settings(cgroups: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return settings that make the verifier see other programs, by name."""
    numbers = range(1, MANY + 1)
    filters: dict[str, dict[str, Any]] = {
        "pids": {"pids": numbers},
        "ppids": {"ppids": numbers},
        "users": {"users": numbers},
        "comms": {"comms": [f"name-{number}" for number in numbers]},
        "failed": {"failed": True},
        "cgroups": {"cgroups": cgroups},
    }
    every = {key: value for filter_ in filters.values() for key, value in filter_.items()}
    kinds: dict[str, dict[str, Any]] = {
        "default": {},
        "no args": {"args": False},
        "latency 0": {"max_latency_ms": 0},
        "duration": {"min_duration_ms": 100},
        "large": {"ring_size": 64 << 20, "max_processes": 10**6},
        "every filter": every,
        "every filter but failed": {**every, "failed": False},
        "every filter, no args": {**every, "args": False},
        "everything": {**every, "min_duration_ms": 100, "max_latency_ms": 0},
        "everything, no args": {**every, "min_duration_ms": 1, "max_latency_ms": 0, "args": False},
    }
    return {**kinds, **{f"{MANY} {name}": value for name, value in filters.items()}}


def load_time(settings: dict[str, Any]) -> float:
    """Return how many seconds it takes to load and attach with these settings."""
    started = time.monotonic()
    with Tracer(**settings):
        return time.monotonic() - started


def check_settings() -> str:
    """The verifier accepts the programs with every kind of setting."""
    refused, times = [], {}
    with contextlib.ExitStack() as stack:
        cgroups = []
        with contextlib.suppress(CheckSkippedError):
            cgroups = [stack.enter_context(new_cgroup(str(number))) for number in range(MANY)]
        for name, settings in all_settings(cgroups).items():
            try:
                times[name] = load_time(settings)
            except BootstrapError as error:
                refused.append(f"{name}: {error}: {getattr(error, 'log', '')[-1000:]}")
    require(not refused, "; ".join(refused))
    slowest = max(times, key=lambda name: times[name])
    return f"{len(times)} kinds load; the slowest, {slowest}, in {times[slowest] * 1000:.0f} ms"


def check_load_time() -> str:
    """How long loading takes, the best of three; emulation makes it some twenty times longer."""
    best = {name: min(load_time(s) for _ in range(3)) for name, s in LOAD_TIMED.items()}
    return ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in best.items())


LOAD_TIMED: dict[str, dict[str, Any]] = {"default": {}, "no args": {"args": False}}


def program_ids(pid: int) -> set[int]:
    """Return the ids of the BPF programs that a process holds, from its descriptors."""
    ids = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is closed by now
            found = re.search(r"^prog_id:\s*(\d+)$", info.read_text(), re.MULTILINE)
            ids |= {int(found.group(1))} if found else set()
    return ids


def program_names(ids: set[int]) -> list[str]:
    """Return the names of those of these BPF programs that are in the kernel, as bpftool says."""
    bpftool = shutil.which("bpftool")
    if bpftool is None:
        raise CheckSkippedError("there is no bpftool here")
    done = subprocess.run([bpftool, "-j", "prog", "list"], capture_output=True, check=False)
    require(done.returncode == 0, f"bpftool: {done.stdout!r}{done.stderr!r}")
    return sorted(one.get("name", "") for one in json.loads(done.stdout) if one["id"] in ids)


def check_programs() -> str:
    """The kernel runs the programs that are meant for it."""
    with Tracer():
        names = program_names(program_ids(os.getpid()))
    major, minor = (int(number) for number in os.uname().release.split(".")[:2])
    old = "" if (major, minor) >= (5, 17) else "_old"
    handlers = [name for name in names if name.startswith("handle_")]
    require(handlers == [f"handle_exec{old}", f"handle_exit{old}"], f"loaded are {names}")
    return ", ".join(names)


def wait_until_gone(ids: set[int]) -> None:
    """Fail unless these programs leave the kernel soon: it frees them a little later."""
    require(len(ids) >= 2, f"held are only the programs {ids}")
    deadline = time.monotonic() + LIMIT
    while left := program_names(ids):
        require(time.monotonic() < deadline, f"still there are {left}")
        time.sleep(0.1)


def check_clean_end() -> str:
    """Nothing of ours stays in the kernel after a Tracer, nor after one that is killed."""
    with Tracer():
        ids = program_ids(os.getpid())
    wait_until_gone(ids)
    with started_command() as tracer:
        ids = program_ids(tracer.pid)
        tracer.kill()
    wait_until_gone(ids)
    return "no program is left"


# ---- Filters ----


@contextlib.contextmanager
def new_cgroup(name: str) -> Iterator[str]:
    """Make a cgroup (v2) for a while; it goes when it is empty."""
    with open("/proc/mounts", encoding="utf-8") as mounts:
        roots = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
    if not roots:
        raise CheckSkippedError("no cgroup2 file system is mounted")
    path = os.path.join(roots[0], f"pybootstrap-{os.getpid()}-{name}")
    try:
        os.mkdir(path)
    except OSError as error:
        raise CheckSkippedError(f"cannot make a cgroup: {error}") from None
    try:
        yield path
    finally:
        os.rmdir(path)


def run_in(cgroup: str) -> int:
    """Run a program in a cgroup; return its pid."""

    def enter() -> None:
        with open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as procs:
            procs.write("0")

    return run("true", preexec_fn=enter)[0]


def expect_only(wanted: Callable[[], int], other: Callable[[], int], **settings: Any) -> None:
    """Of two processes, whose pids are returned, a filter lets only the first through."""

    def work() -> tuple[int, int, int]:
        return other(), wanted(), other()

    (before, pid, after), events, stats = traced(work, **settings)
    expected = [("exit", pid)] if settings.get("failed") else [("exec", pid), ("exit", pid)]
    seen = summary(events, (before, pid, after))
    require(seen == expected, f"{settings}: {seen}, expected {expected}")
    require(stats.produced == stats.received + stats.lost, f"{settings}: {stats}")


def plain() -> int:
    """Run a program that ends well; return its pid."""
    return run("true")[0]


def check_filter_user() -> str:
    """users= lets only that user's processes through."""
    expect_only(lambda: run("true", user=OTHER_USER)[0], plain, users=[OTHER_USER])
    return f"user {OTHER_USER}"


def check_filter_comm() -> str:
    """comms= lets only processes of that name through."""
    expect_only(lambda: run("sleep", "0")[0], plain, comms=["sleep"])
    return "command sleep"


def check_filter_pid() -> str:
    """ppids= lets only that process's children through, and pids= only the process itself."""
    me = os.getpid()
    for settings, expected in (({"ppids": [me]}, 2), ({"ppids": [1]}, 0), ({"pids": [me]}, 0)):
        pid, events, _ = traced(plain, **settings)
        seen = summary(events, [pid])
        require(len(seen) == expected, f"{settings}: {seen}, expected {expected} events")
    return f"parent {me}"


def check_filter_failed() -> str:
    """failed= lets only exits through whose status is not 0, with that status."""
    expect_only(lambda: run("false")[0], plain, failed=True)
    (pid, status), events, _ = traced(lambda: run("sh", "-c", "kill -9 $$"), failed=True)
    seen = [event for event in events if isinstance(event, ExitEvent) and event.pid == pid]
    require([event.signal for event in seen] == [-status], f"{seen}, expected signal {-status}")
    return "false, and SIGKILL"


def check_filter_cgroup() -> str:
    """cgroups= lets only processes of that cgroup through, and of those below it."""
    with new_cgroup("outer") as outer:
        inner = f"{outer}/inner"
        os.mkdir(inner)
        try:
            expect_only(lambda: run_in(outer), plain, cgroups=[outer])
            expect_only(lambda: run_in(inner), plain, cgroups=[outer])
        finally:
            os.rmdir(inner)
    return "one cgroup and one below it"


# ---- Books ----


def check_overflow() -> str:
    """A ring that is too small loses events, and the books say exactly how many."""

    def storm() -> None:
        true = program("true")
        for _ in range(STORM):
            os.waitpid(os.posix_spawn(true, [true], os.environ), 0)

    _, events, stats = traced(storm, ring_size=TINY_RING)
    received = sum(not isinstance(event, LostEvent) for event in events)
    lost = sum(event.count for event in events if isinstance(event, LostEvent))
    require(stats.lost > 0, f"nothing was lost: {stats}")
    require(stats.produced == stats.received + stats.lost, f"the books do not balance: {stats}")
    require((received, lost) == (stats.received, stats.lost), f"{received}, {lost}: {stats}")
    require(stats.produced >= 2 * STORM, f"less was produced than happened: {stats}")
    return f"{stats.produced} produced == {stats.received} received + {stats.lost} lost"


def check_preempted() -> str:
    """Where tasks are preempted inside a program, hardly any event can have been left out.

    With preemption disabled only from reservation to submission it was 3 to 6 in a thousand on an
    emulated 7.2, and now and then one was missing; with all of a program covered, 0 to 0.5.
    """
    script = f"i=0; while [ $i -lt {EACH} ]; do {program('true')}; i=$((i+1)); done"

    def storm() -> set[int]:
        with contextlib.ExitStack() as stack:
            shells = [
                stack.enter_context(subprocess.Popen([program("sh"), "-c", script]))
                for _ in range(SHELLS)
            ]
            return {shell.pid for shell in shells}

    shells, events, stats = traced(storm, ring_size=16 << 20)
    parents = [event.ppid for event in events if not isinstance(event, LostEvent)]
    seen = sum(parent in shells for parent in parents)
    require(seen == 2 * SHELLS * EACH, f"{seen} of {2 * SHELLS * EACH} events: {stats}")
    require(stats.missed * 400 <= stats.produced, f"many may have been left out: {stats}")
    return f"{seen} events, at most {stats.missed} left out"


# ---- The command ----


@contextlib.contextmanager
def started_command(*options: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command in text mode, and go on once it has said its header: then it traces."""
    with subprocess.Popen(
        [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tracer:
        try:
            assert tracer.stdout is not None
            header = tracer.stdout.readline()
            if not header.startswith("TIME"):
                tracer.kill()
                require(False, f"instead of a header: {header!r}{tracer.communicate()}")
            yield tracer
        finally:
            tracer.kill()  # too late for one that ended by itself


def check_trace() -> str:
    """`bootstrap -j -n 4` reports processes that are started while it runs, and ends by itself.

    Only children of ours are asked for: on the host other processes come and go.
    """
    pids = set()
    command = [*COMMAND, "-j", "-n", "4", "--ppid", str(os.getpid())]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tracer:
        deadline = time.monotonic() + LIMIT
        # When it will have attached is not known from outside: so go on until it has enough.
        while tracer.poll() is None and time.monotonic() < deadline:
            pids.add(plain())
            time.sleep(0.05)
        tracer.kill()  # too late for one that ended by itself
        output, errors = tracer.communicate()
    require(tracer.returncode == 0, f"status {tracer.returncode}: {errors.strip()}")
    events = [json.loads(line) for line in output.splitlines()]
    require(len(events) == 4, f"{len(events)} lines instead of 4: {output}")
    ours = [event for event in events if event.get("pid") in pids]
    require(len(ours) == 4, f"not all are of the {len(pids)} processes started here: {output}")
    return f"4 events of the {len(pids)} processes started"


def check_duration() -> str:
    """`bootstrap -d 500` prints the exit of what ran longer and nothing else of ours."""
    with started_command("-d", "500") as tracer:
        short = [plain() for _ in range(5)]
        long = run("sleep", "1")[0]
        short.append(plain())
        tracer.send_signal(signal.SIGINT)
        output, errors = tracer.communicate(timeout=LIMIT)
    require(tracer.returncode == 0 and not errors, f"status {tracer.returncode}: {errors}")
    lines = [line.split() for line in output.splitlines()]
    ours = [(line[1], int(line[3])) for line in lines if int(line[3]) in (long, *short)]
    require(ours == [("EXIT", long)], f"{ours}, expected an EXIT of {long}: {output}")
    return " ".join(next(line for line in lines if int(line[3]) == long))


def others_may_not_run(path: str) -> bool:
    """Say whether some folder on the way to a program, or the program, is closed to others."""
    return any(not part.stat().st_mode & 0o001 for part in (Path(path), *Path(path).parents))


def check_unprivileged() -> str:
    """Who may not trace is told so in one line, with exit status 77."""
    # The interpreter itself: a virtual environment may be where nobody else may look.
    command = [os.path.realpath(COMMAND[0]), *COMMAND[1:], "-n", "1"]
    if others_may_not_run(command[0]):
        raise CheckSkippedError(f"only its owner may run {command[0]}")
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(
            command, stdout=said, stderr=said, check=False, timeout=LIMIT,
            user=OTHER_USER, group=OTHER_USER, extra_groups=[], cwd="/",
        )  # fmt: skip
        said.seek(0)
        output = said.read()
    require(done.returncode == EX_NOPERM, f"status {done.returncode}: {output}")
    require(output.count("\n") == 1, f"more or less than one line: {output}")
    return output.strip()


def check_command() -> str:
    """`bootstrap --check` finds that this machine can run it."""
    done = subprocess.run(
        [*COMMAND, "--check"], capture_output=True, text=True, check=False, timeout=LIMIT
    )
    said = (done.stdout + done.stderr).strip()
    require(done.returncode == 0, f"status {done.returncode}: {said}")
    return said


def check_cffi() -> str:
    """The one compiled dependency loads here."""
    backend = importlib.import_module("_cffi_backend")
    return f"_cffi_backend {backend.__version__}"


CHECKS: tuple[Check, ...] = (
    check_cffi, check_load_time, check_settings, check_programs,
    check_filter_user, check_filter_comm, check_filter_pid, check_filter_failed,
    check_filter_cgroup, check_overflow, check_preempted, check_trace, check_duration,
    check_unprivileged, check_clean_end,
)  # fmt: skip
LAST: tuple[Check, ...] = (check_command,)
