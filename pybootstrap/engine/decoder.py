# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Decodes batches of records into events; knows nothing of what the records contain."""

from __future__ import annotations

import struct

from pybootstrap._typing import TYPE_CHECKING, NamedTuple
from pybootstrap.engine._native import ffi
from pybootstrap.engine.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["Decoder", "LostEvent"]


class LostEvent(NamedTuple):
    """Events are missing here, because they found the ring buffer full."""

    time_ns: int
    """Time of the first event after the gap: wall clock, ns since the epoch. The same as `since_ns`
    if no event has come since."""
    since_ns: int
    """Time of the last event before the gap; 0 when there was none."""
    count: int  # type: ignore[assignment]  # hides tuple.count()
    """How many events were lost."""


_KIND_AT = dict(ffi.typeof("struct record_header").fields)["kind"].offset


class Decoder:
    """Turns batches of records into events, and increases of the loss count into `LostEvent`s.

    Args:
        kinds: for each value of `header.kind` a tuple (make, unpack, head_size, least_size).
            `make(record)` turns the bytes of a record into an event. `unpack(batch, offset)`
            returns size, time_ns and lost of `struct record_header`, and the lengths of the two
            parts of the tail, or 0. A record has head_size bytes before its tail, and at least
            least_size bytes in all.
    """

    def __init__(self, kinds: Mapping[int, tuple[Any, ...]]) -> None:
        self.lost = 0  # lost events that were reported
        self._time_ns = 0  # of the last event
        self._kinds = kinds

    def decode(self, batch: bytes) -> list[Any]:
        """The events of a batch, or what `kinds` makes of them, in the ring's order.

        Raises RecordError for bytes that are not records. Never reads outside the batch.
        """
        kinds, kind_at = self._kinds, _KIND_AT
        events: list[Any] = []
        start, end = 0, len(batch)
        lost, time_ns = self.lost, self._time_ns
        while start < end:
            try:
                make, unpack, head_size, least_size = kinds[batch[start + kind_at]]
                size, now_ns, lost_before, first, second = unpack(batch, start)
            except KeyError as kind:
                raise RecordError(
                    f"record of kind {kind} at byte {start} of {end}, but there is no "
                    f"RECORD({kind}, ...) in the BPF source"
                ) from None
            except (struct.error, IndexError):
                raise RecordError(f"no record at byte {start} of a batch of {end}") from None
            if size != head_size + first + second or start + size > end or size < least_size:
                raise RecordError(f"record at byte {start} of {end} says it has {size} bytes")
            if lost_before > lost:
                events.append(LostEvent(now_ns, time_ns, lost_before - lost))
                lost = lost_before
            events.append(make(batch[start : start + size]))
            time_ns = now_ns
            start += size
        self.lost, self._time_ns = lost, time_ns
        return events

    def loss(self, lost: int) -> LostEvent:
        """Reports a loss that no record carries yet; `lost` is the kernel's current count."""
        gap = LostEvent(self._time_ns, self._time_ns, lost - self.lost)
        self.lost = lost
        return gap
