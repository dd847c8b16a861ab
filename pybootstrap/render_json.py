# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Events as JSON, an object a line. Not in render.py, because importing json takes 2 ms."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii as quoted

from pybootstrap._native import lib
from pybootstrap.events import (
    PAGE_SIZE,
    USAGE,
    ExecEvent,
    ExitEvent,
    LostEvent,
    Usage,
    decode_comm,
    decode_text,
    layout,
    signal_name,
    split_cpu_time,
)
from pybootstrap.render import Renderer, cached, of

__all__ = ["JsonRenderer", "render_json"]

_PROCESS: tuple[str, ...] = (
    "record.flags",
    "record.time_ns",
    "process.start_boottime_ns",
    "process.cgroup_id",
)
_PROCESS += tuple(f"process.{name}" for name in ("pid", "ppid", "uid", "gid", "sid", "ns_pid"))
_PROCESS += ("process.comm",)
_exec_object = layout("exec_record", *_PROCESS).unpack_from
_exit_object = layout("exit_record", *_PROCESS, "duration_ns", *USAGE, "status").unpack_from

_IDENTITY = (
    '"time_ns":%d,"pid":%d,"ppid":%d,"uid":%d,"gid":%d,"sid":%d,"ns_pid":%d,"cgroup_id":%d,'
    '"start_boottime_ns":%d,"comm":%s,%s,"args_truncated":%s'
)
_EXEC = '{"event":"exec",' + _IDENTITY + "}\n"
_EXIT = (
    '{"event":"exit",'
    + _IDENTITY
    + ',%s,"duration_ns":%d,"duration_since":"%s","usage":{'
    + ",".join(f'"{name}":%d' for name in Usage._fields)
    + '},"usage_partial":%s}\n'
)
_LOST = '{"event":"lost","time_ns":%d,"since_ns":%d,"count":%d}\n'


@cached
def _comm_json(comm: bytes) -> str:
    return quoted(decode_comm(comm))


@cached
def _text_json(tail: bytes) -> str:
    if not tail:
        return '"filename":null,"args":null'
    filename, *args = map(quoted, decode_text(tail))
    return f'"filename":{filename},"args":[{",".join(args)}]'


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
    return _EXEC % (
        *(time_ns, pid, ppid, uid, gid, sid, ns_pid, cgroup, start_ns, _comm_json(comm)),
        of(_text_json, record[ExecEvent.HEAD_SIZE :]),
        "true" if flags & _ARGS_CUT else "false",
    )


def _exit_json(record: bytes) -> str:
    fields = _exit_object(record)
    flags, time_ns, start_ns, cgroup, pid, ppid, uid, gid, sid, ns_pid, comm = fields[:11]
    duration_ns, utime, stime, runtime, rss_pages, *others, status = fields[11:]
    return _EXIT % (
        *(time_ns, pid, ppid, uid, gid, sid, ns_pid, cgroup, start_ns, _comm_json(comm)),
        of(_text_json, record[ExitEvent.HEAD_SIZE :]),
        "true" if flags & _ARGS_CUT else "false",
        _ending_json(status),
        duration_ns,
        "exec" if flags & lib.DURATION_SINCE_EXEC else "start",
        *split_cpu_time(utime, stime, runtime),
        rss_pages * PAGE_SIZE,
        *others,
        "true" if flags & lib.USAGE_PARTIAL else "false",
    )


class JsonRenderer(Renderer):
    r"""A JSON object and a line feed for each event, with all fields that the event has.

    The output is ASCII. Bytes that are no UTF-8 come as lone surrogates (`\udc80` to `\udcff`), as
    Python's own `os.fsdecode` has them: `os.fsencode(json.loads(line)["filename"])` is exact.
    """

    kinds = {lib.RECORD_EXEC: _exec_json, lib.RECORD_EXIT: _exit_json}  # noqa: RUF012

    def lost(self, event: LostEvent) -> str:
        """An object of its own."""
        return _LOST % event


render_json = JsonRenderer().render
