# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The events of bootstrap: execs and exits, with their fields.

Each field is declared once, with its members of the structs in `bpf/bootstrap.h`. Text is decoded
like file names (`os.fsdecode`), so `os.fsencode` restores every byte.
"""

from __future__ import annotations

import sys
from os import fsdecode, sysconf
from signal import Signals

from pybootstrap._typing import NamedTuple
from pybootstrap.engine.events import Event as Record
from pybootstrap.engine.events import LostEvent, field
from pybootstrap.engine.skeleton import types_of

__all__ = ["Event", "ExecEvent", "ExitEvent", "LostEvent", "ProcessEvent", "Usage"]

TYPES = types_of(None)
_NOT_KNOWN = TYPES.constant("NOT_KNOWN") % 2**64
ARGS_TRUNCATED = TYPES.constant("ARGS_TRUNCATED")
_ARGS_CUT = ARGS_TRUNCATED | TYPES.constant("TEXT_MISSING")
_SINCE_EXEC = TYPES.constant("DURATION_SINCE_EXEC")
_PARTIAL = TYPES.constant("USAGE_PARTIAL")
_PAGE_SIZE = sysconf("SC_PAGE_SIZE")  # bytes


# ---- From members to values ----


def _known(value: int) -> int | None:
    """The value; None if this kernel does not keep it."""
    return None if value == _NOT_KNOWN else value


def decode_text(tail: bytes) -> list[str]:
    """File name and arguments, from the tail of a record; empty if they are not known."""
    text = fsdecode(tail).split("\0")
    if not text[-1]:  # text that was cut has no final NUL
        text.pop()
    return text


def _filename(tail: bytes) -> str | None:
    text = decode_text(tail)
    return text[0] if text else None


def _args(tail: bytes) -> tuple[str, ...] | None:
    text = decode_text(tail)
    return tuple(text[1:]) if text else None


def _args_truncated(flags: int) -> bool:
    return bool(flags & _ARGS_CUT)


def exit_code_of(status: int) -> int:
    """WEXITSTATUS of wait(2)."""
    return status >> 8 & 0xFF


def signal_of(status: int) -> int | None:
    """WTERMSIG of wait(2); None if no signal ended the process."""
    return status & 0x7F or None


def signal_name_of(status: int) -> str | None:
    """The name of that signal as signal(7) has it; real-time signals count from SIGRTMIN."""
    number = signal_of(status)
    if number is None:
        return None
    try:
        return Signals(number).name
    except ValueError:
        return f"SIGRTMIN{number - Signals.SIGRTMIN:+d}"


def core_dumped_of(status: int) -> bool:
    """WCOREDUMP of wait(2)."""
    return bool(status & 0x80)


def _duration_since(flags: int) -> str:
    return "exec" if flags & _SINCE_EXEC else "start"


def _usage_partial(flags: int) -> bool:
    return bool(flags & _PARTIAL)


class Usage(NamedTuple):
    """What a process used: all of its threads since its creation, without its children.

    These are the kernel's numbers at the event, in the middle of the process's exit. wait4(2) reads
    them a little later: docs/exactness.md says what that adds.
    """

    user_ns: int
    """CPU time in user space, ns, computed as for getrusage(2): the scheduler measures the total in
    ns (`sum_exec_runtime`) and updates it at each tick (1/HZ s) and context switch; ticks sample
    how much of it was in user space (`utime`)."""
    system_ns: int
    """CPU time in the kernel, ns; as `user_ns`, with `stime`."""
    max_rss_bytes: int
    """Peak resident memory, bytes, in whole pages: `signal->maxrss`. It includes memory that was
    resident before the exec."""
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
    """User and system time, computed like the kernel's cputime_adjust().

    Ticks sample utime and stime; this scales them so that their sum is the measured runtime.
    """
    if stime == 0:
        return runtime, 0
    if utime == 0:
        return 0, runtime
    system = stime * runtime // (utime + stime)
    return runtime - system, system


def _usage(  # noqa: PLR0917 - the members of struct usage
    utime: int, stime: int, runtime: int, rss_pages: int, minor: int, major: int,
    read: int, write: int, voluntary: int, involuntary: int,
) -> Usage:  # fmt: skip
    user, system = split_cpu_time(utime, stime, runtime)
    rss, read_bytes, write_bytes = rss_pages * _PAGE_SIZE, _known(read), _known(write)
    return Usage(user, system, rss, minor, major, read_bytes, write_bytes, voluntary, involuntary)


# ---- Events ----


class ProcessEvent(Record):
    """What all events of a process have in common: the identity of the process.

    Two events with the same `pid` and `start_boottime_ns` are of the same process; a pid alone can
    be reused. Events are equal if all their fields are. All ids except `ns_pid` are those of the
    root namespaces. `record` holds the bytes of the record (struct exec_record or struct
    exit_record of bpf/bootstrap.h, with `time_ns` converted to wall clock).
    """

    __slots__ = ()
    TAIL = ("text.filename_size", "text.args_size")

    pid: int = field(
        "process.pid",
        otel="process.pid",
        doc="Process id, that is, thread-group id: `task_struct.tgid`.",
    )
    ppid: int = field(
        "process.ppid",
        otel="process.parent_pid",
        doc="Process id of the parent at the event, not of a debugger: `real_parent->tgid`.",
    )
    uid: int = field(
        "process.uid",
        otel="process.real_user.id",
        doc="Real user id (`cred.uid`); on exec, that of the new program.",
    )
    gid: int = field(
        "process.gid", doc="Real group id (`cred.gid`); on exec, that of the new program."
    )
    sid: int = field(
        "process.sid",
        otel="process.session_leader.pid",
        doc="Session id (`signal->pids[PIDTYPE_SID]`): see setsid(2).",
    )
    ns_pid: int = field(
        "process.ns_pid",
        otel="process.vpid",
        doc="Process id in the innermost pid namespace of the process, as getpid(2) returns it.",
    )
    cgroup_id: int | None = field(
        "process.cgroup_id",
        convert=_known,
        doc="""Id of the cgroup (v2 hierarchy): the inode number of its directory.

        None with a kernel built without cgroups.
        """,
    )
    start_boottime_ns: int = field(
        "process.start_boottime_ns",
        doc="""When the process was created: CLOCK_BOOTTIME, ns; `task_struct.start_boottime`.

        Field 22 of proc_pid_stat(5) is the same in clock ticks.
        """,
    )
    comm: str = field(
        "process.comm",
        doc="Command name, at most 15 bytes: `task_struct.comm` of the thread-group leader.",
    )


class ExecEvent(ProcessEvent, struct="exec_record"):
    """A process executed a program: execve(2) or execveat(2) succeeded, in any of its threads."""

    __slots__ = ()
    MIN_TAIL = 1  # the file name's NUL

    filename: str = field(
        tail=True,
        convert=_filename,
        otel="process.command",
        doc="""What was executed, as the caller named it (`linux_binprm.filename`).

        For a script this is the script. For fexecve(3) it is "/dev/fd/N".
        """,
    )
    args: tuple[str, ...] = field(
        tail=True,
        convert=_args,
        otel="process.command_args",
        doc="""The arguments as the new program sees them: its memory from `mm->arg_start` on.

        Up to 8 KiB are kept. Empty if the Tracer was made with `args=False`.
        """,
    )
    args_truncated: bool = field(
        "header.flags",
        convert=_args_truncated,
        doc="Whether arguments were cut at 8 KiB, or could not be read.",
    )


class ExitEvent(ProcessEvent, struct="exit_record"):
    """A process ended: its last thread is gone."""

    __slots__ = ()

    filename: str | None = field(
        tail=True,
        convert=_filename,
        otel="process.command",
        doc="""`ExecEvent.filename` of its last exec.

        None if no exec was seen, or if the Tracer was made with `args=False`.
        """,
    )
    args: tuple[str, ...] | None = field(
        tail=True,
        convert=_args,
        otel="process.command_args",
        doc="`ExecEvent.args` of its last exec; None if `filename` is None.",
    )
    args_truncated: bool = field(
        "header.flags",
        convert=_args_truncated,
        doc="Whether arguments were cut at 8 KiB or unreadable, or text could not be kept.",
    )
    exit_code: int = field(
        "status",
        convert=exit_code_of,
        otel="process.exit.code",
        doc="""The low 8 bits of the argument of exit(3): WEXITSTATUS of wait(2).

        0 when a signal ended the process: look at `signal` first.
        """,
    )
    signal: int | None = field(
        "status",
        convert=signal_of,
        doc="Number of the signal that ended the process, or None: WTERMSIG of wait(2).",
    )
    signal_name: str | None = field(
        "status",
        convert=signal_name_of,
        doc='Name of `signal`, such as "SIGKILL" or "SIGRTMIN+3", or None.',
    )
    core_dumped: bool = field(
        "status",
        convert=core_dumped_of,
        doc="Whether the kernel wrote a core dump: WCOREDUMP of wait(2).",
    )
    duration_ns: int = field(
        doc="How long the process ran, in ns of CLOCK_BOOTTIME; since when: `duration_since`."
    )
    duration_since: str = field(
        "header.flags",
        convert=_duration_since,
        doc="""Where `duration_ns` counts from: "exec", its last exec, or "start", its creation.

        It is "start" for a process that never called exec while traced.
        """,
    )
    usage: Usage = field(
        *(f"usage.{name}" for name in TYPES.struct("usage").members),
        convert=_usage,
        doc="What the process used.",
    )
    usage_partial: bool = field(
        "header.flags",
        convert=_usage_partial,
        doc="Whether `usage` may lack threads: too many of them were ending at the same time.",
    )


if sys.version_info >= (3, 10):
    Event = ExecEvent | ExitEvent | LostEvent
else:
    from typing import Union

    Event = Union[ExecEvent, ExitEvent, LostEvent]
