# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Signals, handlers, threads and tasks that interrupt a Tracer at the worst moment: a reader ends
when it is told to, and no call crashes the interpreter or waits forever.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pty
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any, Callable

import pytest

import pybootstrap
from pybootstrap import Event, ExecEvent, StateError, Tracer
from tests.live.conftest import Feed, Start, Trace
from tests.live.source import A, Sender
from tests.support import (
    DEADLINE_S,
    ONE_HOUR_MS,
    alarms,
    assert_balanced,
    full_pipe,
    handler,
    join,
    once_asleep,
    run,
    status_of,
    wait_until,
    waits_in,
)

PACKAGE = os.path.dirname(pybootstrap.__file__)
ENDINGS = int(os.environ.get("PYBOOTSTRAP_ENDINGS", "40"))  # runs of the command


class AlarmError(Exception):
    """The exception that the handler of SIGALRM raises."""


def raise_alarm(*_: object) -> None:
    raise AlarmError


# By default pytest-timeout uses SIGALRM, too.
uses_alarm = pytest.mark.timeout(method="thread")


@pytest.fixture
def quiet() -> Iterator[Tracer]:
    """A Tracer that gets no events."""
    with Tracer(min_duration_ms=ONE_HOUR_MS) as tracer:
        yield tracer


# ---- Signals ----


@uses_alarm
@pytest.mark.parametrize("timeout", [5.0, None])
def test_no_signal_is_swallowed_around_the_sleep(quiet: Tracer, timeout: float | None) -> None:
    """A timer fires at every moment from before the call to well into its sleep."""
    sleeps, swallowed = 0, 0
    with handler(signal.SIGALRM, raise_alarm):
        for number in range(10_000):
            begin = time.monotonic()
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + number % 120), 2.0)
                quiet.read(timeout)
                swallowed += 1  # it timed out instead
            except AlarmError:
                waited = time.monotonic() - begin
                swallowed += waited > 1
                sleeps += waited > 60e-6
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    assert swallowed == 0
    assert sleeps > 100  # some timers fired during the sleep
    assert quiet.read(0) == []  # it still works


def test_a_signal_that_another_thread_gets_ends_the_read(quiet: Tracer) -> None:
    """The kernel may deliver it to any thread; the handler runs in the main thread."""
    blocked = threading.Event()
    end = threading.Event()

    def other() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        blocked.wait(DEADLINE_S)
        wait_until(lambda: waits_in("epoll", None, main))
        os.kill(os.getpid(), signal.SIGUSR1)
        end.wait(DEADLINE_S)

    main = threading.get_native_id()
    thread = threading.Thread(target=other)
    thread.start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with handler(signal.SIGUSR1, raise_alarm):
            blocked.set()
            begin = time.monotonic()
            with pytest.raises(AlarmError):
                quiet.read(DEADLINE_S)
            assert time.monotonic() - begin < DEADLINE_S / 2
    finally:
        end.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@uses_alarm
def test_the_programs_own_wakeup_fd_is_kept_and_gets_its_signals(quiet: Tracer) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    before = signal.set_wakeup_fd(theirs)
    try:
        with alarms(raise_alarm, 0.05), pytest.raises(AlarmError):
            quiet.read(DEADLINE_S)
        assert os.read(ours, 10) == bytes([signal.SIGALRM])
        assert signal.set_wakeup_fd(before) == theirs
    finally:
        signal.set_wakeup_fd(-1)
        os.close(ours)
        os.close(theirs)


@uses_alarm
def test_no_wakeup_fd_is_left_behind(quiet: Tracer) -> None:
    with handler(signal.SIGALRM, raise_alarm):
        for number in range(2000):
            with contextlib.suppress(AlarmError):
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + number % 60))
                quiet.read(0.001)
            signal.setitimer(signal.ITIMER_REAL, 0)
    quiet.close()
    assert signal.set_wakeup_fd(-1) == -1


# ---- The command ends when it is told to ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_whenever_it_is_told(bootstrap: Start, number: signal.Signals) -> None:
    """At a random moment up to 20 ms after it prints an event, and while records gather."""
    for _ in range(ENDINGS):
        command = bootstrap("--latency", "8")
        command.wait_for_header()
        assert command.process.stdout is not None
        run("/bin/true")
        assert os.read(command.process.stdout.fileno(), 65536)
        time.sleep(random.uniform(0, 0.02))  # any moment
        begin = time.monotonic()
        command.process.send_signal(number)
        status, _, _ = command.end()
        assert status == 0
        assert time.monotonic() - begin < 2


@pytest.mark.parametrize("streams", [("stderr",), ("stdout",), ("stdout", "stderr")])
def test_blocked_streams_do_not_keep_it_alive(
    bootstrap: Start, feed: Feed, streams: tuple[str, ...]
) -> None:
    """It reports losses to a full standard error that nobody reads, but goes on tracing."""
    with full_pipe() as writer:
        to = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        to |= dict.fromkeys(streams, writer)
        command = bootstrap("--json", "--pid", "1", "--ring-size", "64K", **to)
        command.wait_for_tracing()
        with feed(command.pid) as source:
            command.stop()
            assert source.sent(Sender(A, 400)).lost > 0
        command.process.send_signal(signal.SIGCONT)
        # For the reader of standard output, or for more events.
        wait_until(lambda: waits_in("poll" if "stdout" in streams else "epoll", command.pid))
        begin = time.monotonic()
        command.process.send_signal(signal.SIGTERM)
        command.process.wait(DEADLINE_S)
        assert time.monotonic() - begin < 3


# ---- close() at every instruction ----


class At:
    """Calls a function at the n-th bytecode instruction of the package, as a handler would."""

    def __init__(self, number: int, function: Callable[[], object]) -> None:
        self.left = number
        self.function = function

    def trace(self, frame: FrameType, what: str, _: object) -> Any:
        if "pybootstrap" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if what == "opcode":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.function()
                return None
        return self.trace

    def run(self, call: Callable[[], object]) -> bool:
        """Whether the call was long enough to be interrupted."""
        sys.settrace(self.trace)
        try:
            call()
        except StateError:
            pass
        finally:
            sys.settrace(None)
        return self.left <= 0


CALLS: dict[str, Callable[[Tracer], object]] = {
    "stats": lambda tracer: tracer.stats,
    "stop": lambda tracer: tracer.stop(),
    "fileno": lambda tracer: tracer.fileno(),
    "read": lambda tracer: tracer.read(0.001),
    "poll": lambda tracer: tracer.poll(0),
    "close": lambda tracer: tracer.close(),
}


# Long calls skip instructions, because each try starts a Tracer.
STEPS = {"read": 3, "poll": 3, "stats": 13, "close": 13}


@pytest.mark.parametrize("name", CALLS)
def test_close_at_every_instruction(name: str) -> None:
    """Whatever the handler interrupts, the Tracer is closed in the end and nothing crashes."""
    number, interrupted = 0, True
    step = STEPS.get(name, 1)
    while interrupted:
        number += step
        with Tracer(on_event=repr, ring_size=65536, max_processes=16) as tracer:
            interrupted = At(number, tracer.close).run(partial(CALLS[name], tracer))
            if interrupted:
                with pytest.raises(StateError, match="closed"):
                    tracer.read(0)
    assert number > 5


@pytest.mark.parametrize("closing", [Tracer.close, Tracer.stop])
def test_start_interrupted_at_every_instruction(closing: Callable[[Tracer], object]) -> None:
    number, interrupted = 0, True
    while interrupted:
        number += 211  # of some 20,000
        tracer = Tracer(ring_size=65536, max_processes=16)
        interrupted = At(number, partial(closing, tracer)).run(tracer.start)
        tracer.close()
        with pytest.raises(StateError):
            tracer.read(0)
    assert number > 20


def test_calls_of_many_threads_while_it_is_closed() -> None:
    errors: list[BaseException] = []

    def use(call: Callable[[Tracer], object], tracer: Tracer, begin: threading.Barrier) -> None:
        begin.wait()
        try:
            for _ in range(1000):
                call(tracer)
        except StateError:
            pass
        except BaseException as error:  # the test must see any exception
            errors.append(error)

    for _ in range(10):
        with Tracer(ring_size=65536, max_processes=16) as tracer:
            begin = threading.Barrier(6)
            calls = [*(CALLS[name] for name in ("stats", "stop", "fileno", "read")), Tracer.close]
            threads = [threading.Thread(target=use, args=[call, tracer, begin]) for call in calls]
            for thread in threads:
                thread.start()
            begin.wait()
            join(*threads)
    assert errors == []


# ---- Nested reads ----


@uses_alarm
def test_a_handler_cannot_read_while_it_interrupts_a_read(trace: Trace) -> None:
    """And the interrupted read loses no events."""
    refused: list[str] = []
    events: list[Event] = []

    def nested(*_: object) -> None:
        try:
            events.extend(tracer.read(0))  # works if it interrupts something else
        except StateError as error:
            refused.append(str(error))

    def read() -> bool:
        events.extend(tracer.read(0.1))
        # If the handler has read all of them, it interrupts reads that wait in vain.
        return bool(refused) and len(events) == 400

    with trace(max_latency_ms=1) as (tracer, source):
        source.send(Sender(A, 400, pace_ms=1))
        with alarms(nested, 0.0005, 0.0005):
            wait_until(read, lambda: tracer.stats, every_s=0)
        source.answer()
        assert "handler" in refused[0]
        assert_balanced(tracer, events)
    assert [e.pid for e in events if isinstance(e, ExecEvent)] == [*range(1, 401)]


@uses_alarm
@pytest.mark.parametrize("way", ["read", "next"])
def test_a_handler_that_raises_loses_no_events(trace: Trace, way: str) -> None:
    """Wherever it interrupts the package; the caller keeps what was already returned."""

    def interrupt(_: object, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
            raise AlarmError

    events: list[Event] = []
    raised, count = 0, 3000

    def read() -> bool:
        nonlocal raised
        try:
            events.extend(tracer.read(0.1) if way == "read" else [next(tracer)])
        except AlarmError:
            raised += 1
        return len(events) >= count

    gc.collect()  # or the handler may raise in __del__ of the Tracer of an earlier test

    with trace(max_latency_ms=0) as (tracer, source):
        source.send(Sender(A, count, pace_ms=0.4))
        with alarms(interrupt, 0.001, 0.00037):
            wait_until(read, lambda: tracer.stats, every_s=0)
        source.answer()
        tracer.stop()
        events += tracer
        assert_balanced(tracer, events)
    assert raised > 100
    assert [e.pid for e in events if isinstance(e, ExecEvent)] == [*range(1, count + 1)]


# ---- asyncio ----


async def wait_for_all(*tasks: asyncio.Task[Any]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), DEADLINE_S)


async def events_of(tracer: Tracer) -> list[Event]:
    return [event async for event in tracer]


async def waiting(tracer: Tracer) -> asyncio.Task[list[Event]]:
    """Starts a task that iterates over it; returns once the task waits for events or has ended."""
    task = asyncio.create_task(events_of(tracer))
    blocked = partial(getattr, task, "_fut_waiter")
    while not (task.done() or blocked()):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("thread", [False, True])
def test_closing_wakes_the_task_that_waits(thread: bool) -> None:
    async def main() -> list[Any]:
        tracer = Tracer(min_duration_ms=ONE_HOUR_MS).start()
        task = await waiting(tracer)
        if thread:
            await asyncio.get_running_loop().run_in_executor(None, tracer.close)
        else:
            tracer.close()
        return await wait_for_all(task)

    assert asyncio.run(main()) == [[]]


def test_leaving_the_block_wakes_the_task_that_waits() -> None:
    async def main() -> list[Any]:
        async with Tracer(min_duration_ms=ONE_HOUR_MS) as tracer:
            task = await waiting(tracer)
        return await wait_for_all(task)

    assert asyncio.run(main()) == [[]]


def test_a_second_waiting_task_gets_an_error() -> None:
    async def main() -> list[Any]:
        async with Tracer(min_duration_ms=ONE_HOUR_MS) as tracer:
            tasks = [await waiting(tracer) for _ in range(2)]
            tracer.stop()
            return await wait_for_all(*tasks)

    first, second = asyncio.run(main())
    assert first == []
    assert isinstance(second, StateError)
    assert "task" in str(second)


def test_reading_while_a_task_waits_is_an_error() -> None:
    """The reader gets the error, not the waiting task."""

    async def main() -> list[Any]:
        async with Tracer(min_duration_ms=ONE_HOUR_MS) as tracer:
            task = await waiting(tracer)
            with pytest.raises(StateError, match="task"):
                tracer.read(0)
            with pytest.raises(StateError, match="task"):
                await asyncio.get_running_loop().run_in_executor(None, tracer.read, 0)
            tracer.stop()
            return await wait_for_all(task)

    assert asyncio.run(main()) == [[]]


def test_a_cancelled_task_makes_room_for_another() -> None:
    async def main() -> list[Any]:
        async with Tracer(min_duration_ms=ONE_HOUR_MS) as tracer:
            for _ in range(3):
                task = await waiting(tracer)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            last = await waiting(tracer)
            tracer.stop()
            return await wait_for_all(last)

    assert asyncio.run(main()) == [[]]


# ---- Found by a review ----


def test_a_read_by_another_thread_while_it_starts() -> None:
    """It gets StateError until the Tracer has started."""
    tracers: list[Tracer] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            for tracer in tracers[-1:]:
                try:
                    tracer.read(0)
                except StateError:
                    pass
                except BaseException as error:
                    errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(30):
            tracers.append(Tracer(ring_size=65536, max_processes=16))
            tracers[-1].start()
            tracers[-1].close()
    finally:
        done.set()
        thread.join()
    assert errors == []


@uses_alarm
def test_a_handler_closes_one_tracer_while_another_starts() -> None:
    """A thread reads the first Tracer meanwhile; there is no deadlock."""
    for number in range(8):
        first = Tracer(min_duration_ms=ONE_HOUR_MS).start()
        thread = threading.Thread(target=list, args=[first], daemon=True)
        thread.start()
        with (
            alarms(lambda *_, tracer=first: tracer.close(), 0.005 + 0.004 * number),
            Tracer(min_duration_ms=ONE_HOUR_MS),
        ):
            join(thread)


@uses_alarm
def test_a_tracer_starts_while_signals_keep_coming() -> None:
    with alarms(lambda *_: None, 0.002, 0.002):
        for _ in range(5):
            Tracer().start().close()


def test_a_child_of_a_thread_that_forks_has_no_wakeup_fd(quiet: Tracer) -> None:
    """Otherwise its next descriptor would get the bytes."""
    statuses: list[int] = []

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if signal.set_wakeup_fd(-1) == -1 else 1)
        statuses.append(os.waitpid(pid, 0)[1])
        quiet.stop()

    with once_asleep(fork):
        assert quiet.read(DEADLINE_S) == []
    assert statuses == [0]


def test_forked_children_hold_no_descriptors_of_a_tracer_in_use() -> None:
    held: list[int] = []
    done = threading.Event()
    tracers = [Tracer()]

    def use() -> None:
        while not done.is_set():
            with contextlib.suppress(StateError):
                _ = tracers[-1].stats
            tracers[-1].stop()

    def fork() -> None:
        while not done.is_set():
            pid = os.fork()
            if pid == 0:
                names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
                links = [os.readlink(name) for name in names if os.path.islink(name)]
                os._exit(any("bpf" in link for link in links))
            held.append(os.waitpid(pid, 0)[1])

    threads = [threading.Thread(target=target) for target in (use, use, fork)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 4  # enough for forks at many moments of a start
    while time.monotonic() < end:
        tracers.append(Tracer(ring_size=65536, max_processes=16))
        with contextlib.suppress(StateError):
            tracers[-1].start()
        tracers[-1].close()
    done.set()
    join(*threads)
    assert held
    assert not any(held)


def test_threading_imported_outside_of_the_main_thread() -> None:
    """Python before 3.13 then mistakes that thread for the main thread."""
    code = (
        "import _thread\n"
        "def use():\n"
        "    from pybootstrap import Tracer\n"
        "    with Tracer(min_duration_ms=3_600_000) as tracer:\n"
        "        print(tracer.read(0.05), flush=True)\n"
        "    done.release()\n"
        "done = _thread.allocate_lock()\n"
        "done.acquire()\n"
        "_thread.start_new_thread(use, ())\n"
        "done.acquire()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    return bool(int(status_of(pid)["SigCgt"], 16) >> (number - 1) & 1)


def test_a_terminal_that_takes_a_little_and_then_nothing(bootstrap: Start, feed: Feed) -> None:
    """write(2) blocks although poll(2) said writable; PEP 475 would resume it after a signal."""
    master, slave = pty.openpty()
    try:
        command = bootstrap("--json", "--pid", "1", stdout=slave)
        command.wait_for_tracing()
        with feed(command.pid) as source:
            source.sent(Sender(A, 1000))
        wait_until(lambda: waits_in("write", command.pid) or waits_in("poll", command.pid))
        command.process.send_signal(signal.SIGTERM)
        wait_until(lambda: catches(command.pid, signal.SIGALRM))  # it has got the signal and waits
        os.read(master, 1000)
        begin = time.monotonic()
        command.process.wait(DEADLINE_S)
        assert time.monotonic() - begin < 4
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("option", ["-V", "-h", "--check", "-n1"])
def test_closed_standard_output_is_reported_in_one_sentence(option: str) -> None:
    ended = subprocess.run(
        ["/bin/sh", "-c", f'"$0" -m pybootstrap {option} >&-', sys.executable],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 74
    assert ended.stderr == "bootstrap: cannot write the output: standard output is closed\n"
