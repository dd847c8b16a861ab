# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Compares events with what the parent and /proc report."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pybootstrap import ExecEvent, ExitEvent, Tracer
from tests.support import collect, execs, exits, of_pids, run, status_of, until_exit


def same_time(one_ns: int, other_ns: int) -> bool:
    """Allows for slewing of the wall clock between two reads, which is far less."""
    return abs(one_ns - other_ns) < 1_000_000


def time_of_boot_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_every_event_once_in_order_with_the_right_identity(tmp_path: Path) -> None:
    program = tmp_path / "a-program"
    shutil.copy("/bin/true", program)
    before = time.time_ns()
    with Tracer() as tracer:
        spawned = [run(str(program), f"argument {n}", "") for n in range(50)]
        pids = [pid for pid, _ in spawned]
        events = of_pids(collect(tracer, until_exit(*pids)), set(pids))
    after = time.time_ns()

    assert [(type(e), e.pid) for e in events] == [
        (kind, pid) for pid in pids for kind in (ExecEvent, ExitEvent)
    ]
    assert [e.time_ns for e in events] == sorted(e.time_ns for e in events)
    for event in events:
        assert before <= event.time_ns <= after
        assert (event.ppid, event.uid, event.gid) == (os.getpid(), os.getuid(), os.getgid())
        assert event.sid == os.getsid(0)
        assert event.comm == "a-program"
        assert event.filename == str(program)
        assert event.args == (str(program), f"argument {pids.index(event.pid)}", "")
        assert not event.args_truncated
    for executed, ended in zip(events[::2], events[1::2]):
        assert isinstance(ended, ExitEvent)
        assert executed.start_boottime_ns == ended.start_boottime_ns
        assert same_time(ended.duration_ns, ended.time_ns - executed.time_ns)


def test_the_identity_of_a_running_process_agrees_with_proc() -> None:
    with Tracer() as tracer:
        pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ)
        (event,) = execs(collect(tracer, lambda seen: bool(execs(seen, {pid}))), {pid})
        stat = Path(f"/proc/{pid}/stat").read_text()
        status = status_of(pid)
        os.kill(pid, 9)
        os.wait4(pid, 0)
    fields = stat.rpartition(")")[2].split()
    assert event.comm == stat.partition("(")[2].rpartition(")")[0]
    assert event.ppid == int(fields[1])
    assert event.sid == int(fields[3])
    ticks = os.sysconf("SC_CLK_TCK")
    assert event.start_boottime_ns * ticks // 10**9 == int(fields[19])
    assert event.uid == int(status["Uid"].split()[0])
    assert event.gid == int(status["Gid"].split()[0])
    assert event.ns_pid == int(status["NSpid"].split()[-1])


def test_a_process_of_another_user_and_group() -> None:
    nobody = pwd.getpwnam("nobody")
    with Tracer() as tracer:
        pid = os.fork()
        if pid == 0:
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            os.execv("/bin/true", ["true"])
        os.wait4(pid, 0)
        events = of_pids(collect(tracer, until_exit(pid)), {pid})
    assert len(events) == 2
    for event in events:
        assert (event.uid, event.gid) == (nobody.pw_uid, nobody.pw_gid)


@pytest.mark.parametrize(
    "script", ["exit 0", "exit 3", "exit 255", "kill -KILL $$", "kill -TERM $$", "kill -37 $$"]
)
def test_status_agrees_with_wait4(script: str) -> None:
    with Tracer() as tracer:
        pid, status = run("/bin/sh", "-c", script)
        (event,) = exits(collect(tracer, until_exit(pid)), {pid})
    if os.WIFSIGNALED(status):
        assert (event.signal, event.core_dumped) == (os.WTERMSIG(status), os.WCOREDUMP(status))
    else:
        assert (event.exit_code, event.signal) == (os.WEXITSTATUS(status), None)


def test_a_process_that_never_called_exec_counts_from_its_start() -> None:
    gate, opener = os.pipe()
    pid = os.fork()  # before the tracer
    if pid == 0:
        os.close(opener)
        os.read(gate, 1)  # until the parent closes its end
        os._exit(7)
    os.close(gate)
    with Tracer() as tracer:
        time.sleep(0.3)  # the minimum duration
        os.close(opener)
        os.wait4(pid, 0)
        (event,) = exits(collect(tracer, until_exit(pid)), {pid})
    assert event.duration_since == "start"
    assert event.filename is None
    assert event.args is None
    assert event.exit_code == 7
    lived_ns = event.time_ns - time_of_boot_ns() - event.start_boottime_ns
    assert event.duration_ns >= 300_000_000
    assert same_time(event.duration_ns, lived_ns)


def test_duration_counts_from_the_last_exec() -> None:
    with Tracer() as tracer:
        pid, _ = run("/bin/sh", "-c", "sleep 0.3; exec sleep 0.1")
        events = of_pids(collect(tracer, until_exit(pid)), {pid})
    assert [type(e) for e in events] == [ExecEvent, ExecEvent, ExitEvent]
    ended = events[2]
    assert isinstance(ended, ExitEvent)
    assert ended.duration_since == "exec"
    assert ended.args == ("sleep", "0.1")
    assert ended.duration_ns >= 100_000_000
    assert same_time(ended.duration_ns, ended.time_ns - events[1].time_ns)


def test_a_short_process_is_filtered_in_the_kernel() -> None:
    with Tracer(min_duration_ms=100) as tracer:
        for _ in range(20):
            run("/bin/true")
        pid, _ = run("/bin/sleep", "0.2")
        events = collect(tracer, until_exit(pid))
        tracer.stop()
        events += tracer.read()
        assert tracer.stats.produced == len(events)  # nothing else crossed the ring buffer
    (event,) = exits(events, {pid})
    assert execs(events, {pid}) == []
    assert event.args == ("/bin/sleep", "0.2")  # kept in the kernel
    assert all(isinstance(e, ExitEvent) and e.duration_ns >= 100_000_000 for e in events)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 255, 256, 257, 4000])
def test_long_file_names(tmp_path: Path, length: int) -> None:
    """Covers every size of record, and of kept text, up to about PATH_MAX."""
    directory = tmp_path
    while len(str(directory)) + 202 < length:
        directory /= "d" * 200
    directory.mkdir(parents=True, exist_ok=True)
    name = "f" * max(1, length - len(str(directory)) - 1)
    program = directory / name
    # Not shutil.copyfile: names near PATH_MAX work only relative to a directory.
    shutil.copy("/bin/true", program)
    with Tracer() as tracer:
        pid, _ = run(str(program), "x" * length)
        events = of_pids(collect(tracer, until_exit(pid)), {pid})
    assert len(events) == 2
    for event in events:
        assert event.filename == str(program)
        assert event.args == (str(program), "x" * length)
        assert not event.args_truncated


def test_too_many_arguments_are_cut_and_marked() -> None:
    args = ["/bin/true", *(f"argument-{n:04}" for n in range(2000))]
    with Tracer() as tracer:
        pid, _ = run(*args)
        events = of_pids(collect(tracer, until_exit(pid)), {pid})
        assert tracer.stats.truncated >= 2
    kept = "\0".join(args).encode()[:8192].decode().split("\0")
    assert len(events) == 2
    for event in events:
        assert event.args_truncated
        assert event.args == tuple(kept)


def test_a_script_has_its_own_name_and_its_interpreters_arguments(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh -e\nexit 4\n")
    script.chmod(0o755)
    with Tracer() as tracer:
        pid, _ = run(str(script), "word")
        executed, ended = of_pids(collect(tracer, until_exit(pid)), {pid})
    assert executed.filename == str(script)
    assert executed.args == ("/bin/sh", "-e", str(script), "word")
    assert executed.comm == "script"
    assert ended.args == executed.args


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/\xff\n\x1b[31m"
    shutil.copy(b"/bin/true", program)
    argument = b"\x80\xfe\t"
    with Tracer() as tracer:
        pid, _ = run(os.fsdecode(program), os.fsdecode(argument))
        events = of_pids(collect(tracer, until_exit(pid)), {pid})
    for event in events:
        assert event.filename is not None
        assert event.args is not None
        assert os.fsencode(event.filename) == program
        assert os.fsencode(event.args[1]) == argument
        assert os.fsencode(event.comm) == b"\xff\n\x1b[31m"


def test_without_args_the_records_are_small() -> None:
    with Tracer(args=False) as tracer:
        pid, _ = run("/bin/true", "argument")
        executed, ended = of_pids(collect(tracer, until_exit(pid)), {pid})
    assert (executed.filename, executed.args) == ("/bin/true", ())
    assert (ended.filename, ended.args) == (None, None)


def test_a_failed_exec_causes_no_event() -> None:
    with Tracer() as tracer:
        pid = os.fork()
        if pid == 0:
            try:
                os.execv("/no/such/program", ["x"])
            finally:
                os._exit(9)
        os.wait4(pid, 0)
        events = of_pids(collect(tracer, until_exit(pid)), {pid})
    assert [type(e) for e in events] == [ExitEvent]


def test_threads_cause_no_events() -> None:
    code = "import threading\nfor _ in range(20): threading.Thread(target=print).start()"
    with Tracer() as tracer:
        pid, _ = run(sys.executable, "-c", code, stdout=subprocess.DEVNULL)
        events = of_pids(collect(tracer, until_exit(pid)), {pid})
    assert [type(e) for e in events].count(ExitEvent) == 1


def test_records_hold_no_stale_memory() -> None:
    """The ring is reused many times, and no event may contain a piece of an earlier one."""
    marker = "m" * 3000
    with Tracer(ring_size=64 * 1024) as tracer:
        for _ in range(40):
            pid, _ = run("/bin/true", marker)
            collect(tracer, until_exit(pid))
        for _ in range(100):
            pid, _ = run("/bin/true")
            for event in of_pids(collect(tracer, until_exit(pid)), {pid}):
                assert b"mmm" not in event.__reduce__()[1][0]


BTF = Path("/sys/kernel/btf/vmlinux")
# Names of equal length, so that nothing else in the kernel's BTF changes.
LACKING = {b"\0read_bytes\0": b"\0gone_bytes\0", b"\0cgroups\0": b"\0gone_gr\0"}
TRACE = """
import json, os
from pybootstrap import ExitEvent, Tracer
with Tracer() as tracer:
    pid = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitpid(pid, 0)
    ended = next(e for e in tracer if isinstance(e, ExitEvent) and e.pid == pid)
print(json.dumps(ended.asdict()))
"""


def test_a_kernel_without_io_accounting_and_cgroups(tmp_path: Path) -> None:
    """Simulates a kernel built without these options by BTF without their members."""
    types = BTF.read_bytes()
    for name, other in LACKING.items():
        assert types.count(name) == 1
        types = types.replace(name, other)
    (tmp_path / "btf").write_bytes(types)
    script = f'mount --bind "$0" {BTF} && exec "$@"'
    command = ["sh", "-c", script, str(tmp_path / "btf"), sys.executable, "-c", TRACE]
    done = subprocess.run(["unshare", "--mount", *command], capture_output=True, check=True)
    ended = json.loads(done.stdout)
    assert ended["cgroup_id"] is None
    assert ended["usage"]["read_bytes"] is None
    assert ended["usage"]["write_bytes"] is None
    assert ended["usage"]["max_rss_bytes"] > 0
    assert ended["filename"] == "/bin/true"
