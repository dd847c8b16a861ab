# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The Tracer's behaviour: ways to read, stopping, closing, errors, counters, leaks."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import threading
import time

import pytest

from pybootstrap import (
    Event,
    PrivilegeError,
    SettingError,
    StateError,
    Stats,
    Tracer,
)
from tests.support import (
    DEADLINE_S,
    ONE_HOUR_MS,
    alarms,
    collect,
    exits,
    handler,
    join,
    memory_kib,
    of_pids,
    once_asleep,
    open_descriptors,
    poll_until,
    run,
    until_exit,
    wait_until,
    waits_in,
)


def test_the_callback_gets_every_event() -> None:
    seen: list[Event] = []
    with Tracer(on_event=seen.append) as tracer:
        pid, _ = run("/bin/true")
        handed = poll_until(tracer, lambda: exits(seen, {pid}))
    assert handed == len(seen)
    assert len(of_pids(seen, {pid})) == 2


def test_an_exception_in_the_callback_propagates_and_loses_nothing() -> None:
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        if len(seen) == 2:
            raise ZeroDivisionError

    with Tracer(on_event=on_event) as tracer:
        pids = {run("/bin/true")[0] for _ in range(5)}
        with pytest.raises(ZeroDivisionError):
            tracer.run()
        assert len(seen) == 2
        poll_until(tracer, lambda: len(exits(seen, pids)) == 5)
    assert len(of_pids(seen, pids)) == 10


def test_run_ends_when_the_callback_stops_it() -> None:
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        tracer.stop()

    tracer = Tracer(on_event=on_event)
    with tracer:
        run("/bin/true")
        tracer.run()
        assert seen
        before = len(seen)
        run("/bin/true")
        tracer.run()
    assert len(seen) == before


def test_iteration_ends_after_stop_with_all_that_came_before() -> None:
    with Tracer() as tracer:
        pids = {run("/bin/true")[0] for _ in range(20)}
        tracer.stop()
        run("/bin/true")
        events = list(tracer)
        assert len(of_pids(events, pids)) == 40
        assert tracer.read(timeout=0) == []
        assert list(tracer) == []
        assert tracer.stats.produced == tracer.stats.received == len(events)


def test_leaving_a_loop_loses_nothing() -> None:
    with Tracer() as tracer:
        pids = {run("/bin/true")[0] for _ in range(5)}
        events: list[Event] = []
        for event in tracer:
            events.append(event)
            break
        tracer.stop()
        events += tracer
    assert len(of_pids(events, pids)) == 10


def test_another_threads_stop_ends_a_blocked_read() -> None:
    with Tracer(min_duration_ms=ONE_HOUR_MS) as tracer, once_asleep(tracer.stop):
        assert tracer.read() == []


def test_another_threads_close_ends_a_blocked_read() -> None:
    with Tracer(min_duration_ms=ONE_HOUR_MS) as tracer:
        with once_asleep(tracer.close):
            assert tracer.read() == []
        with pytest.raises(StateError):
            tracer.read()


@pytest.mark.parametrize("method", ["stop", "close"])
def test_a_signal_handler_ends_a_blocked_read(method: str) -> None:
    with (
        Tracer(min_duration_ms=ONE_HOUR_MS) as tracer,
        handler(signal.SIGUSR1, lambda *_: getattr(tracer, method)()),
        once_asleep(lambda: os.kill(os.getpid(), signal.SIGUSR1)),
    ):
        assert tracer.read() == []


def test_other_signals_do_not_end_a_read() -> None:
    came: list[int] = []
    with (
        Tracer(min_duration_ms=ONE_HOUR_MS) as tracer,
        alarms(lambda number, _: came.append(number), 0.05, 0.05),
    ):
        start = time.monotonic()
        assert tracer.read(timeout=0.5) == []
        assert time.monotonic() - start >= 0.5
    assert came


def test_an_exception_in_a_signal_handler_comes_out_of_read() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with (
        Tracer(min_duration_ms=ONE_HOUR_MS) as tracer,
        handler(signal.SIGUSR1, interrupt),
        once_asleep(lambda: os.kill(os.getpid(), signal.SIGUSR1)),
        pytest.raises(KeyboardInterrupt),
    ):
        tracer.read()


def test_two_threads_cannot_read_at_once() -> None:
    with Tracer(min_duration_ms=ONE_HOUR_MS) as tracer:
        reader = threading.Thread(target=tracer.read)
        reader.start()
        wait_until(lambda: waits_in("epoll", None, reader.native_id))
        with pytest.raises(StateError, match="another thread"):
            tracer.read(timeout=0)
        tracer.stop()
        join(reader)


def test_async_iteration() -> None:
    events: list[Event] = []

    async def trace() -> int:
        async with Tracer() as tracer:
            pid, _ = run("/bin/true")
            async for event in tracer:
                events.append(event)
                if exits(events, {pid}):
                    tracer.stop()
        return pid

    pid = asyncio.run(asyncio.wait_for(trace(), DEADLINE_S))
    assert len(of_pids(events, {pid})) == 2


def test_the_descriptor_keeps_the_latency_bound() -> None:
    """Waiting on fileno() alone shows every event, even those that did not wake the reader."""
    with Tracer() as tracer:
        poller = select.poll()
        poller.register(tracer.fileno(), select.POLLIN)
        pids = {run("/bin/true")[0] for _ in range(50)}
        events: list[Event] = []
        while len(exits(events, pids)) < 50:
            assert poller.poll(DEADLINE_S * 1000), "events in the ring, but nothing was said"
            events += tracer.read(timeout=0)
    assert len(of_pids(events, pids)) == 100


@pytest.mark.parametrize("latency", [0, 1, 200])
def test_no_event_is_left_behind_for_any_latency_bound(latency: float) -> None:
    with Tracer(max_latency_ms=latency) as tracer:
        for count in (1, 2, 30):
            pids = {run("/bin/true")[0] for _ in range(count)}
            events = collect(tracer, until_exit(*pids))
            assert len(exits(events, pids)) == count


def test_read_waits_no_longer_than_its_timeout() -> None:
    with Tracer(min_duration_ms=ONE_HOUR_MS) as tracer:
        for timeout in (0, 0.01, 0.3):
            start = time.monotonic()
            assert tracer.read(timeout=timeout) == []
            assert time.monotonic() - start >= timeout
        for bad in (-1, float("nan")):
            with pytest.raises(SettingError):
                tracer.read(timeout=bad)


def test_close_can_be_called_again() -> None:
    tracer = Tracer().start()
    run("/bin/true")
    tracer.close()
    tracer.close()
    assert tracer.stats.produced >= 2
    with pytest.raises(StateError, match="closed"):
        tracer.read()
    with pytest.raises(StateError, match="closed"):
        tracer.fileno()
    with pytest.raises(StateError, match="once"):
        tracer.start()


def test_a_tracer_that_was_not_started_says_so() -> None:
    tracer = Tracer()
    for use in (tracer.read, tracer.fileno, lambda: next(tracer), lambda: tracer.stats):
        with pytest.raises(StateError, match="not started"):
            use()
    with pytest.raises(StateError, match="on_event"):
        tracer.run()
    tracer.close()


def test_stop_before_start_ends_reading_at_once() -> None:
    tracer = Tracer()
    tracer.stop()
    with tracer:
        list(tracer)
        produced = tracer.stats.produced
        run("/bin/true")
        assert list(tracer) == []
        assert tracer.stats.produced == produced


def test_a_forgotten_tracer_warns_and_is_closed() -> None:
    descriptors = open_descriptors()
    tracers = [Tracer().start()]
    with pytest.warns(ResourceWarning, match="not closed"):
        tracers.clear()  # which frees it
    assert open_descriptors() == descriptors


def test_two_tracers_at_once() -> None:
    with Tracer() as one, Tracer(args=False) as two:
        pid, _ = run("/bin/true", "x")
        first = of_pids(collect(one, until_exit(pid)), {pid})
        second = of_pids(collect(two, until_exit(pid)), {pid})
    assert first[0].args == ("/bin/true", "x")
    assert second[0].args == ()
    assert len(first) == len(second) == 2


def test_a_forked_child_cannot_use_the_tracer() -> None:
    with Tracer() as tracer:
        pid = os.fork()
        if pid == 0:
            try:
                tracer.read(timeout=0)
            except StateError:
                os._exit(0)
            os._exit(1)
        assert os.wait4(pid, 0)[1] == 0
        assert collect(tracer, until_exit(pid))


def test_a_hundred_opens_and_closes_leak_nothing() -> None:
    def cycle() -> None:
        with Tracer() as tracer:
            run("/bin/true")
            tracer.read(timeout=0)

    for _ in range(20):  # caches and the allocator settle
        cycle()
    gc.collect()
    descriptors, memory = open_descriptors(), memory_kib()
    for _ in range(100):
        cycle()
    gc.collect()
    assert open_descriptors() == descriptors
    assert memory_kib() - memory < 1024  # a leaked ring or log would be several times that


@pytest.mark.parametrize(
    "settings",
    [
        {"min_duration_ms": -1},
        {"min_duration_ms": float("nan")},
        {"min_duration_ms": float("inf")},
        {"min_duration_ms": 2**63},
        {"min_duration_ms": "10"},
        {"min_duration_ms": True},
        {"max_latency_ms": -0.1},
        {"ring_size": 3 * 65536},
        {"ring_size": 1024},
        {"ring_size": 2**40},
        {"ring_size": 4096.0},
        {"max_processes": 0},
        {"on_event": 7},
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SettingError) as error:
        Tracer(**settings)  # type: ignore[arg-type]
    assert next(iter(settings)) in str(error.value)


def test_without_privilege() -> None:
    """It raises PermissionError and names the missing capabilities."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(65534)
            Tracer().start()
        except PermissionError as error:
            os._exit(0 if isinstance(error, PrivilegeError) and "CAP_BPF" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.wait4(pid, 0)[1] == 0


def test_more_processes_than_can_be_remembered() -> None:
    with Tracer(max_processes=10) as tracer:
        pids = [os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ) for _ in range(40)]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
            os.wait4(pid, 0)
        ended = exits(collect(tracer, until_exit(*pids)), set(pids))
        stats = tracer.stats
    assert len(ended) == 40
    since = [e.duration_since for e in ended]
    # A hash map of 10 may hold one more per CPU, and exits of other processes make room in it.
    assert stats.untracked >= since.count("start") >= 20


def test_stats_before_any_event() -> None:
    with Tracer(min_duration_ms=ONE_HOUR_MS) as tracer:
        assert tracer.stats == Stats(0, 0, 0, 0, 0, 0)
