# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Compares text lines with hand-written ones, and JSON lines with what a JSON parser reads."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybootstrap import Event, ExecEvent, ExitEvent, LostEvent, SettingError, Tracer
from pybootstrap.engine.names import OtelNames
from pybootstrap.engine.render import Renderer, clock, escape
from pybootstrap.engine.render_json import JsonRenderer
from pybootstrap.engine.report import Report
from pybootstrap.events import ARGS_TRUNCATED
from pybootstrap.render import HEADER, TextRenderer
from tests.support import exact_bytes, exec_record, exit_record, new_decoder

render_json = JsonRenderer(Tracer.events()).render

NOON_NS = 1_700_000_000_000_000_000
c_strings = st.binary(max_size=60).map(lambda b: b.replace(b"\0", b""))


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def decode(*records: bytes) -> list[Event]:
    return new_decoder().decode(b"".join(records))


def line(record: bytes, args: bool = False) -> str:
    return TextRenderer(args=args).render(decode(record))


SLEEP: dict[str, Any] = {
    "header__time_ns": NOON_NS,
    "process__pid": 4242,
    "process__ppid": 17,
    "process__comm": b"sleep",
}


def as_json(event: ExecEvent | ExitEvent) -> dict[str, Any]:
    """All fields of an event, with the time in JSON's form."""
    fields = event.asdict()
    second, ns = divmod(fields.pop("time_ns"), 10**9)
    return {"time": time.strftime(f"%Y-%m-%dT%H:%M:%S.{ns:09d}Z", time.gmtime(second)), **fields}


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
    cut = exec_record(header__flags=ARGS_TRUNCATED, **SLEEP)
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
def test_a_shell_splits_the_command_line_into_the_same_words(args: list[str]) -> None:
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
    assert exact_bytes(fields, "filename") == filename
    assert exact_bytes(fields, "args") == list(args)


def test_json_has_every_field_of_the_event() -> None:
    events = decode(exec_record(**SLEEP), exit_record(None, None, status=9, **SLEEP))
    events.append(LostEvent(time_ns=2, since_ns=1, count=3))
    first, second, third = (json.loads(text) for text in render_json(events).splitlines())
    executed, ended = events[0], events[1]
    assert not isinstance(executed, LostEvent)
    assert not isinstance(ended, LostEvent)
    assert first == {"event": "exec", **as_json(executed), "args": ["sleep", "1"]}
    assert second == {"event": "exit", **as_json(ended)}
    assert second["signal_name"] == "SIGKILL"
    assert second["filename"] is None
    times = {"time": "1970-01-01T00:00:00.000000002Z", "since": "1970-01-01T00:00:00.000000001Z"}
    assert third == {"event": "lost", **times, "count": 3}


def test_json_of_a_loss_before_any_event() -> None:
    lost = json.loads(render_json([LostEvent(time_ns=0, since_ns=0, count=3)]))
    assert lost == {"event": "lost", "time": None, "since": None, "count": 3}


HARD: dict[str, Any] = {
    "header__time_ns": NOON_NS + 7,
    "process__comm": b"caf\xc3",
    "process__start_boottime_ns": 2**53 + 1,
    "process__cgroup_id": 2**53 - 1,
}
HARD_ARGS = (
    b"",
    b"plain",
    b"\xff\xfe",
    "\u20ac \U0001f600".encode(),
    b"\xed\xa0\x80",
    b'"x":' + b"9" * 20,
)


REPORT = Report(
    name="bootstrap",
    version="1.0",
    run_id="77b27e62-6595-49e1-b760-c45eef0c0a8a",
    host=os.fsdecode(b"h\xf6st"),
    boot_id=None,
    time_ns=NOON_NS,
    settings={"comm": [os.fsdecode(b"\xff"), "plain"], "count": 2**63, "json": True, "pid": []},
    counters={"produced": 2**64 - 1, "lost": 0},
    reason=None,
)


def hard_lines() -> str:
    exited = {"duration_ns": 2**64 - 2, "usage__read_bytes": 2**63 + 1}
    events = render_json(
        decode(
            exec_record(b"/tmp/\xe9", HARD_ARGS, **HARD),
            exit_record(b"/tmp/\xe9", HARD_ARGS, **HARD, **exited),
        )
    )
    return events + JsonRenderer([]).start(REPORT)


def test_json_of_reports() -> None:
    renderer = JsonRenderer([])
    end = REPORT._replace(reason="signal")
    lines = [renderer.start(REPORT), renderer.status(REPORT), renderer.end(end)]
    assert all(text.isascii() and text.index("\n") == len(text) - 1 for text in lines)
    common = {
        "time": "2023-11-14T22:13:20.000000000Z",
        "name": "bootstrap",
        "version": "1.0",
        "run_id": REPORT.run_id,
        "host": "h\ufffdst",
        "host_base64": "aPZzdA==",
        "boot_id": None,
        "settings": {
            "comm": ["\ufffd", "plain"],
            "comm_base64": ["/w==", "cGxhaW4="],
            "count": 2**63,
            "count_exact": str(2**63),
            "json": True,
            "pid": [],
        },
        "counters": {"produced": 2**64 - 1, "produced_exact": str(2**64 - 1), "lost": 0},
    }
    assert [json.loads(text) for text in lines] == [
        {"event": "trace_start", **common},
        {"event": "trace_status", **common},
        {"event": "trace_end", **common, "reason": "signal"},
    ]


@pytest.mark.parametrize("name", ["lost", "trace_start", "trace_status", "trace_end"])
def test_json_refuses_event_classes_with_names_of_other_objects(name: str) -> None:
    class Taken(ExecEvent):
        __slots__ = ()
        NAME = name

    with pytest.raises(SettingError, match=f"Taken cannot be called '{name}'"):
        JsonRenderer([Taken])


def test_text_has_no_reports() -> None:
    text = TextRenderer()
    assert not text.reports
    assert text.start(REPORT) + text.status(REPORT) + text.end(REPORT) == ""
    assert JsonRenderer([]).reports


def test_json_of_values_that_parsers_cannot_hold() -> None:
    executed, ended, _ = map(json.loads, hard_lines().splitlines())
    for fields in (executed, ended):
        assert fields["time"] == "2023-11-14T22:13:20.000000007Z"
        assert (fields["comm"], exact_bytes(fields, "comm")) == ("caf\ufffd", b"caf\xc3")
        assert fields["filename"] == "/tmp/\ufffd"
        assert exact_bytes(fields, "filename") == b"/tmp/\xe9"
        assert fields["args"][3] == "\u20ac \U0001f600"
        assert exact_bytes(fields, "args") == list(HARD_ARGS)
        assert fields["start_boottime_ns_exact"] == str(2**53 + 1)
        assert "cgroup_id_exact" not in fields
    assert ended["duration_ns_exact"] == str(2**64 - 2)
    assert ended["usage"]["read_bytes_exact"] == str(2**63 + 1)


NODE = """
const lines = require('fs').readFileSync(0, 'utf8').trimEnd().split('\\n');
lines.forEach(line => console.log(JSON.stringify(JSON.parse(line))));
"""
READERS = {
    "jq": ["jq", "-c", "."],
    "node": ["node", "-e", NODE],
    "perl": ["perl", "-MJSON::PP", "-ne", "print encode_json(decode_json($_)), qq(\\n)"],
}


def without_large_numbers(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without the numbers that have a NAME_exact."""
    kept = {k: v for k, v in fields.items() if f"{k}_exact" not in fields}
    return {k: without_large_numbers(v) if isinstance(v, dict) else v for k, v in kept.items()}


@pytest.mark.parametrize("reader", READERS)
def test_json_survives_other_parsers(reader: str) -> None:
    lines = hard_lines()
    again = subprocess.run(
        READERS[reader], input=lines, capture_output=True, check=True, encoding="utf-8"
    ).stdout
    written, read = ([json.loads(line) for line in text.splitlines()] for text in (lines, again))
    assert list(map(without_large_numbers, read)) == list(map(without_large_numbers, written))


# ---- With OpenTelemetry's names ----

render_otel = JsonRenderer(Tracer.events(), OtelNames("bootstrap")).render
OTEL = {
    "pid": "process.pid",
    "ppid": "process.parent_pid",
    "uid": "process.real_user.id",
    "sid": "process.session_leader.pid",
    "ns_pid": "process.vpid",
    "filename": "process.command",
    "args": "process.command_args",
    "exit_code": "process.exit.code",
}


def otel_names(fields: dict[str, Any]) -> dict[str, Any]:
    """The members of an object of `--json`, called as in OpenTelemetry."""
    renamed = {"event_name": f"bootstrap.{fields.pop('event')}", "time": fields.pop("time")}
    for part, value in fields.pop("usage", {}).items():
        renamed[f"bootstrap.usage.{part}"] = value
    for name, value in fields.items():
        base = name.removesuffix("_base64").removesuffix("_exact")
        renamed[OTEL.get(base, f"bootstrap.{base}") + name[len(base) :]] = value
    return renamed


def test_otel_names_replace_the_others_and_change_no_value() -> None:
    exited = {"status": 9, "duration_ns": 2**64 - 2, "usage__read_bytes": 2**63 + 1}
    events = decode(
        exec_record(**SLEEP),
        exec_record(b"/tmp/\xe9", HARD_ARGS, **HARD),
        exit_record(b"/tmp/\xe9", HARD_ARGS, **HARD, **exited),
        exit_record(None, None, usage__read_bytes=2**64 - 1, **SLEEP),
    )
    events.append(LostEvent(time_ns=2, since_ns=1, count=2**60))
    plain, otel = render_json(events).splitlines(), render_otel(events).splitlines()
    assert [json.loads(text) for text in otel] == [otel_names(json.loads(text)) for text in plain]
    assert json.loads(otel[3])["bootstrap.usage.read_bytes"] is None


def test_names_of_tools_may_hold_what_formats_use() -> None:
    text = JsonRenderer(Tracer.events(), OtelNames('100%s"')).render(decode(exec_record(**SLEEP)))
    fields = json.loads(text)
    assert fields["event_name"] == '100%s".exec'
    assert fields['100%s".gid'] == 0


def test_losses_are_not_lines_of_the_table() -> None:
    assert TextRenderer().render([LostEvent(2, 1, 3)]) == ""


# ---- Renderers of other tools ----


class Tick:
    KIND = 3

    def __init__(self, record: bytes) -> None:
        self.record = record


def test_a_renderer_of_functions_for_events() -> None:
    renderer = Renderer({Tick: lambda tick: tick.record.decode()}, header="TICK")
    assert renderer.header == "TICK\n"
    assert renderer.kinds[Tick.KIND](b"one") == "one\n"
    assert renderer.render([Tick(b"one"), LostEvent(2, 1, 3), Tick(b"two")]) == "one\ntwo\n"
    assert Renderer({}).header == ""


@given(st.integers(0, 2**62))
def test_the_clock_agrees_with_datetime(time_ns: int) -> None:
    assert clock(time_ns) == f"{datetime.fromtimestamp(time_ns // 10**9):%H:%M:%S}"  # noqa: DTZ006
