# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Events as JSON, an object a line. Not in render.py, because importing json takes 2 ms.

Every value survives every parser. Two kinds of values would not, so each gets a second member
beside it, which does, where it is needed:

- text that is no UTF-8: bytes that are none come as U+FFFD, and NAME_base64 has all of them;
- numbers from 2**53 on, which many parsers round: NAME_exact has the digits as a string.

Times of the day are strings of RFC 3339, with nanoseconds.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from time import gmtime

from pybootstrap.engine._native import lib
from pybootstrap.engine.render import Renderer, cached, of
from pybootstrap.events import (
    PAGE_SIZE,
    USAGE,
    ExecEvent,
    ExitEvent,
    LostEvent,
    Usage,
    known,
    layout,
    signal_name,
    split_cpu_time,
)

__all__ = ["JsonRenderer", "render_json"]

_PROCESS: tuple[str, ...] = (
    "header.flags",
    "header.time_ns",
    "process.start_boottime_ns",
    "process.cgroup_id",
)
_PROCESS += tuple(f"process.{name}" for name in ("pid", "ppid", "uid", "gid", "sid", "ns_pid"))
_PROCESS += ("process.comm",)
_exec_object = layout("exec_record", *_PROCESS).unpack_from
_exit_object = layout("exit_record", *_PROCESS, "duration_ns", *USAGE, "status").unpack_from

_IDENTITY = (
    '"time":"%s%09dZ","pid":%d,"ppid":%d,"uid":%d,"gid":%d,"sid":%d,"ns_pid":%d,"cgroup_id":%d,'
    '"start_boottime_ns":%s,%s,%s,"args_truncated":%s'
)
_EXEC = '{"event":"exec",' + _IDENTITY + "}\n"
_EXIT = (
    '{"event":"exit",'
    + _IDENTITY
    + ',%s,"duration_ns":%d,"duration_since":"%s","usage":{'
    + ",".join(f'"{name}":%d' for name in Usage._fields)
    + '},"usage_partial":%s}\n'
)
_LOST = '{"event":"lost","time":%s,"since":%s,"count":%d}\n'

_MAY_LACK = {"cgroup_id", "read_bytes", "write_bytes"}
_SAFE_BITS = 53  # of a number that is a double in so many parsers
_large_number = re.compile(r'"(\w+)":([0-9]{16,})')  # never in text: there quotes are escaped


def _start(ns: int) -> int | str:
    """`start_boottime_ns`, which is a large number on all machines that run for 105 days."""
    return f'{ns},"start_boottime_ns_exact":"{ns}"' if ns >> _SAFE_BITS else ns


def _with_exact_numbers(line: str) -> str:
    """The line, with NAME_exact after each other number that a double may not hold.

    And with null for one that is not known, which is the largest that there is.
    """

    def add(number: re.Match[str]) -> str:
        name, digits = number.groups()
        if name == "start_boottime_ns":  # has it already
            return number[0]
        if name in _MAY_LACK and known(int(digits)) is None:
            return f'"{name}":null'
        return f'{number[0]},"{name}_exact":"{digits}"' if int(digits) >> _SAFE_BITS else number[0]

    return _large_number.sub(add, line)


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    """A time of the day up to the point before its fraction."""
    return "%04d-%02d-%02dT%02d:%02d:%02d." % gmtime(seconds)[:6]  # noqa: UP031


def _time(time_ns: int) -> tuple[str, int]:
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    return _second(seconds), fraction


def _stamp(time_ns: int) -> str:
    return '"%s%09dZ"' % _time(time_ns) if time_ns else "null"  # noqa: UP031


def _base64(text: bytes) -> str:
    return f'"{b2a_base64(text, newline=False).decode()}"'


def _readable(text: bytes) -> str:
    return quoted(text.decode("utf-8", "replace"))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@cached
def _comm_json(comm: bytes) -> str:
    name = comm.partition(b"\0")[0]
    exact = "" if _is_utf8(name) else f',"comm_base64":{_base64(name)}'
    return f'"comm":{_readable(name)}{exact}'


@cached
def _text_json(tail: bytes) -> str:
    if not tail:
        return '"filename":null,"args":null'
    filename, *args = tail.removesuffix(b"\0").split(b"\0")
    members = [f'"filename":{_readable(filename)}']
    if not _is_utf8(filename):
        members.append(f'"filename_base64":{_base64(filename)}')
    members.append(f'"args":[{",".join(map(_readable, args))}]')
    if not all(map(_is_utf8, args)):
        members.append(f'"args_base64":[{",".join(map(_base64, args))}]')
    return ",".join(members)


@cached
def _ending_json(status: int) -> str:
    number = status & 0x7F
    signal = (
        f'{number},"signal_name":"{signal_name(number)}"' if number else 'null,"signal_name":null'
    )
    core = "true" if status & 0x80 else "false"
    return f'"exit_code":{status >> 8 & 0xFF},"signal":{signal},"core_dumped":{core}'


_ARGS_CUT = lib.ARGS_TRUNCATED | lib.TEXT_MISSING


def _exec_json(record: bytes) -> str:
    flags, time_ns, start_ns, cgroup, pid, ppid, uid, gid, sid, ns_pid, comm = _exec_object(record)
    line = _EXEC % (
        *_time(time_ns),
        *(pid, ppid, uid, gid, sid, ns_pid, cgroup, _start(start_ns), _comm_json(comm)),
        of(_text_json, record[ExecEvent.HEAD_SIZE :]),
        "true" if flags & _ARGS_CUT else "false",
    )
    return _with_exact_numbers(line) if cgroup >> _SAFE_BITS else line


def _exit_json(record: bytes) -> str:
    fields = _exit_object(record)
    flags, time_ns, start_ns, cgroup, pid, ppid, uid, gid, sid, ns_pid, comm = fields[:11]
    duration_ns, utime, stime, runtime, rss_pages, *others, status = fields[11:]
    line = _EXIT % (
        *_time(time_ns),
        *(pid, ppid, uid, gid, sid, ns_pid, cgroup, _start(start_ns), _comm_json(comm)),
        of(_text_json, record[ExitEvent.HEAD_SIZE :]),
        "true" if flags & _ARGS_CUT else "false",
        _ending_json(status),
        duration_ns,
        "exec" if flags & lib.DURATION_SINCE_EXEC else "start",
        *(used := (*split_cpu_time(utime, stime, runtime), rss_pages * PAGE_SIZE, *others)),
        "true" if flags & lib.USAGE_PARTIAL else "false",
    )
    large = max(cgroup, duration_ns, *used) >> _SAFE_BITS
    return _with_exact_numbers(line) if large else line


class JsonRenderer(Renderer):
    """A JSON object and a line feed for each event, with all fields that the event has, in ASCII.

    See the top of this file for what has a second member. Text without one is exact as it is.
    """

    kinds = {lib.RECORD_EXEC: _exec_json, lib.RECORD_EXIT: _exit_json}  # noqa: RUF012

    def lost(self, event: LostEvent) -> str:
        """An object of its own."""
        line = _LOST % (_stamp(event.time_ns), _stamp(event.since_ns), event.count)
        return _with_exact_numbers(line)


render_json = JsonRenderer().render
