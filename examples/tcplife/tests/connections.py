# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""TCP connections over loopback for the tests, and how to name their ends."""

from __future__ import annotations

import ipaddress
import os
import sys
import time
from fcntl import ioctl
from pathlib import Path
from socket import AF_INET, AF_INET6, MSG_WAITALL, socket
from typing import Callable, NamedTuple

DEADLINE_S = 60.0  # far longer than anything takes


class Ends(NamedTuple):
    """A connection's addresses and ports as one end sees them; IPv4 over an IPv6 socket is IPv4."""

    local_address: str
    local_port: int
    remote_address: str
    remote_port: int


def plain(address: str) -> str:
    parsed = ipaddress.ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def ends(end: socket) -> Ends:
    here, there = end.getsockname(), end.getpeername()
    return Ends(plain(here[0]), here[1], plain(there[0]), there[1])


def listen(host: str = "127.0.0.1") -> socket:
    listener = socket(AF_INET6 if ":" in host else AF_INET)
    listener.bind((host, 0))
    listener.listen()
    return listener


def connect(listener: socket) -> tuple[socket, socket]:
    """The socket that connected and the one that accepted, at different addresses if possible."""
    client, there = socket(listener.family), listener.getsockname()[:2]
    client.bind((there[0].replace("127.0.0.1", "127.0.0.2"), 0))
    client.connect(there)
    return client, listener.accept()[0]


def pair(host: str = "127.0.0.1") -> tuple[socket, socket]:
    with listen(host) as listener:
        return connect(listener)


def send(sender: socket, receiver: socket, size: int) -> None:
    """Sends `size` bytes, no more than the buffers hold."""
    sender.sendall(bytes(size))
    assert len(receiver.recv(size, MSG_WAITALL)) == size


def pending(end: socket, request: int) -> int:
    """Bytes: FIONREAD, not read yet; TIOCOUTQ, not acknowledged yet."""
    return int.from_bytes(ioctl(end, request, bytes(4)), sys.byteorder)


def close(*in_order: socket) -> None:
    for end in in_order:
        end.close()


def this_process() -> tuple[int, str]:
    return os.getpid(), Path("/proc/self/comm").read_text().rstrip("\n")


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)
