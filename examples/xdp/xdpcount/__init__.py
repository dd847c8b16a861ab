# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Counts the packets that come in through a network interface, and reports echo requests.

with Tracer("eth0") as tracer:
    for echo in tracer:
        print(echo.source, echo.sequence)
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pybootstrap import engine
from pybootstrap.engine import Event, Skeleton, command, field, options

OBJECT = Path(__file__).with_name("xdpcount.bpf.o").read_bytes()
PROTOCOLS = {value: key[8:] for key, value in vars(socket).items() if key.startswith("IPPROTO_")}
# What each index of the map counts, in the order of xdpcount.bpf.c.
NAMES = [f"IPv{version} {PROTOCOLS.get(n, n)}" for version in (4, 6) for n in range(256)]
NAMES.append("other")


def _source(addresses: bytes, version: int) -> str:
    if version == 4:
        return socket.inet_ntop(socket.AF_INET, addresses[:4])
    return socket.inet_ntop(socket.AF_INET6, addresses[:16])


def _target(addresses: bytes, version: int) -> str:
    return _source(addresses[4 if version == 4 else 16 :], version)


class Echo(Event, object=OBJECT, struct="echo"):
    """An ICMP or ICMPv6 echo request came in."""

    __slots__ = ()
    source: str = field("addresses", "version", convert=_source, doc="Who asks: IPv4 or IPv6.")
    target: str = field("addresses", "version", convert=_target, doc="Who is asked.")
    id: int = field(doc="The same in all requests of one ping.")
    sequence: int = field(doc="The number of the request; 65535 is followed by 0.")
    length: int = field(doc="Bytes of the ICMP message; if it is in fragments, of the first one.")


class Tracer(engine.Tracer):
    """Traces one interface, given by its name; the events are echo requests.

    Reading `stats` updates `counts`: packets and bytes by protocol.
    """

    OBJECT = OBJECT
    EVENTS = (Echo,)

    def __init__(self, interface: str, on_event: Any = None, **common: Any) -> None:
        super().__init__(on_event, **common)
        self.counts: dict[str, tuple[int, int]] = {}
        self._interface = interface

    def attach(self, skeleton: Skeleton) -> None:
        """Attaches to the interface, which the section of an XDP program does not name."""
        skeleton.progs.on_packet.attach_xdp(self._interface)

    def count(self, skeleton: Skeleton, produced: int, received: int, lost: int) -> Any:
        """Returns the engine's `stats`; updates `counts`."""
        with suppress(PermissionError):  # before Linux 5.19, without CAP_BPF
            for name, (_, cpus) in zip(NAMES, skeleton.maps.counts.items()):
                packets, size = (sum(cpu[what] for cpu in cpus) for what in ("packets", "bytes"))
                if packets:
                    self.counts[name] = packets, size
        return super().count(skeleton, produced, received, lost)

    def closing_remarks(self, stats: Any) -> list[str]:  # noqa: ARG002
        """Returns the last lines of the command."""
        lines = [f"{name}: {n} packets, {size} bytes" for name, (n, size) in self.counts.items()]
        return lines or ["no counts: no packets, or this Linux (before 5.19) keeps them from users"]


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = options.make_parser("xdpcount", "Shows pings to an interface, and counts its packets.")
    parser.add_argument("interface", metavar="INTERFACE", help="its name, such as eth0")
    options.add_common(parser)
    return parser


def make_tracer(given: argparse.Namespace, **common: Any) -> Tracer:
    """Returns the Tracer that the command line asks for."""
    return Tracer(given.interface, **common)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.main(make_parser, make_tracer, version="0.1", argv=argv)
