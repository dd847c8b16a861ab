# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Processes that share a slot of the process table do not disturb each other."""

from __future__ import annotations

import subprocess
import time

import pytest

from pybootstrap import Event, ExitEvent, Tracer
from tests.support import (
    DEADLINE_S,
    bpftool,
    collect,
    execs,
    exits,
    status_of,
    until_exit,
    wait_until,
)

# With so few slots, ids that are equal modulo 64 share one.
FEW = 64


def start(remainder: int | None, *argv: str) -> subprocess.Popen[bytes]:
    """Starts a program under an id with this remainder (None: any)."""
    while True:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE)
        if remainder is None or process.pid % FEW == remainder:
            return process
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate(timeout=DEADLINE_S)


def wait_for_sleep(process: subprocess.Popen[bytes]) -> None:
    """Waits until the process runs sleep, its last program."""
    wait_until(lambda: status_of(process.pid)["Name"] == "sleep")


def remembered(name: str) -> set[int]:
    """The process ids that are keys of the maps with this name."""
    maps = [m["id"] for m in bpftool("map", "list") if m.get("name") == name]
    assert maps
    return {e["formatted"]["key"] for i in maps for e in bpftool("map", "dump", "id", str(i))}


@pytest.mark.parametrize("args", [False, True])
def test_a_slot_changes_hands(args: bool) -> None:
    with Tracer(max_processes=FEW, args=args) as tracer:
        first = start(None, "sleep", "60")
        remainder = first.pid % FEW
        second = start(remainder, "sh", "-c", "read line; exec sleep 61")
        assert second.pid in remembered("exec_start_more")  # because first has the slot
        end(first)
        assert second.stdin
        before_exec = time.monotonic_ns()
        second.stdin.close()
        second.stdin = None
        wait_for_sleep(second)
        third = start(remainder, "sleep", "62")
        assert third.pid not in remembered("exec_start_more")
        end(second)
        since_exec = time.monotonic_ns() - before_exec
        end(third)
        started = [first, second, third]
        pids = [process.pid for process in started]
        ended = {e.pid: e for e in exits(collect(tracer, until_exit(*pids)), set(pids))}
        for name in ("exec_start_more", "exec_text_more", "exec_text_long"):
            assert not remembered(name) & set(pids)
    assert [ended[pid].duration_since for pid in pids] == ["exec"] * 3
    assert 0 < ended[second.pid].duration_ns < since_exec
    if args:
        assert [ended[pid].args for pid in pids] == [("sleep", n) for n in ("60", "61", "62")]


def test_text_is_kept_through_execs_with_short_and_long_text() -> None:
    """Short, long and short again, with a slot and without one; only the last text is kept."""
    script = 'case ${#1} in 1) exec sh -c "$0" "$0" "$(printf %01000d)";; *) exec sleep 60; esac'
    with Tracer(max_processes=FEW) as tracer:
        first = start(None, "sh", "-c", script, script, "x")
        second = start(first.pid % FEW, "sh", "-c", script, script, "x")
        for process in (first, second):
            wait_for_sleep(process)
        pids = {first.pid, second.pid}
        assert remembered("exec_text_more") & pids == {second.pid}
        end(first)
        end(second)
        events = collect(tracer, until_exit(*pids))
        for name in ("exec_start_more", "exec_text_more", "exec_text_long"):
            assert not remembered(name) & pids
    for pid in pids:
        lengths = [len("".join(e.args or ())) for e in execs(events, {pid})]
        assert [length > 1000 for length in lengths] == [False, True, False]
    assert [e.args for e in exits(events, pids)] == [("sleep", "60")] * 2


def test_many_processes_on_few_slots() -> None:
    count = 500
    script = f"i=0; while [ $i -lt {count} ]; do /bin/true $i; i=$((i+1)); done"
    with Tracer(max_processes=FEW) as tracer:
        # All slots are taken when it starts, and free before it ends.
        idle = [start(None, "sleep", "60") for _ in range(FEW // 2)]
        shells = [subprocess.Popen(["sh", "-c", script]) for _ in range(4)]
        parents = {shell.pid for shell in shells}

        def ended_of(events: list[Event]) -> list[ExitEvent]:
            return [e for e in events if isinstance(e, ExitEvent) and e.ppid in parents]

        first = ended_of(collect(tracer, lambda events: len(ended_of(events)) > count))
        while idle:
            end(idle.pop())
        left = 4 * count - len(first)
        ended = first + ended_of(collect(tracer, lambda events: len(ended_of(events)) == left))
        for shell in shells:
            shell.wait()
        stats = tracer.stats
    assert stats.untracked == stats.lost == 0
    assert {e.duration_since for e in ended} == {"exec"}
    expected = sorted(("/bin/true", str(i)) for i in range(count) for _ in shells)
    assert sorted(e.args or () for e in ended) == expected
