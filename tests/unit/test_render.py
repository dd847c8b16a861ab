# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Text lines against hand-written ones; JSON lines against what a JSON parser makes of them."""

from __future__ import annotations

import json
import os
import shlex
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybootstrap import Event, LostEvent
from pybootstrap._native import lib
from pybootstrap.events import Decoder
from pybootstrap.render import HEADER, TextRenderer, escape
from pybootstrap.render_json import render_json
from tests.records import exec_record, exit_record

NOON_NS = 1_700_000_000_000_000_000
c_strings = st.binary(max_size=60).map(lambda b: b.replace(b"\0", b""))


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def decode(*records: bytes) -> list[Event]:
    return Decoder().decode(b"".join(records))


def line(record: bytes, args: bool = False) -> str:
    return TextRenderer(args=args).render(decode(record))


SLEEP: dict[str, Any] = {
    "record__time_ns": NOON_NS,
    "process__pid": 4242,
    "process__ppid": 17,
    "process__comm": b"sleep",
}


def test_header() -> None:
    assert HEADER == "TIME     EVENT COMM             PID     PPID    FILENAME/EXIT CODE\n"


def test_exec_line() -> None:
    expected = "22:13:20 EXEC  sleep            4242    17      /usr/bin/sleep\n"
    assert line(exec_record(**SLEEP)) == expected


def test_wide_values_are_not_cut() -> None:
    fields = {**SLEEP, "process__pid": 4194303, "process__comm": b"fifteen-bytes-x"}
    expected = "22:13:20 EXEC  fifteen-bytes-x  4194303 17      /usr/bin/sleep\n"
    assert line(exec_record(**fields)) == expected


@pytest.mark.parametrize(
    ("status", "duration_ns", "expected"),
    [
        (0, 126_999_999, "[0] (126ms)"),
        (0, 0, "[0] (0ms)"),
        (3 << 8, 1_000_000, "[3] (1ms)"),
        (9, 12_000_000, "[0] (12ms) SIGKILL"),
        (11 | 0x80, 5_000_000, "[0] (5ms) SIGSEGV (core dumped)"),
        (37, 5_000_000, "[0] (5ms) SIGRTMIN+3"),
    ],
)
def test_exit_line(status: int, duration_ns: int, expected: str) -> None:
    record = exit_record(status=status, duration_ns=duration_ns, **SLEEP)
    assert line(record) == f"22:13:20 EXIT  sleep            4242    17      {expected}\n"


def test_command_lines() -> None:
    head = "22:13:20 EXEC  sleep            4242    17      "
    assert line(exec_record(**SLEEP), args=True) == head + "/usr/bin/sleep 1\n"
    script = exec_record(b"./run", (b"/bin/sh", b"./run", b"a b", b""), **SLEEP)
    assert line(script, args=True) == head + "/bin/sh ./run 'a b' ''\n"
    assert line(exec_record(b"/x y", (), **SLEEP), args=True) == head + "'/x y'\n"
    cut = exec_record(record__flags=lib.ARGS_TRUNCATED, **SLEEP)
    assert line(cut, args=True) == head + "/usr/bin/sleep 1 ...\n"
    ended = line(exit_record(**SLEEP), args=True)
    assert ended == head.replace("EXEC", "EXIT") + "[0] (0ms) /usr/bin/sleep 1\n"
    unseen = line(exit_record(None, None, **SLEEP), args=True)
    assert unseen == head.replace("EXEC", "EXIT") + "[0] (0ms)\n"


USAGE: dict[str, Any] = {
    "usage__utime_ns": 1,
    "usage__stime_ns": 3,
    "usage__runtime_ns": 304_000_000,
    "usage__max_rss_pages": 50_000,
}


def test_long_lines() -> None:
    text = TextRenderer(long=True)
    assert text.header == (
        "TIME     EVENT COMM             PID     PPID    FILENAME/EXIT CODE       "
        "UID           CPU       MEM\n"
    )
    head = "sleep            4242    17      "
    assert text.render(decode(exec_record(process__uid=1000, **SLEEP))) == (
        f"22:13:20 EXEC  {head}/usr/bin/sleep           1000            -         -\n"
    )
    assert text.render(decode(exit_record(process__uid=0, **USAGE, **SLEEP))) == (
        f"22:13:20 EXIT  {head}[0] (0ms)                0           304ms   200000K\n"
    )
    both = TextRenderer(long=True, args=True).render(decode(exit_record(**USAGE, **SLEEP)))
    assert both.endswith("   200000K /usr/bin/sleep 1\n")


def test_escape() -> None:
    assert escape("plain é ☃") == "plain é ☃"
    assert escape("a\nb\x1b[31m\x7f") == "a\\x0ab\\x1b[31m\\x7f"
    assert escape("\u202egpj.exe") == "\\u202egpj.exe"
    assert escape("\U000e0001") == "\\U000e0001"
    assert escape(os.fsdecode(b"\xff")) == "\\xff"


@given(filename=c_strings, args=st.lists(c_strings, max_size=4).map(tuple), comm=c_strings)
def test_one_event_is_one_printable_line(
    filename: bytes, args: tuple[bytes, ...], comm: bytes
) -> None:
    fields = {**SLEEP, "process__comm": comm[:15]}
    for record in (exec_record(filename, args, **fields), exit_record(filename, args, **fields)):
        for with_args in (False, True):
            text = line(record, args=with_args)
            assert text.endswith("\n")
            assert text[:-1].isprintable()
            text.encode("utf-8")  # no surrogate is left


@given(args=st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126)), min_size=1))
def test_a_shell_would_take_the_command_line_apart_again(args: list[str]) -> None:
    record = exec_record(b"/no/such", tuple(a.encode() for a in args), **SLEEP)
    detail = line(record, args=True)[len("22:13:20 EXEC  sleep            4242    17      ") :]
    words = ["/no/such" if args[0] == "such" else args[0], *args[1:]]
    assert shlex.split(detail) == words


@given(filename=c_strings, args=st.lists(c_strings, max_size=4).map(tuple))
def test_json_is_lossless(filename: bytes, args: tuple[bytes, ...]) -> None:
    text = render_json(decode(exec_record(filename, args, **SLEEP)))
    assert text.isascii()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    fields = json.loads(text)
    assert os.fsencode(fields["filename"]) == filename
    assert [os.fsencode(arg) for arg in fields["args"]] == list(args)


def test_json_has_every_field_of_the_event() -> None:
    events = decode(exec_record(**SLEEP), exit_record(None, None, status=9, **SLEEP))
    events.append(LostEvent(time_ns=2, since_ns=1, count=3))
    first, second, third = (json.loads(text) for text in render_json(events).splitlines())
    executed, ended = events[0], events[1]
    assert not isinstance(executed, LostEvent)
    assert not isinstance(ended, LostEvent)
    assert first == {"event": "exec", **executed.asdict(), "args": ["sleep", "1"]}
    assert second == {"event": "exit", **ended.asdict()}
    assert second["signal_name"] == "SIGKILL"
    assert second["filename"] is None
    assert third == {"event": "lost", "time_ns": 2, "since_ns": 1, "count": 3}


def test_losses_are_no_lines_of_the_table() -> None:
    assert TextRenderer().render([LostEvent(2, 1, 3)]) == ""
