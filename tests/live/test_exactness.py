# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Compares every EXEC and EXIT with what wait4(2) and the processes themselves report.

PYBOOTSTRAP_EXACTNESS sets the minimum number of processes of the generated workload, and
PYBOOTSTRAP_EXACTNESS_SEED its seed.
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.exactness.workload import (
    RACES,
    TRAPS,
    Difference,
    Recording,
    Script,
    Site,
    compare,
    plan,
    record,
    split_status,
)
from tests.support import wait_until

PROCESSES = int(os.environ.get("PYBOOTSTRAP_EXACTNESS", "2000"))
SEED = int(os.environ.get("PYBOOTSTRAP_EXACTNESS_SEED", "1"))
SHOWN = 20  # differences in a failure


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


def check(differences: Sequence[Difference]) -> None:
    if differences:
        shown = "\n".join(str(d) for d in differences[:SHOWN])
        pytest.fail(f"{len(differences)} differences, the first of them:\n{shown}")


def check_script(site: Site, script: Script, times: int = 1, **settings: Any) -> Recording:
    recording = record(site, [script] * times, **settings)
    check(compare(recording.events, recording.witness))
    return recording


def exit_of_first(recording: Recording) -> Any:
    """The EXIT event of the first script's own process."""
    from pybootstrap import ExitEvent

    pid = recording.witness.of(0)[0].key.pid
    return next(e for e in recording.events if isinstance(e, ExitEvent) and e.pid == pid)


@pytest.mark.parametrize("trap", TRAPS)
def test_trap(site: Site, trap: str) -> None:
    check_script(site, TRAPS[trap])


def test_the_comparison_finds_differences(site: Site) -> None:
    recording = record(site, [Script.of("exec exit 3", 1, 2)])
    event = exit_of_first(recording)
    others = [e for e in recording.events if e is not event]
    for events, expected in (
        (others, "0 EXITs"),
        ([*others, event, event], "2 EXITs"),
        ([event], "0 EXECs, expected 2"),
    ):
        found = [str(d) for d in compare(events, recording.witness)]
        assert any(expected in text for text in found), (expected, found)


def test_generated_workload(site: Site) -> None:
    recording = record(site, plan(SEED, PROCESSES))
    assert len(recording.witness.processes) >= PROCESSES
    check(compare(recording.events, recording.witness))


def test_generated_workload_without_arguments(site: Site) -> None:
    recording = record(site, plan(SEED + 10**6, 200), args=False)
    check(compare(recording.events, recording.witness, args=False))


@pytest.mark.parametrize("how", ["each", "group", "pexit"])
def test_64_threads_exit_at_once_1000_times(site: Site, how: str) -> None:
    check_script(site, Script.of(f"crowd 64 {how}"), times=1000)


@pytest.mark.parametrize("race", RACES)
def test_race_500_times(site: Site, race: str) -> None:
    check_script(site, RACES[race], times=500)


HERD = 20_000


def room_for_herd() -> str:
    """Why this machine cannot have 20,000 more processes; empty if it can."""
    alive = sum(len(os.listdir(f"/proc/{p}/task")) for p in _pids())
    needed = HERD + alive + 1000
    for name in ("pid_max", "threads-max"):
        limit = int(Path(f"/proc/sys/kernel/{name}").read_text())
        if limit < needed:
            return f"kernel.{name} is {limit}: raise it to {needed} with sysctl"
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit != resource.RLIM_INFINITY and limit < needed:
        return f"the limit of processes is {limit}: raise it to {needed} with ulimit -u"
    return ""


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit() and _lives(name)]


def _lives(pid: str) -> bool:
    return os.path.isdir(f"/proc/{pid}/task")


def test_20000_processes_alive_at_once(site: Site) -> None:
    problem = room_for_herd()
    if problem:
        pytest.fail(problem)
    herd = Script.of(f"herd {HERD} 200", HERD + 1)
    recording = record(site, [herd], min_duration_ms=100)
    check(compare(recording.events, recording.witness, execs=False))
    statuses = Counter(
        split_status(p.reaped["status"])[1] for p in recording.witness.processes.values()
    )
    assert statuses == {9: HERD // 2, 15: HERD // 2, None: 1}


def test_cpu_time_and_memory(site: Site) -> None:
    """check_script() compares with wait4; this compares with the figures that the script sets."""
    recording = check_script(site, Script.of("touch 200 burn 300 4 exit 0"))
    reaped = recording.witness.of(0)[0].reaped
    assert reaped["user_us"] + reaped["system_us"] >= 300_000
    usage = exit_of_first(recording).usage
    assert usage.user_ns + usage.system_ns >= 280_000_000
    assert usage.max_rss_bytes >= 200 << 20
    assert usage.minor_faults >= 200 << 8


def test_disk_usage(site: Site) -> None:
    check_script(site, Script.of("disk 4096 exit 0"))


def test_duration_counts_from_the_last_exec(site: Site) -> None:
    event = exit_of_first(check_script(site, Script.of("sleep 300 exec sleep 50 exit 0", 1, 2)))
    assert event.duration_since == "exec"
    assert event.duration_ns >= 50_000_000


def test_duration_of_a_process_that_started_before_the_tracer(site: Site) -> None:
    from pybootstrap import ExitEvent, Tracer

    run = site.run([Script.of("sleep 700 exit 3")], 1)
    wait_until(lambda: any(line["kind"] == "image" for line in run.lines()))
    with Tracer(min_duration_ms=100) as tracer:
        witness = run.witness()
        tracer.stop()
        pid = witness.of(0)[0].key.pid
        events = [e for e in tracer if isinstance(e, ExitEvent) and e.pid == pid]
    assert [e.exit_code for e in events] == [3]
    assert events[0].duration_since == "start"
    assert events[0].duration_ns >= 700_000_000
