# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Events: typed, read-only views of the records that the BPF programs send.

An event holds the bytes of its record and reads a field when it is asked for, so building one costs
next to nothing. The offsets come from `bpf/bootstrap.h` through cffi; no layout is written here.
Text is decoded like file names (`os.fsdecode`): `os.fsencode` gives back every byte.
"""

from __future__ import annotations

import struct
import sys
from functools import cache
from os import fsdecode, sysconf
from signal import Signals

from pybootstrap._typing import TYPE_CHECKING, NamedTuple
from pybootstrap.engine._native import ffi, lib
from pybootstrap.engine.decoder import Decoder, Kind, LostEvent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Callable, ClassVar

__all__ = [
    "Event", "ExecEvent", "ExitEvent", "LostEvent", "ProcessEvent", "Usage", "make_decoder",
]  # fmt: skip


@cache
def _members(ctype: Any) -> dict[str, Any]:
    return dict(ctype.fields)


def member(struct_name: str, path: str) -> tuple[int, Any]:
    """Byte offset and cffi type of the member `path` (such as "process.pid") of a C struct."""
    offset, ctype = 0, ffi.typeof(f"struct {struct_name}")
    for name in path.split("."):
        field = _members(ctype)[name]
        offset, ctype = offset + field.offset, field.type
    return offset, ctype


def layout(struct_name: str, *paths: str) -> struct.Struct:
    """A precompiled `struct.Struct` for these members, given in the order of the record."""
    form, position = "=", 0
    for path in paths:
        offset, ctype = member(struct_name, path)
        size = ffi.sizeof(ctype)
        code = f"{size}s" if ctype.kind == "array" else {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
        form += f"{offset - position}x{code}"
        position = offset + size
    return struct.Struct(form)


_NOT_KNOWN = lib.NOT_KNOWN % 2**64


def known(value: int) -> int | None:
    """None for what this kernel does not keep."""
    return None if value == _NOT_KNOWN else value


def _number(path: str, struct_name: str = "exec_record") -> Callable[[bytes], int]:
    """A function that reads one number of a record."""
    unpack = layout(struct_name, path).unpack_from

    def read(record: bytes) -> int:
        value: int = unpack(record)[0]
        return value

    return read


PAGE_SIZE = sysconf("SC_PAGE_SIZE")  # bytes

# The members that both kinds of record have are at the same place in both.
_head = layout(
    "exec_record",
    "header.size",
    "header.kind",
    "header.time_ns",
    "header.lost",
    "text.filename_size",
    "text.args_size",
).unpack_from
_time_ns = _number("header.time_ns")
_flags = _number("header.flags")
_start_boottime_ns = _number("process.start_boottime_ns")
_cgroup_id = _number("process.cgroup_id")
_pid = _number("process.pid")
_ppid = _number("process.ppid")
_uid = _number("process.uid")
_gid = _number("process.gid")
_sid = _number("process.sid")
_ns_pid = _number("process.ns_pid")
_comm = layout("exec_record", "process.comm").unpack_from
_filename_size = _number("text.filename_size")
_duration_ns = _number("duration_ns", "exit_record")
_status = _number("status", "exit_record")
USAGE = [f"usage.{name}" for name, _ in ffi.typeof("struct usage").fields]
_usage = layout("exit_record", *USAGE).unpack_from


def decode_comm(name: bytes) -> str:
    """A NUL-padded command name."""
    return fsdecode(name.partition(b"\0")[0])


def decode_text(tail: bytes) -> list[str]:
    """File name and arguments as they end a record; empty when they are not known."""
    text = fsdecode(tail).split("\0")
    if not text[-1]:  # what was cut has no final NUL
        text.pop()
    return text


class ProcessEvent:
    """What the events of a process have in common: who it is.

    Two events with the same `pid` and `start_boottime_ns` are of the same process; a pid alone can
    be used again. Events are equal when all their fields are. All ids are those of the root
    namespaces, except `ns_pid`. `record` holds the bytes of the record (struct exec_record or
    struct exit_record of bpf/bootstrap.h, with `time_ns` as wall clock); see `layout`.
    """

    __slots__ = ("record",)
    KIND: ClassVar[int]  # enum record_kind
    HEAD_SIZE: ClassVar[int]  # bytes of the record before the text
    MIN_FILENAME: ClassVar[int] = 0  # the least filename_size
    _FIELDS: ClassVar[tuple[str, ...]]

    def __init__(self, record: bytes) -> None:
        """Wraps the bytes of one record, which `Decoder` has checked."""
        self.record = record

    @property
    def time_ns(self) -> int:
        """When it happened: wall clock, ns since the epoch.

        The kernel's CLOCK_BOOTTIME at the event (`bpf_ktime_get_boot_ns`), turned into wall clock
        with the difference of the two clocks when the record was read.
        """
        return _time_ns(self.record)

    @property
    def pid(self) -> int:
        """Process id, that is thread-group id: `task_struct.tgid`."""
        return _pid(self.record)

    @property
    def ppid(self) -> int:
        """Process id of the parent at the event, also under a debugger: `real_parent->tgid`."""
        return _ppid(self.record)

    @property
    def uid(self) -> int:
        """Real user id (`cred.uid`); on exec, as the new program has it."""
        return _uid(self.record)

    @property
    def gid(self) -> int:
        """Real group id (`cred.gid`); on exec, as the new program has it."""
        return _gid(self.record)

    @property
    def sid(self) -> int:
        """Session id (`signal->pids[PIDTYPE_SID]`): see setsid(2)."""
        return _sid(self.record)

    @property
    def ns_pid(self) -> int:
        """Process id in the innermost pid namespace of the process: what getpid(2) says there."""
        return _ns_pid(self.record)

    @property
    def cgroup_id(self) -> int | None:
        """Id of the cgroup (v2 hierarchy): the inode number of its directory.

        None with a kernel built without cgroups.
        """
        return known(_cgroup_id(self.record))

    @property
    def start_boottime_ns(self) -> int:
        """When the process was created: CLOCK_BOOTTIME, ns; `task_struct.start_boottime`.

        Field 22 of proc_pid_stat(5) is the same in clock ticks.
        """
        return _start_boottime_ns(self.record)

    @property
    def comm(self) -> str:
        """Command name, at most 15 bytes: `task_struct.comm` of the thread-group leader."""
        return decode_comm(_comm(self.record)[0])

    def _text(self) -> list[str]:
        """File name and arguments as one list; empty when they are not known."""
        return decode_text(self.record[self.HEAD_SIZE :])

    def asdict(self) -> dict[str, Any]:
        """All fields by name, in a fixed order; `usage` as a dictionary, too."""
        fields = {name: getattr(self, name) for name in self._FIELDS}
        if "usage" in fields:
            fields["usage"] = fields["usage"]._asdict()
        return fields

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._FIELDS)
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ProcessEvent):
            return self.record == other.record
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.record)

    def __reduce__(self) -> tuple[type[ProcessEvent], tuple[bytes]]:
        return type(self), (self.record,)


_IDENTITY = (
    "time_ns",
    "pid",
    "ppid",
    "uid",
    "gid",
    "sid",
    "ns_pid",
    "cgroup_id",
    "start_boottime_ns",
    "comm",
    "filename",
    "args",
    "args_truncated",
)


class ExecEvent(ProcessEvent):
    """A process executed a program: execve(2) or execveat(2) succeeded, in any of its threads."""

    __slots__ = ()
    KIND = lib.RECORD_EXEC
    HEAD_SIZE = ffi.sizeof("struct exec_record")
    MIN_FILENAME = 1  # its NUL
    _FIELDS = _IDENTITY

    @property
    def filename(self) -> str:
        """What was executed, as the caller named it (`linux_binprm.filename`).

        For a script this is the script. For fexecve(3) it is "/dev/fd/N".
        """
        return self._text()[0]

    @property
    def args(self) -> tuple[str, ...]:
        """The arguments as the new program sees them: its memory from `mm->arg_start` on.

        Up to 8 KiB are kept. Empty when the Tracer was told `args=False`.
        """
        return tuple(self._text()[1:])

    @property
    def args_truncated(self) -> bool:
        """Whether arguments were cut at 8 KiB, or could not be read."""
        return bool(_flags(self.record) & (lib.ARGS_TRUNCATED | lib.TEXT_MISSING))


class Usage(NamedTuple):
    """What a process used: all of its threads since its creation, and none of its children.

    These are the kernel's numbers at the moment of the event, which is in the middle of the
    process's end. wait4(2) looks a little later: see docs/exactness.md for what that adds.
    """

    user_ns: int
    """CPU time in user space, ns, as getrusage(2) computes it: the scheduler measures the sum in
    ns (`sum_exec_runtime`), brought up to date at each tick (1/HZ s) and context switch; how much
    of it was in user space is sampled by the tick (`utime`)."""
    system_ns: int
    """CPU time in the kernel, ns; as `user_ns`, with `stime`."""
    max_rss_bytes: int
    """Peak resident memory, bytes, in whole pages: `signal->maxrss`. It includes what the process
    had resident before its exec."""
    minor_faults: int
    """Page faults that needed no I/O: `min_flt`."""
    major_faults: int
    """Page faults that needed I/O: `maj_flt`."""
    read_bytes: int | None
    """Bytes fetched from storage: `ioac.read_bytes`, read_bytes of proc_pid_io(5). None with a
    kernel built without CONFIG_TASK_IO_ACCOUNTING."""
    write_bytes: int | None
    """Bytes sent towards storage: `ioac.write_bytes`, write_bytes of proc_pid_io(5). None as
    `read_bytes`."""
    voluntary_switches: int
    """Context switches because it waited: `nvcsw`."""
    involuntary_switches: int
    """Context switches because its time was up: `nivcsw`."""


def split_cpu_time(utime: int, stime: int, runtime: int) -> tuple[int, int]:
    """User and system time as the kernel's cputime_adjust() has them.

    The tick samples utime and stime; their sum is replaced by the measured runtime.
    """
    if stime == 0:
        return runtime, 0
    if utime == 0:
        return 0, runtime
    system = stime * runtime // (utime + stime)
    return runtime - system, system


class ExitEvent(ProcessEvent):
    """A process ended: its last thread is gone."""

    __slots__ = ()
    KIND = lib.RECORD_EXIT
    HEAD_SIZE = ffi.sizeof("struct exit_record")
    _FIELDS = (
        *_IDENTITY,
        "exit_code",
        "signal",
        "signal_name",
        "core_dumped",
        "duration_ns",
        "duration_since",
        "usage",
        "usage_partial",
    )

    @property
    def filename(self) -> str | None:
        """`ExecEvent.filename` of its last exec.

        None when no exec was seen, or the Tracer was told `args=False`.
        """
        text = self._text()
        return text[0] if text else None

    @property
    def args(self) -> tuple[str, ...] | None:
        """`ExecEvent.args` of its last exec; None when `filename` is None."""
        text = self._text()
        return tuple(text[1:]) if text else None

    @property
    def args_truncated(self) -> bool:
        """Whether arguments were cut at 8 KiB or could not be read, or text could not be kept."""
        return bool(_flags(self.record) & (lib.ARGS_TRUNCATED | lib.TEXT_MISSING))

    @property
    def exit_code(self) -> int:
        """What the program gave to exit(3), 0 to 255: WEXITSTATUS of wait(2).

        0 when a signal ended the process: look at `signal` first.
        """
        return _status(self.record) >> 8 & 0xFF

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended the process, WTERMSIG of wait(2); None for none."""
        return _status(self.record) & 0x7F or None

    @property
    def signal_name(self) -> str | None:
        """The name of `signal`, such as "SIGKILL" or "SIGRTMIN+3"; None for none."""
        number = self.signal
        return None if number is None else signal_name(number)

    @property
    def core_dumped(self) -> bool:
        """Whether the kernel wrote a core dump: WCOREDUMP of wait(2)."""
        return bool(_status(self.record) & 0x80)

    @property
    def duration_ns(self) -> int:
        """How long the process ran, in ns of CLOCK_BOOTTIME, from what `duration_since` says."""
        return _duration_ns(self.record)

    @property
    def duration_since(self) -> str:
        """Where `duration_ns` counts from: "exec", its last exec, or "start", its creation.

        It is "start" for a process that never called exec while traced.
        """
        return "exec" if _flags(self.record) & lib.DURATION_SINCE_EXEC else "start"

    @property
    def usage(self) -> Usage:
        """What the process used."""
        utime, stime, runtime, rss_pages, *others = _usage(self.record)
        minor, major, read, write, *switches = others
        return Usage(
            *split_cpu_time(utime, stime, runtime),
            rss_pages * PAGE_SIZE,
            minor,
            major,
            known(read),
            known(write),
            *switches,
        )

    @property
    def usage_partial(self) -> bool:
        """Whether `usage` may lack threads: too many of them were ending at the same time."""
        return bool(_flags(self.record) & lib.USAGE_PARTIAL)


if sys.version_info >= (3, 10):
    Event = ExecEvent | ExitEvent | LostEvent
else:
    from typing import Union

    Event = Union[ExecEvent, ExitEvent, LostEvent]


def signal_name(number: int) -> str:
    """The name of a signal as signal(7) has it; real-time signals count from SIGRTMIN."""
    try:
        return Signals(number).name
    except ValueError:
        return f"SIGRTMIN{number - Signals.SIGRTMIN:+d}"


_CLASSES = {event_type.KIND: event_type for event_type in (ExecEvent, ExitEvent)}


def make_decoder(kinds: Mapping[int, Callable[[bytes], Any]] | None = None) -> Decoder:
    """Makes events of records, or what `kinds` makes of them: the command has lines made."""
    return Decoder(
        {
            kind: Kind(make, _CLASSES[kind].HEAD_SIZE, _CLASSES[kind].MIN_FILENAME)
            for kind, make in (kinds or _CLASSES).items()
        },
        _head,
    )
