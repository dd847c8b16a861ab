# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Events as lines of text.

This is the inner loop of the command. So it unpacks all that a line needs from the record at once,
and renders what repeats from line to line (names, statuses, the time of day) only once: short names
are kept in small caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine.events import text
from pybootstrap.engine.render import Renderer, cached, clock, escape, of
from pybootstrap.events import (
    ARGS_TRUNCATED,
    ExecEvent,
    ExitEvent,
    Usage,
    core_dumped_of,
    decode_text,
    exit_code_of,
    signal_name_of,
)

if TYPE_CHECKING:
    from typing import Callable

__all__ = ["HEADER", "TextRenderer"]

_COLUMNS = "%-8s %-5s %-16s %-7s %-7s %s\n"
HEADER = _COLUMNS % ("TIME", "EVENT", "COMM", "PID", "PPID", "FILENAME/EXIT CODE")


@cache
def _needs_quotes() -> Callable[[str], object]:
    """A search for characters that may have a meaning in a shell."""
    import re  # needed only to print arguments

    return re.compile(r"[^\w@%+=:,./-]").search


def _shell_word(word: str) -> str:
    """A word, quoted for a shell; shlex.quote() without importing shlex."""
    return "'" + word.replace("'", "'\"'\"'") + "'" if not word or _needs_quotes()(word) else word


def command_line(filename: str, args: Sequence[str]) -> str:
    """The arguments as one line that a shell would split into the same words, then escaped.

    A first argument that only repeats the last part of the program's name is replaced by that name.
    """
    words = list(args)
    if not words or words[0] == filename.rpartition("/")[2]:
        words[:1] = [filename]
    return escape(" ".join(map(_shell_word, words)))


# ---- Parts of a line ----


@cached
def _comm_column(comm: bytes) -> str:
    return f"{escape(text(comm)):<16}"


@cached
def _filename(tail: bytes) -> str:
    return escape(decode_text(tail)[0])


@cached
def _command_line(tail: bytes) -> str:
    filename, *args = decode_text(tail)
    return command_line(filename, args)


@cached
def _ending(status: int) -> tuple[str, str]:
    """Exit code in brackets, and the signal with a space before it, if there is one."""
    code, signal = exit_code_of(status), signal_name_of(status)
    if signal is None:
        return f"[{code}]", ""
    return f"[{code}]", f" {signal}{' (core dumped)' if core_dumped_of(status) else ''}"


# ---- Text ----

_LONG_WIDTH = 24  # of the column before the long ones; longer file names move these
_LONG_AT = len(HEADER) - 1 - len("FILENAME/EXIT CODE") + _LONG_WIDTH
_LONG_HEADER = f"{'UID':<7} {'CPU':>9} {'MEM':>9}"

_LINE = ("header.flags", "header.time_ns", "process.pid", "process.ppid", "process.comm")
_exec_line = ExecEvent.unpacker(_LINE)
_exit_line = ExitEvent.unpacker([*_LINE, "duration_ns", "status"])


class TextRenderer(Renderer):
    """Text, column for column as the C `bootstrap` prints it.

    Args:
        args: add the command line to each line.
        long: add columns with the user id, and on exits CPU time and peak memory.
    """

    header = HEADER

    def __init__(self, args: bool = False, long: bool = False) -> None:
        if args:
            _needs_quotes()  # now, because after dropping privileges its import may fail
        self.kinds = {ExecEvent.KIND: self._exec, ExitEvent.KIND: self._exit}
        if long:
            self.header = f"{HEADER[:-1]:<{_LONG_AT}} {_LONG_HEADER}\n"
        self._args = args
        self._long = long
        self._clock = ""
        self._until_ns = 0  # _clock holds for the second that ends then

    def _exec(self, record: bytes) -> str:
        flags, time_ns, pid, ppid, comm = _exec_line(record)
        if not 0 < self._until_ns - time_ns <= 1_000_000_000:
            self._set_clock(time_ns)
        tail = record[ExecEvent.HEAD_SIZE :]
        if self._long:
            uid = ExecEvent(record).uid
            detail = f"{of(_filename, tail):<{_LONG_WIDTH}} {uid:<7} {'-':>9} {'-':>9}"
            if self._args:
                detail += _arguments(tail, flags)
        elif self._args:
            detail = _arguments(tail, flags)[1:]
        else:
            detail = of(_filename, tail)
        line = (self._clock, _comm_column(comm), pid, ppid, detail)
        return "%s EXEC  %s %-7d %-7d %s\n" % line  # noqa: UP031 - faster than an f-string

    def _exit(self, record: bytes) -> str:
        flags, time_ns, pid, ppid, comm, duration_ns, status = _exit_line(record)
        if not 0 < self._until_ns - time_ns <= 1_000_000_000:
            self._set_clock(time_ns)
        code, signal = _ending(status)
        detail = "%s (%dms)%s" % (code, duration_ns // 1_000_000, signal)  # noqa: UP031
        if self._long:
            event = ExitEvent(record)
            detail = f"{detail:<{_LONG_WIDTH}} {event.uid:<7} {_usage_columns(event.usage)}"
        if self._args:
            detail += _arguments(record[ExitEvent.HEAD_SIZE :], flags)
        line = (self._clock, _comm_column(comm), pid, ppid, detail)
        return "%s EXIT  %s %-7d %-7d %s\n" % line  # noqa: UP031

    def _set_clock(self, time_ns: int) -> None:
        self._until_ns = (time_ns // 1_000_000_000 + 1) * 1_000_000_000
        self._clock = clock(time_ns)


def _arguments(tail: bytes, flags: int) -> str:
    """The command line after a space; empty if it is not known."""
    if not tail:
        return ""
    return f" {of(_command_line, tail)}{' ...' if flags & ARGS_TRUNCATED else ''}"


def _usage_columns(usage: Usage) -> str:
    cpu_ms = (usage.user_ns + usage.system_ns) // 1_000_000
    return f"{cpu_ms:>7}ms {usage.max_rss_bytes // 1024:>8}K"
