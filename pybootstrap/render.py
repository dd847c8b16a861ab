# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Events as lines of text or JSON."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from time import localtime, strftime

from pybootstrap.events import Event, ExecEvent, ExitEvent, LostEvent

__all__ = ["HEADER", "TextRenderer", "escape", "render_json"]

_COLUMNS = "%-8s %-5s %-16s %-7s %-7s %s\n"
HEADER = _COLUMNS % ("TIME", "EVENT", "COMM", "PID", "PPID", "FILENAME/EXIT CODE")


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


_NEEDS_QUOTES = re.compile(r"[^\w@%+=:,./-]").search


def command_line(filename: str, args: Sequence[str], truncated: bool) -> str:
    """The arguments as one line that a shell would take apart the same way, then escaped.

    The program's full name stands for a first argument that only repeats its last part.
    """
    words = list(args)
    if not words or words[0] == filename.rpartition("/")[2]:
        words[:1] = [filename]
    line = " ".join(shlex.quote(w) if not w or _NEEDS_QUOTES(w) else w for w in words)
    return escape(line) + (" ..." if truncated else "")


class TextRenderer:
    """Text, column for column as the C `bootstrap` prints it.

    Args:
        args: add the command line to each line.
        long: add columns with the user id, and on exits CPU time and peak memory.
    """

    def __init__(self, args: bool = False, long: bool = False) -> None:
        self._args = args
        self._long = long
        self._second = -1
        self._clock = ""

    @property
    def header(self) -> str:
        """The line above the table."""
        return HEADER if not self._long else f"{HEADER[:-1]:<{_LONG_AT}} {_LONG_HEADER}\n"

    def render(self, events: Sequence[Event]) -> str:
        """A line for each event, except for losses, which are no lines of this table."""
        return "".join([self._line(e) for e in events if not isinstance(e, LostEvent)])

    def _line(self, event: ExecEvent | ExitEvent) -> str:
        second = event.time_ns // 1_000_000_000
        if second != self._second:
            self._second = second
            self._clock = strftime("%H:%M:%S", localtime(second))
        kind = "EXEC" if isinstance(event, ExecEvent) else "EXIT"
        parts = []
        if isinstance(event, ExitEvent):
            parts.append(_exit_status(event))
        elif self._long or not self._args:
            parts.append(escape(event.filename))
        if self._long:
            parts[0] = f"{parts[0]:<{_LONG_WIDTH}}"
            parts.append(_long_columns(event))
        if self._args and event.filename is not None and event.args is not None:
            parts.append(command_line(event.filename, event.args, event.args_truncated))
        detail = " ".join(parts)
        return _COLUMNS % (self._clock, kind, escape(event.comm), event.pid, event.ppid, detail)


_LONG_WIDTH = 24  # of what stands before the long columns; longer file names move them
_LONG_AT = len(HEADER) - 1 - len("FILENAME/EXIT CODE") + _LONG_WIDTH
_LONG_HEADER = f"{'UID':<7} {'CPU':>9} {'MEM':>9}"


def _long_columns(event: ExecEvent | ExitEvent) -> str:
    if isinstance(event, ExecEvent):
        return f"{event.uid:<7} {'-':>9} {'-':>9}"
    usage = event.usage
    cpu_ms = (usage.user_ns + usage.system_ns) // 1_000_000
    return f"{event.uid:<7} {cpu_ms:>7}ms {usage.max_rss_bytes // 1024:>8}K"


def _exit_status(event: ExitEvent) -> str:
    status = f"[{event.exit_code}] ({event.duration_ns // 1_000_000}ms)"
    if event.signal is not None:
        status += f" {event.signal_name}"
        if event.core_dumped:
            status += " (core dumped)"
    return status


_KINDS = {ExecEvent: "exec", ExitEvent: "exit", LostEvent: "lost"}


def render_json(events: Sequence[Event]) -> str:
    r"""A JSON object and a line feed for each event.

    The output is ASCII. Bytes that are no UTF-8 come as lone surrogates (`\\udc80` to `\\udcff`),
    as Python's own `os.fsdecode` has them: `os.fsencode(json.loads(line)["filename"])` is exact.
    """
    return "".join(
        [
            json.dumps(
                {
                    "event": _KINDS[type(event)],
                    **(event._asdict() if isinstance(event, LostEvent) else event.asdict()),
                },
                separators=(",", ":"),
            )
            + "\n"
            for event in events
        ]
    )
