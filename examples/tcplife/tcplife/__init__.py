# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Shows every TCP connection of this machine, in all its network namespaces, as it ends.

with Tracer(ports=[443]) as tracer:
    for event in tracer:
        print(event.pid, event.remote_address, event.received)
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop, ntohs
from typing import Any

from pybootstrap import engine
from pybootstrap.engine import Event, Renderer, Skeleton, clock, command, escape, field, options

__version__ = "0.1.0"
OBJECT = Path(__file__).with_name("tcplife.bpf.o").read_bytes()
COLUMNS = "{:8} {:>7} {:15} {:>12} {:>10} {:>10} {:21} {}"
HEADER = COLUMNS.format("TIME", "PID", "COMM", "MS", "SENT", "RECEIVED", "LOCAL", "REMOTE")


def _address(packed: bytes) -> str:
    is_ipv4 = packed.startswith(bytes(10) + b"\xff\xff")  # mapped: ::ffff:1.2.3.4
    return inet_ntop(AF_INET, packed[12:]) if is_ipv4 else inet_ntop(AF_INET6, packed)


def _known(number: int) -> int | None:
    return number or None


class Closed(Event, object=OBJECT, struct="closed"):
    """The kernel has given up one end of a TCP connection that had been established.

    A connection with both ends on this machine is two events. TIME_WAIT comes later. `pid` and
    `comm` belong to the process that connected. If the connection was accepted, or open before
    tracing began, they belong to the process that first shut it down, or closed it last. There is
    no such process if, for example, the peer has reset the connection.
    """

    __slots__ = ()
    pid: int | None = field("noted.pid", convert=_known, doc="Process id (root namespace).")
    comm: str = field("noted.comm", doc="Name of that process; empty if there was none.")
    local_address: str = field(convert=_address)
    local_port: int
    remote_address: str = field(convert=_address)
    remote_port: int
    sent: int = field(doc="Bytes of data that the peer has acknowledged.")
    received: int = field(doc="Bytes of data that came in order, read or not.")
    duration_ns: int | None = field(convert=_known, doc="None: it was open before tracing began.")


class Tracer(engine.Tracer):
    """Sees TCP connections end.

    Args:
        min_duration_ms: only connections that were open for at least this long, and those that were
            open before tracing began.
        ports: only connections with one of these ports at either end.
        common: the arguments of every Tracer, including `on_event`.

    Reading `stats` updates `untracked`, which counts failures to note the start or the process of a
    connection.
    """

    OBJECT = OBJECT
    EVENTS = (Closed,)

    def __init__(self, *, min_duration_ms: float = 0, ports: Iterable[int] = (), **common: Any):
        super().__init__(**common)
        self._min_duration_ns = engine.milliseconds("min_duration_ms", min_duration_ms)
        self._ports = {engine.whole_number("ports", port, 1, 65535) for port in ports}
        self.untracked = 0

    def on_open(self, skeleton: Skeleton) -> None:
        """Sets the program's settings."""
        skeleton.rodata.min_duration_ns = self._min_duration_ns
        if self._ports:
            skeleton.bss.unwanted = bytes(ntohs(port) not in self._ports for port in range(1 << 16))

    def count(self, skeleton: Skeleton, produced: int, received: int, lost: int) -> Any:
        """Returns the engine's `stats`; updates `untracked`."""
        self.untracked = skeleton.bss.untracked
        return super().count(skeleton, produced, received, lost)

    def closing_remarks(self, stats: Any) -> list[str]:  # noqa: ARG002
        """Returns the last lines of the command."""
        remark = f"{self.untracked} times there was no memory to note something of a connection"
        return [remark] if self.untracked else []


def make_parser() -> ArgumentParser:
    """Returns the parser of the command line."""
    parser = options.make_parser("tcplife", "Shows each TCP connection of this machine as it ends.")
    duration = options.whole_number(1, options.MAX_MS, " of milliseconds")
    port = options.whole_number(1, 65535, "")
    text = "print only connections that lasted MS milliseconds, or since before tcplife began"
    parser.add_argument("-d", "--duration", metavar="MS", type=duration, default=0, help=text)
    text = "print only connections with port N at either end; may be given several times"
    parser.add_argument("--port", metavar="N", type=port, action="append", default=[], help=text)
    options.add_common(parser)
    return parser


def make_tracer(given: Namespace, **common: Any) -> Tracer:
    """Returns the Tracer that the command line asks for."""
    return Tracer(min_duration_ms=given.duration, ports=given.port, **common)


def make_renderer(_: Namespace) -> Renderer:
    """Returns the renderer of text lines; the engine renders JSON."""
    return Renderer({Closed: _line}, header=HEADER)


def _line(event: Closed) -> str:
    ms = f"{event.duration_ns / 1e6:.3f}" if event.duration_ns else "-"
    process = (event.pid or "-", escape(event.comm) or "-")
    local = _end(event.local_address, event.local_port)
    remote = _end(event.remote_address, event.remote_port)
    time = clock(event.time_ns)
    return COLUMNS.format(time, *process, ms, event.sent, event.received, local, remote)


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.main(make_parser, make_tracer, make_renderer, version=__version__, argv=argv)
