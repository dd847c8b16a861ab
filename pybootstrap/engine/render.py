# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What renderers have in common: records in, lines out, and text that is safe for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine.decoder import LostEvent

if TYPE_CHECKING:
    from typing import Any, Callable

__all__ = ["SHORT", "Renderer", "cached", "escape", "of"]

SHORT = 256  # bytes of text that are worth keeping in a cache
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


def of(function: Callable[[bytes], str], tail: bytes) -> str:
    """Calls a cached function, past its cache when the text is long: memory stays bounded."""
    if len(tail) <= SHORT:
        return function(tail)
    uncached: Callable[[bytes], str] = function.__wrapped__  # type: ignore[attr-defined]
    return uncached(tail)


class Renderer:
    """Makes lines of records; `kinds` says how, by the kind of record, as `Decoder` takes it."""

    header = ""  # what stands above the lines
    kinds: Mapping[int, Callable[[bytes], str]]

    def lost(self, event: LostEvent) -> str:  # noqa: ARG002
        """The line for a loss, if there is one."""
        return ""

    def render(self, events: Iterable[Any]) -> str:
        """The lines of these events."""
        return "".join(
            self.lost(event)
            if isinstance(event, LostEvent)
            else self.kinds[event.KIND](event.record)
            for event in events
        )
