# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The protocol between ring and reader (bpf/ring.bpf.h), with a synthetic source of records."""

from __future__ import annotations

import asyncio
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from pybootstrap import Event, ExecEvent, LostEvent, Stats, Tracer
from tests.live.conftest import Trace
from tests.live.source import A, B, Sender, Size
from tests.support import DEADLINE_S, accounted, collect, lost, status_of, wait_until

SLACK_MS = 250  # what an overloaded machine may add to the bound
MISSED_S = 2.0  # a reader that sleeps longer than this has missed its wake-up
QUIET_MS = 40  # before records are sent, so that the reader sleeps and its timer is off by then
SMALL_RING = 64 * 1024

two_cpus = pytest.mark.skipif(A == B, reason="needs two CPUs")


def numbers(events: list[Event], cpu: int) -> list[int]:
    """The numbers of the records from the sender on this CPU, in order of arrival."""
    return [e.pid for e in events if isinstance(e, ExecEvent) and e.ppid == cpu]


def switches() -> int:
    """How many times this thread has gone to sleep."""
    return int(status_of("thread-self")["voluntary_ctxt_switches"])


# ---- No wake-up is lost ----


@two_cpus
@pytest.mark.parametrize(
    ("bound_ms", "delay_ms", "others"),
    [(10, 1, 1), (10, 4, 1), (10, 4, 5), (10, 25, 1), (50, 4, 1), (0, 4, 1), (0, 4, 5)],
)
def test_a_record_delayed_at_the_head_of_the_ring_wakes_the_reader(
    trace: Trace, bound_ms: int, delay_ms: int, others: int
) -> None:
    """A reserves; B reserves and submits behind it; A submits after the delay."""
    with trace(max_latency_ms=bound_ms) as (tracer, source):
        for _ in range(5):
            delayed = Sender(A, hold=others, delay_ms=delay_ms)
            source.send(delayed, Sender(B, others, after=1), wait_ms=QUIET_MS)
            events: list[Event] = []
            while len(events) < others + 1:
                events += tracer.read(timeout=MISSED_S)
            arrival_ns = time.time_ns()
            late_ms = (arrival_ns - source.answer().submitted_ns) / 1e6
            assert late_ms <= bound_ms + SLACK_MS
            assert numbers(events, A) == [1]
            assert numbers(events, B) == list(range(1, others + 1))


@two_cpus
def test_a_record_left_behind_by_a_batch_does_not_wait_for_the_bound_again(trace: Trace) -> None:
    """B's first record wakes the reader; when the reader takes its batch, A has only reserved."""
    bound_ms = 400
    with trace(max_latency_ms=bound_ms) as (tracer, source):
        delayed = Sender(A, after=1, hold=2, delay_ms=bound_ms * 7 / 8 + 20)
        source.send(Sender(B), delayed, Sender(B, after=2), wait_ms=QUIET_MS)
        assert numbers(tracer.read(timeout=DEADLINE_S), B) == [1]
        events = tracer.read(timeout=DEADLINE_S)
        late_ms = (time.time_ns() - source.answer().submitted_ns) / 1e6
        assert late_ms <= SLACK_MS
        assert (numbers(events, A), numbers(events, B)) == ([1], [1])


@pytest.mark.parametrize("bound_ms", [1000, 10_000])
@pytest.mark.parametrize(
    "senders",
    [
        pytest.param([Sender(A, 3000, pace_ms=0.2)], id="small"),
        pytest.param(
            [Sender(cpu, 30, size=Size.LARGE, pace_ms=20) for cpu in (A, B)],
            id="large",
            marks=two_cpus,
        ),
    ],
)
def test_a_ring_that_fills_up_does_not_wait_for_the_bound(
    trace: Trace, bound_ms: int, senders: list[Sender]
) -> None:
    count = sum(sender.number for sender in senders)
    with trace(max_latency_ms=bound_ms, ring_size=SMALL_RING) as (tracer, source):
        source.send(*senders)
        events = collect(tracer, lambda events: accounted(events) == count)
        assert source.answer().lost == 0
        assert tracer.stats == Stats(
            count, received=count, lost=0, untracked=0, truncated=0, missed=0
        )
    for sender in senders:
        assert numbers(events, sender.cpu) == list(range(1, sender.number + 1))


# ---- What a burst costs ----


def test_a_burst_costs_one_batch_and_two_switches(trace: Trace) -> None:
    """The first record wakes the reader, and so does the timer once the others have gathered."""
    with trace(max_latency_ms=150) as (tracer, source):
        for _ in range(5):
            source.send(Sender(A, 50, pace_ms=0.2), wait_ms=QUIET_MS)
            before = switches()
            events = tracer.read(timeout=DEADLINE_S)
            cost = switches() - before
            source.answer()
            assert numbers(events, A) == list(range(1, 51))
            assert cost <= 2


def test_a_quiet_machine_costs_nothing_after_a_burst(trace: Trace) -> None:
    with trace(max_latency_ms=20) as (tracer, source):
        source.send(Sender(A, 50, pace_ms=0.2))
        collect(tracer, lambda events: len(events) == 50)
        before = switches()
        assert tracer.read(timeout=1) == []
        assert switches() - before <= 1  # to fall asleep


def kernel_wakeups() -> int | None:
    """How many interrupts for wake-ups of rings there were; None if they are not counted here."""
    found = re.search(r"^ *IWI:([ \d]+)", Path("/proc/interrupts").read_text(), re.MULTILINE)
    return sum(map(int, found[1].split())) if found else None


def test_a_reader_that_does_not_run_is_not_woken_for_each_record(trace: Trace) -> None:
    """The callback is busy meanwhile, so the ring overflows; every record is accounted for."""
    seen: list[Event] = []
    woken: list[int | None] = []

    def on_event(event: Event) -> None:
        if not seen:
            woken.append(kernel_wakeups())
            source.send(Sender(A, 12_000))
            source.answer()
            woken.append(kernel_wakeups())
            tracer.stop()
        seen.append(event)

    with trace(on_event=on_event, max_latency_ms=0) as (tracer, source):
        source.send(Sender(A))
        source.answer()
        tracer.run()
        stats = tracer.stats
    assert stats.received + stats.lost == stats.produced == 12_001
    assert stats.lost == lost(seen) > 1000
    assert numbers(seen, A) == [1, *range(1, stats.received)]
    before, after = woken
    if before is not None and after is not None:
        assert after - before < 2000  # others on this machine may be woken too


# ---- The bound ----


def read_paced(tracer: Tracer, busy_s: float) -> Iterator[list[Event]]:
    while True:
        yield tracer.read(timeout=DEADLINE_S)
        time.sleep(busy_s)  # the test is of a caller that takes time


def select_paced(tracer: Tracer, busy_s: float) -> Iterator[list[Event]]:
    descriptor = tracer.fileno()
    while True:
        select.select([descriptor], [], [], DEADLINE_S)
        events = tracer.read(timeout=0)
        yield events
        time.sleep(busy_s if events else 0)  # as above


def lateness_of(batches: Iterator[list[Event]], count: int) -> list[float]:
    """How late each of `count` events came, in ms."""
    late: list[float] = []
    while len(late) < count:
        events = next(batches)
        now_ns = time.time_ns()
        late += [(now_ns - e.time_ns) / 1e6 for e in events]
    return late


async def lateness_in_asyncio(tracer: Tracer, count: int) -> list[float]:
    late: list[float] = []
    async for event in tracer:
        late.append((time.time_ns() - event.time_ns) / 1e6)
        if len(late) == count:
            break
    return late


def assert_within(bound_ms: int, late: list[float]) -> None:
    """All come within the bound plus slack, most without slack, so gathering too long fails."""
    assert max(late) <= bound_ms + SLACK_MS
    assert sorted(late)[len(late) * 8 // 10] <= bound_ms


@pytest.mark.parametrize("busy_s", [0, 0.03])
@pytest.mark.parametrize("way", [read_paced, select_paced])
def test_no_event_waits_longer_than_the_bound(
    trace: Trace, way: Callable[[Tracer, float], Iterator[list[Event]]], busy_s: float
) -> None:
    """Also if the program is busy with the previous batch for less than the bound."""
    with trace(max_latency_ms=50) as (tracer, source):
        batches = way(tracer, busy_s)
        source.send(Sender(A, 100, pace_ms=5))
        assert_within(50, lateness_of(batches, 100))
        source.answer()


def test_no_event_waits_longer_than_the_bound_in_asyncio(trace: Trace) -> None:
    with trace(max_latency_ms=50) as (tracer, source):
        source.send(Sender(A, 100, pace_ms=5))
        late = asyncio.run(asyncio.wait_for(lateness_in_asyncio(tracer, 100), DEADLINE_S))
        assert_within(50, late)
        source.answer()


# ---- Losses ----


def assert_losses_in_place(events: list[Event], stats: Stats) -> None:
    assert stats.produced == stats.received + stats.lost
    assert stats.lost == lost(events)
    assert stats.received == len(events) - sum(isinstance(e, LostEvent) for e in events)
    before_ns = 0
    for event in events:
        assert before_ns <= event.time_ns
        if isinstance(event, LostEvent):
            assert event.count > 0
            assert event.since_ns == before_ns
        before_ns = event.time_ns


def gaps(events: list[Event]) -> list[tuple[int, int, int]]:
    """For each LostEvent: the numbers of the records before and after it, and its count."""
    found = []
    for i, event in enumerate(events):
        if isinstance(event, LostEvent):
            before, after = events[i - 1], events[i + 1]
            assert isinstance(before, ExecEvent) and isinstance(after, ExecEvent)
            found.append((before.pid, after.pid, event.count))
    return found


@pytest.mark.parametrize("ring_size", [SMALL_RING, 1024 * 1024])
def test_a_loss_is_reported_between_the_events_before_and_after_it(
    trace: Trace, ring_size: int
) -> None:
    """The large ring holds more than one batch, so the next record carries the loss."""
    with trace(ring_size=ring_size, max_latency_ms=0) as (tracer, source):
        source.send(Sender(A, 6000))
        first = source.answer()
        kept = first.produced - first.lost
        assert 0 < kept < 6000
        events = tracer.read(timeout=DEADLINE_S)
        source.send(Sender(A, 5))
        source.answer()
        events += collect(tracer, lambda more: accounted(events + more) == 6005)
        assert_losses_in_place(events, tracer.stats)
    assert gaps(events) == [(kept, 1, 6000 - kept)]


@two_cpus
def test_a_loss_is_reported_after_a_record_delayed_before_it(trace: Trace) -> None:
    """A reserves; B fills the ring behind it until records are lost; then A submits."""
    with trace(ring_size=SMALL_RING, max_latency_ms=0) as (tracer, source):
        source.send(Sender(A, hold=600, delay_ms=100), Sender(B, 600, after=1))
        wait_until(lambda: tracer.stats.produced == 601, lambda: tracer.stats)
        events = tracer.read(timeout=0)  # nothing, because A's record comes first
        events += collect(tracer, lambda more: accounted(events + more) == 601)
        source.answer()
        source.send(Sender(B))
        source.answer()
        events += tracer.read(timeout=DEADLINE_S)
        assert_losses_in_place(events, tracer.stats)
    assert numbers(events[:1], A) == [1]
    count = lost(events)
    assert gaps(events) == [(600 - count, 1, count)]


def test_a_record_with_an_older_loss_counter_reports_no_loss(trace: Trace) -> None:
    """Its reservation was delayed between reading the counter and getting a place in the ring."""
    with trace(ring_size=SMALL_RING, max_latency_ms=0) as (tracer, source):
        source.send(Sender(A, 600))
        source.answer()
        events = collect(tracer, lambda more: accounted(more) == 600)
        source.send(Sender(A, size=Size.STALE))
        source.answer()
        events += tracer.read(timeout=DEADLINE_S)
        stats = tracer.stats
    losses = [event.count for event in events if isinstance(event, LostEvent)]
    assert losses == [stats.lost]
    assert numbers(events[-1:], A) == [1]
