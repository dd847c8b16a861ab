# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""However a tracing process ends, forks or calls exec, nothing of ours stays in the kernel, and
no surviving process is disturbed. bpftool tells what is in the kernel; open descriptors in /proc
tell which process holds it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from pybootstrap import Event, StateError, Tracer
from tests.live.conftest import Start
from tests.support import (
    DEADLINE_S,
    ONE_HOUR_MS,
    assert_nothing_is_left,
    collect,
    exits,
    handler,
    held_by,
    in_kernel,
    join,
    poll_until,
    programs_here,
    run,
    run_until,
    status_of,
    until_exit,
    wait_until,
    waits_in,
)


def test_our_objects_are_found_in_the_kernel() -> None:
    """If they were not, the other tests would find nothing left for the wrong reason."""
    with Tracer():
        mine = held_by()
        assert mine <= in_kernel()  # in_kernel() knows all their names
        count = Counter(kind for kind, _ in mine)
        assert (count["prog"], count["link"]) == (2, 2)
        assert count["map"] >= 3
    assert not held_by()
    assert_nothing_is_left()


# ---- The process ends ----


def start_script(script: str, *arguments: str, **popen: Any) -> subprocess.Popen[bytes]:
    """Starts Python code that uses Tracer and prints "ready" once it traces."""
    code = f"import os, signal, sys\nfrom pybootstrap import Tracer\n{script}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != b"ready\n":
        process.kill()
        pytest.fail(f"{line!r} {process.communicate()[1].decode()}")
    return process


READY = "print('ready', flush=True)\n"
OPEN = "tracer = Tracer().start()\n"
WITH = f"with Tracer(on_event=lambda e: None) as tracer:\n    {READY}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_a_signal_ends_the_command(bootstrap: Start, number: signal.Signals) -> None:
    with handler(signal.SIGHUP, signal.SIG_DFL):
        command = bootstrap()
    command.wait_for_header()
    assert held_by(command.process.pid)
    pid, _ = run("/bin/true")
    status, out, err = command.end(number)
    if number == signal.SIGKILL:
        assert status == -number
    else:  # it prints what has gathered before it ends
        assert (status, out.count(f" {pid} ")) == (0, 2)
    assert err == ""
    assert_nothing_is_left()


def test_the_command_ends_when_its_terminal_is_closed(bootstrap: Start) -> None:
    """It has gathered events that it can no longer print."""
    terminal, inner = os.openpty()
    with handler(signal.SIGHUP, signal.SIG_DFL):
        command = bootstrap(stdout=inner, start_new_session=True)
    os.close(inner)
    shown = b""
    while b"\n" not in shown:
        shown += os.read(terminal, 4096)
    run("/bin/true")
    os.close(terminal)
    command.process.send_signal(signal.SIGHUP)
    assert command.end() == (0, "", "")


def a_socket() -> tuple[int, int]:
    ours, its = socket.socketpair()
    return ours.detach(), its.detach()


@pytest.mark.parametrize("channel", [os.pipe, a_socket, os.openpty])
def test_an_idle_command_notices_that_its_reader_left(
    bootstrap: Start, channel: Callable[[], tuple[int, int]]
) -> None:
    """It has nothing to write, and no session, so it gets no SIGHUP either."""
    ours, its = channel()
    command = bootstrap("-d", str(ONE_HOUR_MS), stdout=its, start_new_session=True)
    os.close(its)
    assert b"PPID" in os.read(ours, 4096)
    wait_until(lambda: waits_in("epoll", command.pid))
    os.close(ours)
    wait_until(lambda: command.process.poll() is not None)
    assert command.end() == (0, "", "")


def test_an_idle_command_sleeps(bootstrap: Start) -> None:
    """It watches its output without polling."""
    command = bootstrap("-d", str(ONE_HOUR_MS))
    command.wait_for_header()
    wait_until(lambda: waits_in("epoll", command.pid))

    def switches() -> tuple[str, str]:
        status = status_of(command.pid)
        return status["voluntary_ctxt_switches"], status["nonvoluntary_ctxt_switches"]

    before = switches()
    time.sleep(1)  # the test is that nothing happens meanwhile
    assert switches() == before


def test_the_command_survives_sighup_under_nohup(bootstrap: Start) -> None:
    with handler(signal.SIGHUP, signal.SIG_IGN):
        command = bootstrap("--latency", "0")
    command.wait_for_header()
    command.process.send_signal(signal.SIGHUP)
    pid, _ = run("/bin/true")
    _, out, _ = command.end(signal.SIGTERM)
    assert out.count(f" {pid} ") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGQUIT])
def test_a_signal_ends_a_script(number: signal.Signals) -> None:
    """The script handles no signal, so every signal except SIGINT ends it at once."""
    process = start_script(f"{WITH}    tracer.run()")
    process.send_signal(number)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == -number
    assert_nothing_is_left()


FAIL = "def fail(event):\n    raise ZeroDivisionError\n"
THREAD = "import threading\nthreading.Thread(target=tracer.read, daemon=True).start()\n"
ASYNC = f"""import asyncio
async def main():
    async with Tracer() as tracer:
        {READY}
        async for event in tracer:
            raise SystemExit(7)
asyncio.run(main())
"""

ENDS: dict[str, tuple[str, int, str]] = {
    "exception in the callback": (
        f"{FAIL}with Tracer(on_event=fail) as tracer:\n    {READY}    tracer.run()",
        1,
        "ZeroDivisionError",
    ),
    "exception in the loop": (f"{WITH}    for e in tracer:\n        1 / 0", 1, "ZeroDivision"),
    "sys.exit": (f"{WITH}    sys.exit(5)", 5, ""),
    "os._exit": (f"{WITH}    os._exit(6)", 6, ""),
    "open at the end": (f"{OPEN}{READY}", 0, ""),
    "open in a cycle": (f"{OPEN}tracer.own = [tracer, Tracer]\n{READY}del tracer", 0, ""),
    "open at the end, and a thread reads": (f"{OPEN}{THREAD}{READY}", 0, ""),
    "iterator abandoned": (f"{OPEN}events = iter(tracer)\n{READY}next(events)", 0, ""),
    "exit from a coroutine": (ASYNC, 7, ""),
}


@pytest.mark.parametrize(("script", "status", "said"), ENDS.values(), ids=ENDS.keys())
def test_a_script_ends(script: str, status: int, said: str) -> None:
    process = start_script(script)
    run_until(lambda: process.poll() is not None)
    _, err = process.communicate()
    assert process.returncode == status, err
    assert said in err.decode() if said else err == b""
    assert_nothing_is_left()


def test_a_tracer_left_open_at_exit_warns() -> None:
    code = "from pybootstrap import Tracer\ntracer = Tracer().start()"
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], capture_output=True, check=True, text=True
    )
    assert "ResourceWarning" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert_nothing_is_left()


# ---- The process calls exec ----


def test_exec_of_the_tracing_process_leaves_nothing() -> None:
    process = start_script(f"{WITH}    os.execv('/bin/sleep', ['sleep', '60'])")
    try:
        wait_until(lambda: status_of(process.pid)["Name"] == "sleep")
        assert not held_by(process.pid)
        assert_nothing_is_left()
    finally:
        process.kill()
        process.communicate()


def test_a_tracing_process_can_execute_itself_again() -> None:
    script = (
        f"{WITH}    if len(sys.argv) == 1:\n"
        "        os.execv(sys.executable, [sys.executable, '-c', sys.orig_argv[2], 'again'])\n"
        "    print(sum(1 for _ in os.scandir('/proc/self/fd')), flush=True)\n"
        "    tracer.run()"
    )
    # Python before 3.10 has no orig_argv.
    script = "sys.orig_argv = open('/proc/self/cmdline').read().split('\\0')\n" + script
    process = start_script(script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    held = held_by(process.pid)
    assert len({number for kind, number in held if kind == "link"}) == programs_here()
    process.kill()
    process.communicate()
    assert_nothing_is_left()


# ---- The process forks ----


@contextlib.contextmanager
def child_of_a_fork() -> Iterator[list[int]]:
    """Forks a child that waits until the with block ends; yields its pid."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        yield [pid]
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def in_child(act: Callable[[], object]) -> int:
    """Forks, calls act() in the child, and returns its exit status: 99 if act() raised."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            signal.alarm(20)  # in case it hangs
            act()
            status = 0
        except SystemExit as end:
            status = int(str(end.code))
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def assert_still_tracing(tracer: Tracer) -> None:
    """Checks that the tracer still sees events."""
    pid, _ = run("/bin/true")
    assert len(exits(collect(tracer, until_exit(pid)), {pid})) == 1


def is_quiet(tracer: Tracer) -> bool:
    """Whether the descriptor of a tracer that gets no events is not readable."""
    poller = select.poll()
    poller.register(tracer.fileno(), select.POLLIN)
    return not poller.poll(300)


def close(tracer: Tracer) -> None:
    tracer.close()


def stop(tracer: Tracer) -> None:
    tracer.stop()


def leave_with_block(tracer: Tracer) -> None:
    tracer.__exit__(SystemExit, SystemExit(0), None)


@pytest.mark.parametrize("act", [close, stop, leave_with_block, repr])
def test_a_child_cannot_disturb_its_parents_tracer(act: Callable[[Tracer], object]) -> None:
    with Tracer() as tracer, Tracer(min_duration_ms=ONE_HOUR_MS) as quiet:
        assert in_child(lambda: (act(tracer), act(quiet))) == 0
        assert is_quiet(quiet)
        assert_still_tracing(tracer)
        assert len({n for kind, n in held_by(os.getpid()) if kind == "link"}) == 4


def test_a_child_forgets_its_parents_tracer() -> None:
    """No ResourceWarning (an error here), because closing it is not the child's duty."""
    tracers = [Tracer().start(), Tracer(min_duration_ms=ONE_HOUR_MS).start()]

    def forget() -> None:
        tracers.clear()
        gc.collect()

    assert in_child(forget) == 0
    assert is_quiet(tracers[1])
    assert_still_tracing(tracers[0])
    for tracer in tracers:
        tracer.close()


def test_sys_exit_in_a_child_does_not_disturb_the_parents_tracer() -> None:
    script = (
        "tracer = Tracer(min_duration_ms=3_600_000).start()\n"
        "if os.fork() == 0:\n    sys.exit(0)\n"
        "os.wait()\n"
        "import select\npoller = select.poll()\npoller.register(tracer.fileno(), select.POLLIN)\n"
        f"assert not poller.poll(300)\n{READY}tracer.close()"
    )
    process = start_script(script)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (0, b"")
    assert_nothing_is_left()


USES: dict[str, Callable[[Tracer], object]] = {
    "read": lambda tracer: tracer.read(timeout=0),
    "next": next,
    "poll": lambda tracer: tracer.poll(timeout=0),
    "run": lambda tracer: tracer.run(),
    "fileno": lambda tracer: tracer.fileno(),
    "start": lambda tracer: tracer.start(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_child_that_uses_the_tracer_gets_an_error(use: Callable[[Tracer], object]) -> None:
    def act() -> None:
        with pytest.raises(StateError, match=r"parent|once"):
            use(tracer)

    with Tracer(on_event=print) as tracer:
        run("/bin/true")
        assert in_child(act) == 0
        tracer.poll(timeout=DEADLINE_S)


def test_a_child_can_make_a_tracer_of_its_own() -> None:
    def act() -> None:
        with Tracer() as own:
            assert_still_tracing(own)

    with Tracer() as tracer:
        assert in_child(act) == 0
        assert_still_tracing(tracer)


def test_a_surviving_child_holds_no_bpf_objects() -> None:
    """If it held descriptors, the programs would run as long as the child."""
    with Tracer(), child_of_a_fork() as (child,):
        wait_until(lambda: not held_by(child), lambda: held_by(child))


def test_nothing_is_left_if_the_parent_ends_before_its_child() -> None:
    script = (
        f"tracer = Tracer().start()\n"
        f"child = os.fork()\n"
        f"if child == 0:\n    signal.pause()\n"
        f"{READY}print(child, flush=True)\nos._exit(0)"
    )
    process = start_script(script, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.wait(DEADLINE_S)
        wait_until(lambda: not held_by(child), lambda: held_by(child))
        assert_nothing_is_left()
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_fork_while_another_thread_reads() -> None:
    """The lock that the other thread holds has no owner in the child."""
    seen: list[Event] = []
    with Tracer() as tracer:
        reader = threading.Thread(target=lambda: seen.extend(tracer))
        reader.start()
        wait_until(lambda: waits_in("epoll", None, reader.native_id))
        for _ in range(5):
            assert in_child(tracer.close) == 0
        pid, _ = run("/bin/true")
        tracer.stop()
        join(reader)
    assert len(exits(seen, {pid})) == 1


def test_a_fork_in_the_callback() -> None:
    """A child that returns from the callback gets no more of its parent's events."""
    children: list[int] = []
    handed: list[Event] = []

    def on_event(event: Event) -> None:
        handed.append(event)
        if not children:
            children.append(os.fork())

    with Tracer(on_event=on_event) as tracer:
        pids = {run("/bin/true")[0] for _ in range(20)}
        parent = os.getpid()
        try:
            poll_until(tracer, lambda: len(exits(handed, pids)) == 20)
        except StateError:
            if os.getpid() != parent:
                os._exit(40 + len(handed))
            raise
        finally:
            if os.getpid() != parent:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 41
    assert len(exits(handed, pids)) == 20
