# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What renderers share: turning records into lines, and making text safe for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from time import localtime

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine.decoder import LostEvent

if TYPE_CHECKING:
    from typing import Any, Callable

    from pybootstrap.engine.events import Event
    from pybootstrap.engine.report import Report

__all__ = ["SHORT", "FieldRenderer", "Renderer", "cached", "clock", "escape", "of"]

SHORT = 256  # bytes; longer text is not cached
cached = lru_cache(maxsize=512)


def escape(text: str) -> str:
    r"""Replaces what a terminal must not get by `\xNN`, `\uNNNN` or `\UNNNNNNNN`.

    That is all that `str.isprintable` rejects: control and format characters, line breaks, and
    bytes that are not UTF-8 (surrogates of `os.fsdecode`, shown as the byte).
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


@lru_cache(maxsize=8)
def _time_of_day(second: int) -> str:
    return "%02d:%02d:%02d" % localtime(second)[3:6]  # noqa: UP031 - faster than an f-string


def clock(time_ns: int) -> str:
    """The local time of day, as "HH:MM:SS"; `time_ns` is wall clock, ns since the epoch."""
    return _time_of_day(time_ns // 1_000_000_000)


def of(function: Callable[[bytes], str], tail: bytes) -> str:
    """Calls a cached function, but without its cache for long text, so that memory is bounded."""
    if len(tail) <= SHORT:
        return function(tail)
    uncached: Callable[[bytes], str] = function.__wrapped__  # type: ignore[attr-defined]
    return uncached(tail)


def _whole(event: type[Any], line: Callable[[Any], str]) -> Callable[[bytes], str]:
    return lambda record: f"{line(event(record))}\n"


class Renderer:
    """Turns records into lines.

    Args:
        kinds: for each event class a function that turns an event into a line, without line feed.
            It should `escape` text that may hold any character.
        header: the line above them, without line feed; "": none.

    A faster renderer does not make events. It sets `header` and `kinds` itself, in the instance or
    the class: `kinds` has, by kind of record (int), a function that turns the bytes of a record
    into a line. Here header and lines end in a line feed.
    """

    header = ""
    kinds: Mapping[int, Callable[[bytes], str]]

    def __init__(self, kinds: Mapping[type[Any], Callable[[Any], str]], header: str = "") -> None:
        self.kinds = {event.KIND: _whole(event, line) for event, line in kinds.items()}
        if header:
            self.header = f"{header}\n"

    def lost(self, event: LostEvent) -> str:  # noqa: ARG002
        """The line for a loss; "": none."""
        return ""

    def start(self, report: Report) -> str:  # noqa: ARG002
        """The line that says that tracing has begun; "": none."""
        return ""

    def status(self, report: Report) -> str:  # noqa: ARG002
        """A line for each minute of tracing; "": none."""
        return ""

    def end(self, report: Report) -> str:  # noqa: ARG002
        """The line that says that tracing has ended; "": none."""
        return ""

    def take(self, made: list[Any]) -> list[Any]:
        """Called with what `kinds` made of each batch, and losses; returns lines and these losses.

        Events after the last of `-n` are not among them.
        """
        return made

    def close(self) -> list[str]:
        """Called at the end, whatever ended the command; returns what is to be reported."""
        return []

    @property
    def undelivered(self) -> int:
        """How many events were not delivered, besides those in lines; known after `close()`."""
        return 0

    @property
    def reports(self) -> bool:
        """Whether this class defines `start`, `status` or `end`; else a command makes no reports,
        and does not wake up for them.
        """
        own, base = type(self), Renderer
        return (own.start, own.status, own.end) != (base.start, base.status, base.end)

    def render(self, events: Iterable[Any]) -> str:
        """The lines of these events."""
        return "".join(
            self.lost(event)
            if isinstance(event, LostEvent)
            else self.kinds[event.KIND](event.record)
            for event in events
        )


class FieldRenderer(Renderer):
    """The default text: time, name of the event, and every field as NAME=VALUE."""

    def __init__(self, events: Iterable[type[Event]]) -> None:
        super().__init__(dict.fromkeys(events, _fields_line), "TIME     EVENT            FIELDS")


def _fields_line(event: Event) -> str:
    fields = event.asdict()
    shown = " ".join(
        f"{name}={_shown(value)}" for name, value in fields.items() if name != "time_ns"
    )
    return f"{clock(event.time_ns)} {event.NAME:<16} {shown}"


def _shown(value: object) -> str:
    """Text that is one printable word as it is, anything else as its escaped repr()."""
    plain = isinstance(value, str) and value.isprintable() and value and " " not in value
    return str(value) if plain else escape(repr(value))
