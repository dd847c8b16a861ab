# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Tells the service manager that started this process how it is: the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from re import fullmatch

from pybootstrap.engine.output import is_ending

__all__ = ["Service"]

_READY = b"READY=1\nSTATUS=tracing"
_PATIENCE_S = 5  # for a manager that takes nothing
_SHORTEST_S = 0.1  # of a watchdog: more signs of life than this asks for would only cost


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
        if ours and fullmatch("[0-9]{1,18}", limit) and int(limit):
            self.watchdog_s = max(int(limit) / 1_000_000, _SHORTEST_S)

    def ready(self) -> None:
        """Says that the service works from here on.

        Waits while the manager takes nothing, for up to 5 s, or until a signal asks us to end.
        Raises OSError if there is no manager at that address, or if it took nothing.
        """
        for _ in range(_PATIENCE_S * 10):
            if self._is_told_ready() or is_ending():
                return
            time.sleep(0.1)
        raise TimeoutError("it takes no messages")

    def _is_told_ready(self) -> bool:
        try:
            self._socket.sendto(_READY, socket.MSG_DONTWAIT, self._address)
        except BlockingIOError:
            return False
        return True

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
