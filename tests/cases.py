# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Cases for every kernel: live/test_cases.py runs them on the running kernel, matrix/ in guests.

So they need only the standard library, support.py and the programs that a guest has. Each returns
a text for the table, fails with AssertionError, or raises SkipTest.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import SkipTest

from pybootstrap import Event, ExecEvent, ExitEvent, LostEvent, Stats, Tracer
from pybootstrap.engine.errors import BootstrapError
from tests.support import (
    DEADLINE_S,
    Command,
    assert_balanced,
    bpftool,
    held_by,
    new_cgroup,
    of_pids,
    programs_here,
    run,
    wait_until_gone,
    without_reports,
)

MANY = 64  # values that one filter takes
OTHER_USER = 12345
SHELLS, EACH = 4, 300  # shells at once, and how many processes each starts
# The storm must overflow the ring.
STORM, TINY_RING = 400, 64 * 1024  # processes; bytes, the smallest there is
LEAST_MS, LONG_S = 400, "0.5"  # short programs take less than LEAST_MS, even emulated
EX_NOPERM = 77
PR_CAPBSET_DROP = 24
ME = os.getpid()


def program(name: str) -> str:
    """The path of a program on this machine."""
    path = shutil.which(name)
    assert path is not None, f"there is no program {name}"
    return path


def traced(work: Callable[[], Any], **settings: Any) -> tuple[Any, list[Event], Stats]:
    """Does some work under a Tracer; returns its result, all events, and the final counters."""
    with Tracer(**settings) as tracer:
        result = work()
        tracer.stop()
        events = list(tracer)
        assert_balanced(tracer, events)
        return result, events, tracer.stats


def summary(events: Sequence[Event]) -> list[tuple[str, int]]:
    """Kinds and pids, in order."""
    kinds = {ExecEvent: "exec", ExitEvent: "exit"}
    return [("lost", 0) if isinstance(e, LostEvent) else (kinds[type(e)], e.pid) for e in events]


def plain(**popen: Any) -> int:
    """Runs a program that exits with status 0; returns its pid."""
    return run("true", **popen)[0]


def family() -> int:
    """Runs a shell that has two children; returns its pid."""
    true = program("true")
    return run("sh", "-c", f"{true}; {true}; exit 0")[0]


# ---- Loading ----


def all_settings(cgroups: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Settings, by name, each of which makes the verifier check different programs."""
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
    """The seconds it takes to load and attach with these settings."""
    started = time.monotonic()
    with Tracer(**settings):
        return time.monotonic() - started


def check_settings() -> str:
    """The verifier accepts the programs with every kind of setting."""
    refused, times = [], {}
    with contextlib.ExitStack() as stack:
        cgroups: list[Path] = []
        with contextlib.suppress(SkipTest):
            cgroups = [stack.enter_context(new_cgroup(str(number))) for number in range(MANY)]
        for name, settings in all_settings(cgroups).items():
            try:
                times[name] = load_time(settings)
            except BootstrapError as error:
                refused.append(f"{name}: {error}: {getattr(error, 'log', '')[-1000:]}")
    assert not refused, "; ".join(refused)
    slowest = max(times, key=lambda name: times[name])
    return f"{len(times)} kinds load; the slowest, {slowest}, in {times[slowest] * 1000:.0f} ms"


def check_programs() -> str:
    """The Tracer loads the programs meant for this kernel."""
    with Tracer():
        ids = {number for kind, number in held_by() if kind == "prog"}
        names = sorted(one.get("name", "") for one in bpftool("prog", "list") if one["id"] in ids)
    major, minor = (int(number) for number in os.uname().release.split(".")[:2])
    old = "" if (major, minor) >= (5, 17) else "_old"
    handlers = [name for name in names if name.startswith("handle_")]
    assert handlers == [f"handle_exec{old}", f"handle_exit{old}"], f"loaded are {names}"
    return ", ".join(names)


def check_clean_end() -> str:
    """Nothing stays in the kernel after a Tracer, nor after a command that is killed."""
    with Tracer():
        by_tracer = held_by()
    assert not held_by()
    with Command() as command:
        command.wait_for_header()
        by_command = held_by(command.pid)
        command.end(signal.SIGKILL)
    for held in (by_tracer, by_command):
        counts = Counter(kind for kind, _ in held)
        assert counts["prog"] == counts["link"] == programs_here(), counts
        assert counts["map"] >= 3, counts
    wait_until_gone(by_tracer | by_command)
    return f"{len(by_tracer)} and {len(by_command)} objects are gone"


# ---- Filters ----


@contextlib.contextmanager
def scripts(*names: str) -> Iterator[list[str]]:
    """Programs of these names, which sleep as long as their argument says; yields their paths."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in names]
        for path in paths:
            path.write_text(f"#!{program('sh')}\n[ $# = 0 ] || {program('sleep')} $1\nexit 0\n")
            path.chmod(0o755)
        yield [str(path) for path in paths]


def expect_only(wanted: Callable[[], int], other: Callable[[], int], **settings: Any) -> None:
    """Runs processes (the functions return pids); the filter lets only the wanted one through."""

    def work() -> tuple[int, int, int]:
        return other(), wanted(), other()

    pids, events, _ = traced(work, **settings)
    kinds = ["exit"] if settings.get("failed") else ["exec", "exit"]
    seen = summary(of_pids(events, set(pids)))
    assert seen == [(kind, pids[1]) for kind in kinds], f"{settings}: {seen}, of {pids}"


def expect_all(events: Sequence[Event], *expected: tuple[str, int]) -> None:
    """Exactly these events crossed the ring."""
    assert summary(events) == list(expected), f"{events}, expected {expected}"


def both(pid: int) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("exec", pid), ("exit", pid)


def check_filter_user() -> str:
    """users= lets only that user's processes through, by number and by name."""
    named = next(entry for entry in pwd.getpwall() if entry.pw_uid)
    for user in (OTHER_USER, named.pw_uid):
        expect_only(partial(plain, user=user), plain, users=[user])
    pid, events, _ = traced(lambda: run("true", user=OTHER_USER)[0], users=[OTHER_USER])
    expect_all(events, *both(pid))
    expect_only(lambda: run("true", user=named.pw_uid)[0], plain, users=[named.pw_name])
    return f"users {OTHER_USER} and {named.pw_name}"


def check_filter_comm() -> str:
    """comms= lets only processes of these names through."""
    with scripts("a", "fifteen-bytes-x", "fifteen-bytes-y") as paths:
        _, events, _ = traced(lambda: [run(path) for path in paths], comms=["fifteen-bytes-x", "a"])
    comms = [getattr(event, "comm", None) for event in events]
    assert comms == ["a"] * 2 + ["fifteen-bytes-x"] * 2, comms
    expect_only(lambda: run("sleep", "0")[0], plain, comms=["sleep"])
    return "a, fifteen-bytes-x"


def check_filter_pid() -> str:
    """pids= lets only those processes through, and not their children."""
    children = [subprocess.Popen([program("sleep"), "60"]) for _ in range(3)]
    pids = [child.pid for child in children]

    def end() -> None:
        for child in children:
            child.terminate()
            child.wait(DEADLINE_S)

    _, events, _ = traced(end, pids=pids[:2])
    expect_all(events, *(("exit", pid) for pid in pids[:2]))
    _, events, _ = traced(plain, pids=[ME])
    expect_all(events)
    return f"{len(pids)} processes"


def check_filter_ppid() -> str:
    """ppids= lets only children through, and no grandchildren."""
    pid, events, _ = traced(family, ppids=[ME])
    expect_all(events, *both(pid))
    assert {getattr(event, "ppid", None) for event in events} == {ME}
    pid, events, _ = traced(plain, ppids=[1])
    assert not of_pids(events, {pid})
    return f"parent {ME}"


def check_filter_failed() -> str:
    """failed= lets only exits with a status other than 0 through, with that status."""
    expect_only(lambda: run("false")[0], plain, failed=True)

    def work() -> list[int]:
        plain()
        scripts = ("exit 1", "kill -TERM $$", "kill -KILL $$")
        return [run("sh", "-c", script)[0] for script in scripts]

    pids, events, _ = traced(work, failed=True, ppids=[ME])
    expect_all(events, *(("exit", pid) for pid in pids))
    ends = [(e.exit_code, e.signal) for e in events if isinstance(e, ExitEvent)]
    assert ends == [(1, None), (0, signal.SIGTERM), (0, signal.SIGKILL)], ends
    return "status 1, SIGTERM and SIGKILL"


def run_in(cgroup: Path) -> int:
    """Runs a program in a cgroup; returns its pid."""
    return run("true", preexec_fn=lambda: (cgroup / "cgroup.procs").write_text("0"))[0]


def check_filter_cgroup() -> str:
    """cgroups= lets only processes of that cgroup through, and of those below it."""
    with new_cgroup("top") as top, new_cgroup("beside") as beside:
        below = top / "below"
        below.mkdir()
        folders = (top, below, beside)
        pids, events, _ = traced(lambda: [run_in(path) for path in folders], cgroups=[top])
        expect_all(events, *both(pids[0]), *both(pids[1]))
        ids = [getattr(event, "cgroup_id", None) for event in events[::2]]
        assert ids == [top.stat().st_ino, below.stat().st_ino], ids
        expect_only(lambda: run_in(top), plain, cgroups=[top])
    return "one cgroup and one below it"


def check_filters_combined() -> str:
    """Several filters let through only what each of them does."""

    def work() -> int:
        family()  # its children have the wrong parent
        run("false")  # the wrong name
        return plain()

    pid, events, _ = traced(work, comms=["true"], ppids=[ME], users=[os.getuid()])
    expect_all(events, *both(pid))
    return "name, parent and user"


def check_filter_and_duration() -> str:
    """A filter and a minimum duration apply together."""
    with scripts(f"s{ME}") as (mine,):  # a name that no other process has

        def work() -> int:
            run("sleep", LONG_S)  # the wrong name
            run(mine)  # too short
            return run(mine, LONG_S)[0]

        name = os.path.basename(mine)
        pid, events, _ = traced(work, comms=[name], min_duration_ms=LEAST_MS)
        expect_all(events, ("exit", pid))
    return name


# ---- Losses ----


def check_overflow() -> str:
    """A ring that is too small loses events, and the counters tell exactly how many."""

    def storm() -> None:
        for _ in range(STORM):
            plain()

    _, _, stats = traced(storm, ring_size=TINY_RING)
    assert stats.lost > 0, f"nothing was lost: {stats}"
    assert stats.received > 0, stats
    assert stats.produced >= 2 * STORM, f"less was produced than happened: {stats}"
    return f"{stats.produced} produced == {stats.received} received + {stats.lost} lost"


def check_preempted() -> str:
    """If tasks are preempted inside a program, hardly any event can be missing.

    With preemption disabled only from reservation to submission it was 3 to 6 per thousand on an
    emulated 7.2, and sometimes one was missing; with the whole program covered, 0 to 0.5.
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
    assert seen == 2 * SHELLS * EACH, f"{seen} of {2 * SHELLS * EACH} events: {stats}"
    assert stats.missed * 400 <= stats.produced, f"many may be missing: {stats}"
    return f"{seen} events, at most {stats.missed} missing"


# ---- The command ----


def check_trace() -> str:
    """`bootstrap -j -n 4` reports processes started while it runs, and ends by itself.

    It selects only our children, because other processes come and go on the host.
    """
    with Command("-j", "-n", "4", "--ppid", str(ME)) as command:
        command.wait_for_tracing()
        pids = [run("sh", "-c", "exit 5")[0] for _ in range(3)]
        status, out, err = command.end()
    assert (status, err) == (0, ""), (status, err)
    events = without_reports(out)
    expected = [(kind, pid) for pid in pids[:2] for kind in ("exec", "exit")]
    assert [(e["event"], e["pid"]) for e in events] == expected, out
    for executed, ended in (events[:2], events[2:]):
        assert executed["args"] == ended["args"] == ["sh", "-c", "exit 5"], executed
        assert (ended["exit_code"], ended["signal"]) == (5, None), ended
    return f"{len(events)} events"


def check_duration() -> str:
    """Of our processes, `bootstrap -d` prints only the exits of those that ran longer."""
    with Command("-d", str(LEAST_MS)) as command:
        command.wait_for_header()
        short = [plain() for _ in range(5)]
        long, _ = run("sleep", LONG_S)
        short.append(plain())
        status, out, err = command.end(signal.SIGINT)
    assert (status, err) == (0, ""), (status, err)
    assert "EXEC" not in out, out
    of_ours = re.compile(rf"\S+ EXIT  .* ({'|'.join(map(str, [long, *short]))}) +{ME} .*")
    (line,) = [line for line in out.splitlines() if of_ours.fullmatch(line)]
    assert re.fullmatch(rf"[\d:]{{8}} EXIT  sleep {{12}}{long:<7} {ME:<7} \[0\] \(\d+ms\)", line)
    return line


def drop_all() -> None:
    """In a child: what it executes has no capabilities."""
    libc = ctypes.CDLL(None)
    for number in range(64):
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)


def check_unprivileged() -> str:
    """Who may not trace is told so in one line, with exit status 77; here root without rights."""
    with Command(preexec_fn=drop_all) as command:
        status, out, err = command.end()
    assert (status, out) == (EX_NOPERM, ""), (status, out, err)
    assert err.startswith("bootstrap: tracing needs the capabilities CAP_BPF"), err
    assert err.count("\n") == 1, f"more or less than one line: {err}"
    return err.strip()


def check_command() -> str:
    """`bootstrap --check` finds that this machine can run it."""
    done = subprocess.run(
        [sys.executable, "-m", "pybootstrap", "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    found = [re.match(r"ok {6}([\w ]+): ", line) for line in done.stdout.splitlines()]
    assert all(found), done.stdout
    names = {match[1] for match in found if match}
    assert names >= {"kernel", "BTF", "capabilities", "lockdown", "memlock", "tracing"}, names
    return done.stdout.strip()


CASES: tuple[Callable[[], str], ...] = (
    check_settings, check_programs,
    check_filter_user, check_filter_comm, check_filter_pid, check_filter_ppid, check_filter_failed,
    check_filter_cgroup, check_filters_combined, check_filter_and_duration,
    check_overflow, check_preempted, check_trace, check_duration, check_unprivileged,
    check_clean_end, check_command,
)  # fmt: skip
