# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""A model of the wake-up protocol (bpf/ring.bpf.h), and a search of all its interleavings.

The actors are programs that send records, each on a CPU of its own; the reader (shim.c and libbpf's
loop); and what delivers stores, wake-ups and timers, as late as it likes. A step is one access to
shared memory, or several if nothing that comes between them could change the outcome. `explore()`
visits every state that some order of steps reaches, nearest first, so it shows a shortest trace.

What must hold in every state:

  P1  No wake-up is lost. If the reader sleeps without a timer, and no wake-up is on its way or
      decided on, the record at its position is not submitted, or is about to be compared.
  P2  No record waits twice. If a record was submitted when a gathering period or a drain began, it
      has been taken before another gathering period begins.
  P3  A ring that fills up is not left to the timer. If it holds that much while the reader gathers,
      and no program is between two steps of a record, a wake-up is on its way.
  P4  A burst costs one wake-up. While the reader gathers, only the record at its position wakes it,
      and alarms do (the forced wake-ups of a ring that fills up). A position of the reader gets at
      most `Rules.alarms` of them: one if one CPU sends.
  P5  The reader takes each record once, in order and complete. When all is idle, and after a stop,
      produced == received + lost.

What the model simplifies, by the number of the assumption in ring.bpf.h:

  1. Stores become visible in the order in which they were made, at any later time but not after a
     full barrier (TSO). Loads are not reordered. Counters are sequentially consistent.
     bpf_ringbuf_reserve() reads the reader's position inside its lock (an older value could only
     lose more records), and AVAIL_DATA reads both positions at once (apart, they could only raise
     an alarm early).
  2. Records have one size, and all sizes are given in records. No record is discarded (libbpf does
     not count those), and the callback fails only when the buffer is full.
  3. The reader calls shim_read() again at once.
  4. epoll_wait() empties its ready list in one step and looks at the ring in the next, so a wake-up
     can come between the two. Signals are left out: they end a wait and change nothing else.
  5. Time has no length: a timer fires at any time after it was set. A program may stop sending.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Callable, NamedTuple

import pytest


class Rules(NamedTuple):
    sends: tuple[int, ...]  # at most this many records from each program
    room: int = 9  # records that fit into the ring
    filling: int = 0  # unread records at which the ring counts as filling up; 0: never
    buffer: int = 9  # records that fit into the reader's buffer
    alarms: int = 0  # the maximum for one position of the reader; 0: not checked
    gathers: bool = True  # False: the latency bound is 0
    times_out: bool = False  # read() has a timeout
    stops: bool = False  # stop() may be called

    # Each of these, if False, breaks the protocol.
    fence: bool = True  # a full barrier ends each of libbpf's rounds
    second_look: bool = True  # another round follows one that found something
    store_release: bool = True  # the copy is complete when the new position becomes visible
    looks_behind: bool = True  # the reader does not gather after it left a record behind
    compares: bool = True  # the reader compares filled_at
    notes_position: bool = True  # filled_at is a position, not a flag that is set once
    looks_at_note: bool = True  # no second alarm for a position that is noted
    wakes_for_head: bool = True  # without an alarm, only the record at the reader's position wakes
    grace: bool = True  # detaching waits until no program runs
    # The protocol before this one: a record wakes the reader if no other did so within the bound.
    # The reader drains when woken, and looks again after a bound if it took something.
    by_position: bool = True


class Slot(NamedTuple):
    position: int  # of its record; positions count up and never wrap
    submitted: bool = False
    waited: bool = False  # see P2


FREE = Slot(-1)


class Program(NamedTuple):
    left: int  # records to send
    step: str = "count"
    at: int = 0  # its record's position
    hidden: bool = False  # the stores of its reserve, and of the lock's release, are not visible
    seen: int = 0  # the reader's position plus 1, as last read
    force: bool = False


class Reader(NamedTuple):
    step: str = "epoll_wait"
    by_ring: bool = False  # epoll_wait() found the ring ready
    at_once: bool = False  # it returned for a reason to drain now
    position: int = 0  # also the number of records received
    end: int = 0  # the ring's end, as this round of libbpf read it
    found: bool = False  # this round took a record
    used: int = 0  # records in the buffer
    lost: int = 0
    filled_at: int = 0
    gathering: bool = False
    behind: bool = False
    more: bool = False


class State(NamedTuple):
    programs: tuple[Program, ...]
    reader: Reader
    slots: tuple[Slot, ...]
    reserved: int = 0  # the ring's producer position
    consumed: int = 0  # the reader's position, as others see it
    filled_at: int = 0
    produced: int = 0
    lost: int = 0
    irq_work: bool = False  # a wake-up is queued
    ready: bool = False  # the ring is in epoll's ready list
    timer: str = "off"  # or "set", or "fired"
    stopping: bool = False
    detached: bool = False
    recent: int = 0  # by time: 2: a wake-up was decided on, 1: and then the timer set; 0: long ago
    alarms: tuple[int, ...] = ()  # for each position plus 1
    fault: str = ""


# ---- A program's steps: each returns the next state, or None if it cannot be taken now ----


def changed(s: State, i: int, p: Program, **fields: Any) -> State:
    return s._replace(programs=(*s.programs[:i], p, *s.programs[i + 1 :]), **fields)


def with_slot(s: State, position: int, slot: Slot) -> State:
    i = position % len(s.slots)
    return s._replace(slots=(*s.slots[:i], slot, *s.slots[i + 1 :]))


def count(s: State, i: int, rules: Rules) -> State | None:
    p = s.programs[i]
    if not p.left or s.detached:
        return None
    p = p._replace(step="reserve", left=p.left - 1)
    return changed(s, i, p, produced=s.produced + 1)


def reserve(s: State, i: int, rules: Rules) -> State | None:
    p = s.programs[i]
    if any(other.hidden for other in s.programs):
        return None  # the lock is held
    if s.reserved - s.consumed >= len(s.slots):
        return changed(s, i, p._replace(step="count the loss"))
    # What is hidden matters only to loads before the next store; there are none otherwise.
    if rules.filling:
        return changed(s, i, p._replace(step="read the fill level", at=s.reserved, hidden=True))
    step = "mark" if rules.by_position else "look at the time"
    return become_visible(changed(s, i, p._replace(step=step, at=s.reserved)), i)


def become_visible(s: State, i: int) -> State:
    p = s.programs[i]
    s = with_slot(s, p.at, Slot(p.at))
    return changed(s, i, p._replace(hidden=False), reserved=p.at + 1)


def count_loss(s: State, i: int, rules: Rules) -> State:
    return changed(s, i, s.programs[i]._replace(step="count"), lost=s.lost + 1)


def read_level(s: State, i: int, rules: Rules) -> State:
    p = s.programs[i]
    filling = s.reserved + p.hidden - s.consumed >= rules.filling
    return changed(s, i, p._replace(step="read position" if filling else "mark"))


def read_position(s: State, i: int, rules: Rules) -> State:
    seen = s.consumed + 1 if rules.notes_position else 1
    return changed(s, i, s.programs[i]._replace(step="compare with the note", seen=seen))


def compare_note(s: State, i: int, rules: Rules) -> State:
    p = s.programs[i]
    if p.seen == s.filled_at and rules.looks_at_note:
        return changed(s, i, p._replace(step="mark", seen=0))
    return changed(s, i, p._replace(step="note", force=True))


def note(s: State, i: int, rules: Rules) -> State | None:
    p = s.programs[i]
    if p.hidden:
        return None
    alarms, fault = s.alarms, ""
    if rules.alarms:
        n = alarms[p.seen] + 1
        alarms = (*alarms[: p.seen], n, *alarms[p.seen + 1 :])
        fault = f"P4: alarm number {n} for position {p.seen - 1}" if n > rules.alarms else ""
    p, seen = p._replace(step="mark", seen=0), p.seen
    return changed(s, i, p, filled_at=seen, alarms=alarms, fault=fault)


def look_at_time(s: State, i: int, rules: Rules) -> State:
    force = s.recent == 0
    p = s.programs[i]._replace(step="mark", force=force)
    return changed(s, i, p, recent=2 if force else s.recent)


def mark(s: State, i: int, rules: Rules) -> State | None:
    p = s.programs[i]
    if p.hidden:
        return None
    s = with_slot(s, p.at, s.slots[p.at % len(s.slots)]._replace(submitted=True))
    return changed(s, i, p._replace(step="compare and wake"))


def wake(s: State, i: int, rules: Rules) -> State:
    p = s.programs[i]
    done = p._replace(step="count", at=0, force=False)
    is_head = rules.by_position and s.consumed == p.at
    if not (p.force or is_head or not rules.wakes_for_head):
        return changed(s, i, done)
    fault = ""
    if s.reader.gathering and not p.force and p.at != s.reader.position:
        fault = f"P4: record {p.at} wakes a reader that gathers at {s.reader.position}"
    return changed(s, i, done, irq_work=True, fault=fault)


PROGRAM: dict[str, Callable[[State, int, Rules], State | None]] = {
    "count": count,
    "reserve": reserve,
    "count the loss": count_loss,
    "read the fill level": read_level,
    "read position": read_position,
    "compare with the note": compare_note,
    "note": note,
    "look at the time": look_at_time,
    "mark": mark,
    "compare and wake": wake,
}


# ---- The reader's steps, named as in shim.c and libbpf where those have a name ----


def after_wait(s: State, by_ring: bool, at_once: bool) -> State:
    reader = s.reader._replace(step="decide", by_ring=by_ring, at_once=at_once)
    return s._replace(reader=reader, ready=False, timer="off" if s.timer == "fired" else s.timer)


def epoll_wait(s: State, rules: Rules) -> State | None:
    at_once = s.reader.more or s.timer == "fired" or s.stopping
    return after_wait(s, s.ready, at_once) if at_once or s.ready else None


def decide(s: State, rules: Rules) -> State:
    r = s.reader
    by_ring = r.by_ring and s.reserved > r.position  # epoll drops the entry if the ring is empty
    due = r.gathering or r.behind or not rules.gathers
    due = due or (rules.compares and r.filled_at != s.filled_at)
    if r.at_once or (by_ring and due):
        return s._replace(reader=r._replace(step="drain", by_ring=False, at_once=False))
    r = r._replace(step="epoll_wait", by_ring=False)
    if not by_ring:
        return s._replace(reader=r)
    twice = [slot.position for slot in s.slots if slot.waited]
    return all_waited(s)._replace(
        reader=r._replace(gathering=True),
        timer="set",
        fault=f"P2: record {twice[0]} waits again" if twice else "",
    )


def all_waited(s: State) -> State:
    return s._replace(slots=tuple(slot._replace(waited=slot.submitted) for slot in s.slots))


def drain(s: State, rules: Rules) -> State:
    r = s.reader._replace(step="read the ring's end", gathering=False, filled_at=s.filled_at)
    return all_waited(s)._replace(reader=r, timer="off" if s.reader.gathering else s.timer)


def read_end(s: State, rules: Rules) -> State:
    r = s.reader
    if r.position == s.reserved:
        return s._replace(reader=r._replace(step="fence"))
    return s._replace(reader=r._replace(step="look at the head", end=s.reserved))


def look_at_head(s: State, rules: Rules) -> State:
    slot = s.slots[s.reader.position % len(s.slots)]
    if slot.position == s.reader.position and not slot.submitted:
        return s._replace(reader=s.reader._replace(step="fence", end=0))
    return s._replace(reader=s.reader._replace(step="copy and store position"))


def copy(s: State, rules: Rules) -> State:
    r = s.reader
    slot = s.slots[r.position % len(s.slots)]
    fault = ""
    if slot.position != r.position or not slot.submitted:
        fault = f"P5: the reader copies {slot} instead of record {r.position}"
    s = with_slot(s, r.position, FREE)
    # One step, because the store is only visible when it is delivered: see deliveries().
    r = r._replace(position=r.position + 1, found=True, used=r.used + 1)
    if r.used == rules.buffer:
        r = r._replace(step="fence", end=0)
    elif r.position < r.end:
        r = r._replace(step="look at the head")
    else:
        r = r._replace(step="read the ring's end", end=0)
    return s._replace(reader=r, fault=fault)


def fence(s: State, rules: Rules) -> State:
    r = s.reader
    s = s._replace(consumed=r.position if rules.fence else s.consumed)
    if r.used == rules.buffer:
        r = r._replace(step="epoll_wait", found=False, used=0, more=True)
        return s._replace(reader=r, timer="set")
    step = "read the ring's end" if r.found and rules.second_look else "read lost"
    return s._replace(reader=r._replace(step=step, found=False))


def read_lost(s: State, rules: Rules) -> State:
    return s._replace(reader=s.reader._replace(step="read produced", lost=s.lost))


def read_produced(s: State, rules: Rules) -> State:
    r = s.reader
    behind = rules.looks_behind and s.produced - r.lost > r.position
    step = "epoll_wait"
    if s.stopping:
        step = "detach"
    if s.detached:
        step = "drain" if r.used else "end"
    if r.used and not rules.by_position:
        s = s._replace(timer="set", recent=min(s.recent, 1))
    return s._replace(reader=r._replace(step=step, used=0, lost=0, behind=behind, more=False))


def detach(s: State, rules: Rules) -> State | None:
    if rules.grace and any(p.step != "count" for p in s.programs):
        return None
    return s._replace(reader=s.reader._replace(step="drain"), detached=True)


def end(s: State, rules: Rules) -> None:
    return None


READER: dict[str, Callable[[State, Rules], State | None]] = {
    "epoll_wait": epoll_wait,
    "decide": decide,
    "drain": drain,
    "read the ring's end": read_end,
    "look at the head": look_at_head,
    "copy and store position": copy,
    "fence": fence,
    "read lost": read_lost,
    "read produced": read_produced,
    "detach": detach,
    "end": end,
}


# ---- What can happen next ----


def deliveries(s: State, rules: Rules) -> Iterator[tuple[str, State]]:
    overtakes = s.reader.step == "copy and store position" and not rules.store_release
    if s.consumed < s.reader.position + overtakes:
        yield "reader's CPU: position becomes visible", s._replace(consumed=s.consumed + 1)
    if s.irq_work:
        yield "kernel: wake-up arrives", s._replace(irq_work=False, ready=True)
    if s.timer == "set":
        yield "kernel: timer fires", s._replace(timer="fired", recent=2 if s.recent == 2 else 0)
    if s.recent:
        yield "time: bound passes", s._replace(recent=0)
    if rules.stops and not s.stopping:
        yield "user: stop()", s._replace(stopping=True)
    if rules.times_out and s.reader.step == "epoll_wait" and not s.reader.more:
        yield "reader: read() times out", after_wait(s, s.ready, at_once=True)


def successors(s: State, rules: Rules) -> Iterator[tuple[str, State]]:
    for i, p in enumerate(s.programs):
        if p.hidden:
            yield f"{'ABC'[i]}: record becomes visible", become_visible(s, i)
        after = PROGRAM[p.step](s, i, rules)
        if after:
            yield f"{'ABC'[i]}: {p.step}", after
    after = READER[s.reader.step](s, rules)
    if after:
        yield f"reader: {s.reader.step}", after
    yield from deliveries(s, rules)


# ---- What must hold ----


def fault_of(s: State, rules: Rules) -> str:
    r = s.reader
    if s.fault:
        return s.fault
    if r.step == "end":
        return loss_of(s)
    woken = s.irq_work or s.ready or s.timer == "fired" or s.stopping or r.more
    if r.step != "epoll_wait" or woken or any(p.force for p in s.programs):
        return ""
    idle = all(p.step == "count" for p in s.programs)
    if s.timer == "set":
        full = rules.filling and s.reserved - s.consumed >= rules.filling
        return "P3: the ring fills up, and the reader waits for its timer" if idle and full else ""
    if s.slots[r.position % len(s.slots)].submitted and not any(
        p.step == "compare and wake" and p.at == r.position for p in s.programs
    ):
        return f"P1: the reader sleeps, and record {r.position} is submitted"
    return loss_of(s) if idle else ""


def loss_of(s: State) -> str:
    if s.produced == s.reader.position + s.lost:
        return ""
    return f"P5: {s.produced} produced, {s.reader.position} received, {s.lost} lost"


class Fault(NamedTuple):
    what: str
    steps: list[str]  # that led to it

    def __str__(self) -> str:
        lines = [self.what]
        for actor, steps in groupby(self.steps, lambda step: step.partition(": ")[0]):
            lines.append(f"{actor}: " + ", ".join(step.partition(": ")[2] for step in steps))
        return "\n  ".join(lines)


def explore(rules: Rules) -> tuple[Fault | None, set[str]]:
    """Returns the nearest fault, if there is one, and all steps that were taken."""
    records = sum(rules.sends)
    start = State(
        programs=tuple(Program(left) for left in rules.sends),
        reader=Reader(),
        slots=(FREE,) * min(rules.room, records),
        alarms=(0,) * (records + 2) if rules.alarms else (),
    )
    came_from = {start: (start, "")}
    queue = deque([start])
    taken: set[str] = set()
    while queue:
        state = queue.popleft()
        for step, after in successors(state, rules):
            taken.add(step)
            if after in came_from:
                continue
            came_from[after] = (state, step)
            what = fault_of(after, rules)
            if what:
                return Fault(what, way_to(after, came_from)), taken
            queue.append(after)
    return None, taken


def way_to(state: State, came_from: dict[State, tuple[State, str]]) -> list[str]:
    steps: list[str] = []
    while True:
        state, step = came_from[state]
        if not step:
            return steps[::-1]
        steps.append(step)


# ---- Tests ----


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(Rules((2, 2)), id="two CPUs"),
        pytest.param(Rules((1, 1, 1)), id="three CPUs"),
        pytest.param(Rules((3,), filling=2, alarms=1), id="one CPU fills the ring"),
        pytest.param(Rules((2, 1), filling=2, alarms=2), id="two CPUs fill the ring"),
        pytest.param(Rules((2, 1), room=1), id="the ring overflows"),
        pytest.param(Rules((2, 1), buffer=1), id="the buffer is full"),
        pytest.param(Rules((2, 1), gathers=False), id="no latency"),
        pytest.param(Rules((2, 1), times_out=True), id="timeouts"),
        pytest.param(Rules((2, 1), stops=True), id="stop"),
    ],
)
def test_protocol_holds(rules: Rules) -> None:
    fault, _ = explore(rules)
    assert fault is None, f"{fault}"


def test_protocol_holds_with_everything_at_once_and_every_step_is_taken() -> None:
    rules = Rules((1, 1), room=1, filling=1, alarms=2, times_out=True, stops=True)
    fault, taken = explore(rules)
    assert fault is None, f"{fault}"
    steps = {f"A: {step}" for step in PROGRAM} | {f"reader: {step}" for step in READER}
    assert steps - taken == {"A: look at the time", "reader: end"}


@pytest.mark.parametrize(
    ("broken", "rules"),
    [
        ("P1", Rules((1, 1), fence=False)),
        ("P1", Rules((1, 1), second_look=False)),
        ("P2", Rules((2, 1), looks_behind=False)),
        ("P3", Rules((4,), filling=2, notes_position=False)),
        ("P4", Rules((3,), filling=2, alarms=1, looks_at_note=False)),
        ("P4", Rules((2,), wakes_for_head=False)),
        ("P5", Rules((1, 1), room=1, store_release=False)),
        ("P5", Rules((1,), stops=True, grace=False)),
    ],
)
def test_each_part_of_the_protocol_is_needed(broken: str, rules: Rules) -> None:
    fault, _ = explore(rules)
    assert fault is not None, f"no fault with {rules}"
    assert fault.what.startswith(broken), f"{fault}"


def test_alarm_that_is_merged_with_the_first_wake_up_needs_the_comparison() -> None:
    fault, _ = explore(Rules((2,), filling=2, compares=False))
    assert fault is not None
    assert fault.what.startswith("P3"), f"{fault}"
    assert fault.steps.count("A: compare and wake") == 2, f"{fault}"
    assert fault.steps.count("kernel: wake-up arrives") == 1, f"{fault}"


def test_decision_by_time_loses_the_wake_up_of_a_delayed_record() -> None:
    fault, _ = explore(Rules((1, 1), gathers=False, by_position=False))
    assert fault is not None
    assert fault.what == "P1: the reader sleeps, and record 0 is submitted", f"{fault}"
    story = [
        "A: reserve",
        "B: reserve",
        "B: compare and wake",
        "kernel: wake-up arrives",
        "reader: look at the head",
        "A: compare and wake",
        "reader: read produced",
    ]
    assert [step for step in fault.steps if step in story] == story, f"{fault}"
