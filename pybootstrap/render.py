# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Events as lines of text.

This is the inner loop of the command. So what a line needs is unpacked from the record in one go,
and what repeats from line to line (names, statuses, the time of day) is rendered once: short names
are kept in small caches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from time import localtime

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine._native import lib
from pybootstrap.events import (
    ExecEvent,
    ExitEvent,
    LostEvent,
    Usage,
    decode_comm,
    decode_text,
    layout,
    signal_name,
)

if TYPE_CHECKING:
    from typing import Callable

    from pybootstrap.events import Event

__all__ = ["HEADER", "Renderer", "TextRenderer", "cached", "escape", "of"]

_COLUMNS = "%-8s %-5s %-16s %-7s %-7s %s\n"
HEADER = _COLUMNS % ("TIME", "EVENT", "COMM", "PID", "PPID", "FILENAME/EXIT CODE")

_SHORT = 256  # bytes of file name and arguments that are worth keeping in a cache
cached = lru_cache(maxsize=512)


def escape(text: str) -> str:
    r"""`text` with all that a terminal must not get replaced by `\xNN`, `\uNNNN` or `\UNNNNNNNN`.

    That is what `str.isprintable` denies: control and format characters, line breaks, and bytes
    that are no UTF-8 (surrogates of `os.fsdecode`, shown as the byte).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape_char(ord(c)) for c in text)


def _escape_char(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@cache
def _needs_quotes() -> Callable[[str], object]:
    """The search for a character that a shell may take for more than itself."""
    import re  # only for those who print arguments

    return re.compile(r"[^\w@%+=:,./-]").search


def _shell_word(word: str) -> str:
    """A word as a shell would take it literally; shlex.quote() without importing shlex."""
    return "'" + word.replace("'", "'\"'\"'") + "'" if not word or _needs_quotes()(word) else word


def command_line(filename: str, args: Sequence[str]) -> str:
    """The arguments as one line that a shell would take apart the same way, then escaped.

    The program's full name stands for a first argument that only repeats its last part.
    """
    words = list(args)
    if not words or words[0] == filename.rpartition("/")[2]:
        words[:1] = [filename]
    return escape(" ".join(map(_shell_word, words)))


# ---- Parts of a line ----


@cached
def _comm_column(comm: bytes) -> str:
    return f"{escape(decode_comm(comm)):<16}"


@cached
def _filename(tail: bytes) -> str:
    return escape(decode_text(tail)[0])


@cached
def _command_line(tail: bytes) -> str:
    filename, *args = decode_text(tail)
    return command_line(filename, args)


@cached
def _ending(status: int) -> tuple[str, str]:
    """Exit code, and the signal with what stands around it."""
    code, number = status >> 8 & 0xFF, status & 0x7F
    if number == 0:
        return f"[{code}]", ""
    core = " (core dumped)" if status & 0x80 else ""
    return f"[{code}]", f" {signal_name(number)}{core}"


def of(function: Callable[[bytes], str], tail: bytes) -> str:
    """Calls a cached function, past its cache when the text is long: memory stays bounded."""
    if len(tail) <= _SHORT:
        return function(tail)
    uncached: Callable[[bytes], str] = function.__wrapped__  # type: ignore[attr-defined]
    return uncached(tail)


# ---- Text ----

_LONG_WIDTH = 24  # of what stands before the long columns; longer file names move them
_LONG_AT = len(HEADER) - 1 - len("FILENAME/EXIT CODE") + _LONG_WIDTH
_LONG_HEADER = f"{'UID':<7} {'CPU':>9} {'MEM':>9}"

_LINE = ("header.flags", "header.time_ns", "process.pid", "process.ppid", "process.comm")
_exec_line = layout("exec_record", *_LINE).unpack_from
_exit_line = layout("exit_record", *_LINE, "duration_ns", "status").unpack_from


class Renderer:
    """Makes lines of records; `kinds` says how, by the kind of record, as `Decoder` takes it."""

    header = ""  # what stands above the lines
    kinds: Mapping[int, Callable[[bytes], str]]

    def lost(self, event: LostEvent) -> str:  # noqa: ARG002
        """The line for a loss, if there is one."""
        return ""

    def render(self, events: Iterable[Event]) -> str:
        """The lines of these events."""
        return "".join(
            self.lost(event)
            if isinstance(event, LostEvent)
            else self.kinds[event.KIND](event.record)
            for event in events
        )


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
        self.kinds = {lib.RECORD_EXEC: self._exec, lib.RECORD_EXIT: self._exit}
        if long:
            self.header = f"{HEADER[:-1]:<{_LONG_AT}} {_LONG_HEADER}\n"
        self._args = args
        self._long = long
        self._clock = ""
        self._until_ns = 0  # to when that is right, beginning a second before

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
        second = time_ns // 1_000_000_000
        self._until_ns = (second + 1) * 1_000_000_000
        self._clock = "%02d:%02d:%02d" % localtime(second)[3:6]  # noqa: UP031


def _arguments(tail: bytes, flags: int) -> str:
    """The command line after a space; nothing when it is not known."""
    if not tail:
        return ""
    return f" {of(_command_line, tail)}{' ...' if flags & lib.ARGS_TRUNCATED else ''}"


def _usage_columns(usage: Usage) -> str:
    cpu_ms = (usage.user_ns + usage.system_ns) // 1_000_000
    return f"{cpu_ms:>7}ms {usage.max_rss_bytes // 1024:>8}K"
