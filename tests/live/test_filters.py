# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Filters: what is reported, and that one that is off leaves nothing in the program."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from pathlib import Path

import pytest

from pybootstrap import ExecEvent, ExitEvent, SettingError, Tracer
from tests.live.conftest import Start
from tests.support import bpftool, held_by, new_cgroup, run


def traced(tracer: Tracer) -> list[ExecEvent | ExitEvent]:
    """All events up to now, which must be all that crossed the ring buffer."""
    tracer.stop()
    events = list(tracer)
    assert tracer.stats.produced == len(events)
    return [e for e in events if isinstance(e, (ExecEvent, ExitEvent))]


def test_pids() -> None:
    pids = [os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ) for _ in range(3)]
    with Tracer(pids=pids[:2]) as tracer:
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
            os.wait4(pid, 0)
        assert [e.pid for e in traced(tracer)] == pids[:2]


def test_ppids() -> None:
    with Tracer(ppids=[os.getpid()]) as tracer:
        pid, _ = run("/bin/sh", "-c", "/bin/true; /bin/true; exit 0")
        events = traced(tracer)
    assert [e.pid for e in events] == [pid, pid]
    assert {e.ppid for e in events} == {os.getpid()}


@pytest.mark.parametrize("by_name", [False, True])
def test_users(by_name: bool) -> None:
    nobody = pwd.getpwnam("nobody")
    with Tracer(users=["nobody" if by_name else nobody.pw_uid]) as tracer:
        run("/bin/true")
        pid = os.fork()
        if pid == 0:
            os.setuid(nobody.pw_uid)
            os.execv("/bin/true", ["true"])
        os.wait4(pid, 0)
        assert [e.pid for e in traced(tracer)] == [pid, pid]


def test_comms(tmp_path: Path) -> None:
    for name in ("a", "fifteen-bytes-x", "fifteen-bytes-y"):
        shutil.copy("/bin/true", tmp_path / name)
    with Tracer(comms=["fifteen-bytes-x", "a"]) as tracer:
        for name in ("a", "fifteen-bytes-x", "fifteen-bytes-y"):
            run(str(tmp_path / name))
        assert [e.comm for e in traced(tracer)] == ["a"] * 2 + ["fifteen-bytes-x"] * 2


def test_failed() -> None:
    with Tracer(failed=True, ppids=[os.getpid()]) as tracer:
        run("/bin/true")
        bad, _ = run("/bin/false")
        killed, _ = run("/bin/sh", "-c", "kill -TERM $$")
        events = traced(tracer)
    assert [(type(e), e.pid) for e in events] == [(ExitEvent, bad), (ExitEvent, killed)]


def test_filters_are_combined() -> None:
    with Tracer(comms=["true"], ppids=[os.getpid()], users=[os.getuid()]) as tracer:
        run("/bin/sh", "-c", "/bin/true; /bin/true; exit 0")  # the wrong parent
        run("/bin/false")  # the wrong name
        pid, _ = run("/bin/true")
        assert [e.pid for e in traced(tracer)] == [pid, pid]


def test_a_filter_and_a_duration(tmp_path: Path) -> None:
    mine = tmp_path / f"s{os.getpid()}"  # a name that nobody else's processes have
    shutil.copy("/bin/sleep", mine)
    with Tracer(comms=[mine.name], min_duration_ms=100) as tracer:
        run("/bin/sleep", "0.2")  # the wrong name
        run(str(mine), "0.01")  # too short
        pid, _ = run(str(mine), "0.2")
        assert [(type(e), e.pid) for e in traced(tracer)] == [(ExitEvent, pid)]


def run_in(cgroup: Path) -> int:
    pid = os.fork()
    if pid == 0:
        (cgroup / "cgroup.procs").write_text("0")
        os.execv("/bin/true", ["true"])
    os.wait4(pid, 0)
    return pid


def test_cgroups() -> None:
    with new_cgroup("top") as top, new_cgroup("beside") as beside, Tracer(cgroups=[top]) as tracer:
        below = top / "below"
        below.mkdir()
        pids = [run_in(path) for path in (top, below, beside)]
        events = traced(tracer)
        ids = [top.stat().st_ino, below.stat().st_ino]
    assert [e.pid for e in events] == [pids[0], pids[0], pids[1], pids[1]]
    assert [e.cgroup_id for e in events[::2]] == ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pids": [0]}, "pids"),
        ({"pids": ["1"]}, "pids"),
        ({"pids": range(1, 66)}, "at most 64"),
        ({"pids": 5}, r"pids takes a list of values, such as \[5\], not 5"),
        ({"pids": "5"}, "pids takes a list"),
        ({"ppids": b"5"}, "ppids takes a list"),
        ({"users": "root"}, r"such as \['root'\], not 'root'"),
        ({"comms": "true"}, "comms takes a list"),
        ({"cgroups": "/sys/fs/cgroup"}, "cgroups takes a list"),
        ({"cgroups": Path("/sys/fs/cgroup")}, "cgroups takes a list"),
        ({"cgroups": [5]}, "paths of directories, not 5"),
        ({"cgroups": ["/a\0b"]}, "null"),
        ({"users": [1.5]}, "users"),
        ({"users": ["9" * 5000]}, "there is no user"),
        ({"comms": [5]}, "names of commands, not 5"),
        ({"comms": ["a\0b"]}, "names of commands"),
        ({"users": ["no-such-user"]}, "no-such-user"),
        ({"users": [-1]}, "users"),
        ({"comms": ["sixteen-bytes-xx"]}, "'sixteen-bytes-x'"),
        ({"cgroups": ["/no/such/cgroup"]}, "/no/such/cgroup"),
        ({"cgroups": ["/bin/sh"]}, "/bin/sh"),
        ({"cgroups": ["/tmp"]}, "cgroup v2"),
    ],
)
def test_wrong_values(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message), Tracer(**settings):  # type: ignore[arg-type]
        pass


def translated_bytes(tracer: Tracer) -> int:
    """The length of the programs after the verifier has removed what cannot run."""
    with tracer:
        ids = {number for kind, number in held_by() if kind == "prog"}
        return sum(bpftool("prog", "show", "id", str(number))["bytes_xlated"] for number in ids)


def test_a_filter_that_is_off_leaves_no_instruction() -> None:
    plain = translated_bytes(Tracer(args=False))
    assert translated_bytes(Tracer(args=False, failed=False, pids=[], users=[])) == plain
    for settings in ({"pids": [1]}, {"ppids": [1]}, {"users": [0]}, {"comms": ["x"]}):
        assert translated_bytes(Tracer(args=False, **settings)) > plain
    assert translated_bytes(Tracer(args=False, failed=True)) < plain  # no exec is sent at all


def test_a_user_with_too_many_digits_is_one_line(bootstrap: Start) -> None:
    status, out, err = bootstrap("-u", "9" * 5000).end()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "there is no user" in err


def test_the_options(bootstrap: Start) -> None:
    command = bootstrap("-x", "-u", "root", "-c", "sh", "--ppid", str(os.getpid()))
    command.wait_for_header()
    run("/bin/false")
    run("/bin/sh", "-c", "exit 0")
    pid, _ = run("/bin/sh", "-c", "exit 3")
    _, out, err = command.end(signal.SIGTERM)
    assert err == ""
    (line,) = out.splitlines()
    assert line.split()[1:5] == ["EXIT", "sh", str(pid), str(os.getpid())]
