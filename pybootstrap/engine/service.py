# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Tells the service manager that started this process how it is: the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

__all__ = ["Service"]


class Service:
    """The service manager behind a NOTIFY_SOCKET.

    Args:
        address: value of NOTIFY_SOCKET: a path, or an abstract name after "@".
        environ: has WATCHDOG_USEC and WATCHDOG_PID if the manager runs a watchdog.
    """

    watchdog_s: float | None = None
    """How long the watchdog waits for a sign of life, in seconds; None: it does not."""

    def __init__(self, address: str, environ: Mapping[str, str]) -> None:
        name = f"\0{address[1:]}" if address.startswith("@") else address
        self._address = os.fsencode(name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._sent_s = 0.0  # when the watchdog got the last sign, on the monotonic clock
        limit = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if ours and limit.isdecimal() and int(limit):
            self.watchdog_s = int(limit) / 1_000_000

    def ready(self) -> None:
        """Says that the service works from here on; waits while the manager is busy.

        Raises OSError if there is no manager at that address.
        """
        self._socket.sendto(b"READY=1\nSTATUS=tracing", self._address)

    def wants_sign(self) -> bool:
        """Whether the watchdog has got no sign of life for a while, and runs at all."""
        limit = self.watchdog_s
        return limit is not None and time.monotonic() - self._sent_s >= limit / 4

    def alive(self, status: str) -> None:
        """Gives the watchdog a sign of life; `status` is for people."""
        self._try_to_send(f"WATCHDOG=1\nSTATUS={status}".encode())
        self._sent_s = time.monotonic()

    def stopping(self) -> None:
        """Says that the service ends."""
        self._try_to_send(b"STOPPING=1")

    def _try_to_send(self, message: bytes) -> None:
        """Never waits, because reading events is more important."""
        with suppress(OSError):
            self._socket.sendto(message, socket.MSG_DONTWAIT, self._address)
