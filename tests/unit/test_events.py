# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Decoding: events have the values of their records, and inconsistent records are refused."""

from __future__ import annotations

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybootstrap import Event, ExecEvent, ExitEvent, LostEvent, RecordError, Usage
from pybootstrap.events import ARGS_TRUNCATED, TYPES, signal_name_of
from tests.support import exec_record, exit_record, new_decoder

HEAD = TYPES.struct("exec_record")

c_strings = st.binary(max_size=300).map(lambda b: b.replace(b"\0", b""))
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


def decode(*records: bytes) -> list[Event]:
    return new_decoder().decode(b"".join(records))


def decode_exec(record: bytes) -> ExecEvent:
    (event,) = decode(record)
    assert isinstance(event, ExecEvent)
    return event


def decode_exit(record: bytes) -> ExitEvent:
    (event,) = decode(record)
    assert isinstance(event, ExitEvent)
    return event


def put(record: bytearray, path: str, value: int) -> None:
    offset, kind = HEAD.member(path)
    record[offset : offset + kind.size] = kind.encode(value)


def test_every_field_of_an_exec() -> None:
    event = decode_exec(
        exec_record(
            header__time_ns=1_700_000_000_123_456_789,
            process__pid=4242,
            process__ppid=1,
            process__uid=1000,
            process__gid=100,
            process__sid=77,
            process__ns_pid=5,
            process__cgroup_id=2**40,
            process__start_boottime_ns=123,
            process__comm=b"sleep",
        )
    )
    assert event.asdict() == {
        "time_ns": 1_700_000_000_123_456_789,
        "pid": 4242,
        "ppid": 1,
        "uid": 1000,
        "gid": 100,
        "sid": 77,
        "ns_pid": 5,
        "cgroup_id": 2**40,
        "start_boottime_ns": 123,
        "comm": "sleep",
        "filename": "/usr/bin/sleep",
        "args": ("sleep", "1"),
        "args_truncated": False,
    }


@given(filename=c_strings, args=st.lists(c_strings, max_size=8).map(tuple))
def test_text_is_preserved_byte_for_byte(filename: bytes, args: tuple[bytes, ...]) -> None:
    for event in decode(exec_record(filename, args), exit_record(filename, args)):
        assert isinstance(event, (ExecEvent, ExitEvent))
        assert event.filename is not None
        assert event.args is not None
        assert os.fsencode(event.filename) == filename
        assert tuple(os.fsencode(arg) for arg in event.args) == args


@given(pid=u32, ppid=u32, uid=u32, time_ns=u64, duration_ns=u64)
def test_numbers_are_kept(pid: int, ppid: int, uid: int, time_ns: int, duration_ns: int) -> None:
    event = decode_exit(
        exit_record(
            process__pid=pid,
            process__ppid=ppid,
            process__uid=uid,
            header__time_ns=time_ns,
            duration_ns=duration_ns,
        )
    )
    assert (event.pid, event.ppid, event.uid) == (pid, ppid, uid)
    assert (event.time_ns, event.duration_ns) == (time_ns, duration_ns)


@given(status=st.integers(0, 0xFFFF))
def test_status_agrees_with_the_wait_macros(status: int) -> None:
    if not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
        return
    event = decode_exit(exit_record(status=status))
    assert event.exit_code == os.WEXITSTATUS(status)
    assert event.signal == (os.WTERMSIG(status) if os.WIFSIGNALED(status) else None)
    assert event.core_dumped == os.WCOREDUMP(status)


def test_an_exit_without_exec_has_no_text() -> None:
    event = decode_exit(exit_record(None, None))
    assert event.filename is None
    assert event.args is None
    assert event.duration_since == "start"


def test_an_argument_that_was_cut_is_kept() -> None:
    record = exec_record(b"/x", (b"x", b"long"), header__flags=ARGS_TRUNCATED)
    size = len(record) - 2
    cut = bytearray(record[:size])
    put(cut, "header.size", size)
    put(cut, "text.args_size", len(b"x\0long\0") - 2)
    event = decode_exec(bytes(cut))
    assert event.args == ("x", "lon")
    assert event.args_truncated


@pytest.mark.parametrize(
    ("utime", "stime", "runtime", "user", "system"),
    [
        (0, 0, 5, 5, 0),  # no tick happened: all time counts as user time
        (4_000_000, 0, 5, 5, 0),
        (0, 4_000_000, 5, 0, 5),
        (4_000_000, 12_000_000, 20_000_001, 15_000_001 - 10_000_000, 15_000_000),
    ],
)
def test_cpu_time_is_split_as_getrusage_does(
    utime: int, stime: int, runtime: int, user: int, system: int
) -> None:
    usage = decode_exit(
        exit_record(usage__utime_ns=utime, usage__stime_ns=stime, usage__runtime_ns=runtime)
    ).usage
    assert (usage.user_ns, usage.system_ns) == (user, system)


def test_usage() -> None:
    event = decode_exit(
        exit_record(
            header__flags=TYPES.constant("USAGE_PARTIAL"),
            usage__max_rss_pages=3,
            usage__minor_faults=4,
            usage__major_faults=5,
            usage__read_bytes=6,
            usage__write_bytes=7,
            usage__voluntary_switches=8,
            usage__involuntary_switches=9,
        )
    )
    assert event.usage == Usage(0, 0, 3 * os.sysconf("SC_PAGE_SIZE"), 4, 5, 6, 7, 8, 9)
    assert event.usage_partial
    assert event.asdict()["usage"]["voluntary_switches"] == 8


def test_signal_names() -> None:
    assert signal_name_of(9) == "SIGKILL"
    assert signal_name_of(34) == "SIGRTMIN"
    assert signal_name_of(37) == "SIGRTMIN+3"
    assert signal_name_of(32) == "SIGRTMIN-2"


def test_events_are_values() -> None:
    event = decode_exec(exec_record(process__pid=1))
    same = decode_exec(exec_record(process__pid=1))
    other = decode_exec(exec_record(process__pid=2))
    assert event == same
    assert hash(event) == hash(same)
    assert event not in (other, "event")
    assert pickle.loads(pickle.dumps(event)) == event
    assert repr(event).startswith("ExecEvent(time_ns=0, pid=1, ")
    with pytest.raises(AttributeError):
        event.pid = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        event.other = 3  # type: ignore[attr-defined]


def test_a_gap_is_reported_in_its_place() -> None:
    events = decode(
        exec_record(header__time_ns=10),
        exec_record(header__time_ns=20, header__lost=3),
        exec_record(header__time_ns=30, header__lost=3),
        exec_record(header__time_ns=40, header__lost=4),
    )
    gaps = [(i, e) for i, e in enumerate(events) if isinstance(e, LostEvent)]
    assert gaps == [
        (1, LostEvent(time_ns=20, since_ns=10, count=3)),
        (4, LostEvent(time_ns=40, since_ns=30, count=1)),
    ]


def test_a_gap_that_no_record_follows() -> None:
    decoder = new_decoder()
    decoder.decode(exec_record(header__time_ns=10, header__lost=3))
    assert decoder.lost == 3
    assert decoder.loss(5) == LostEvent(time_ns=10, since_ns=10, count=2)
    assert decoder.lost == 5


@given(st.binary(max_size=400))
def test_arbitrary_bytes_decode_or_are_refused(batch: bytes) -> None:
    try:
        events = decode(batch)
    except RecordError:
        return
    assert (len(batch) == 0) == (events == [])


@given(cut=st.integers(1, 199))
def test_a_truncated_record_is_refused(cut: int) -> None:
    record = exit_record()
    with pytest.raises(RecordError):
        decode(exec_record(), record[: len(record) - cut])


@given(field=st.sampled_from(["header.size", "text.filename_size", "text.args_size"]), value=u32)
def test_a_record_with_a_wrong_length_is_refused(field: str, value: int) -> None:
    record = bytearray(exec_record())
    if HEAD.decode(bytes(record))[field.partition(".")[0]][field.partition(".")[2]] == value:
        return
    put(record, field, value)
    with pytest.raises(RecordError):
        decode(bytes(record), exec_record())
