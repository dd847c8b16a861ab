# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Runs the program on a veth pair; ping and the interface's own counters are the witnesses."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import wire as frames
from wire import Wire, ethernet, extension, fragment, icmp, ipv4, ipv6, receive, wait_until
from xdpcount import Echo, Tracer

from pybootstrap.engine import LostEvent

ETHERNET_HEADER = 14
MIN_FRAME = 14  # the kernel sends no frame without a header
IPV4, ARP, VLAN, IPV6, LLDP, QINQ = 0x800, 0x806, 0x8100, 0x86DD, 0x88CC, 0x88A8
HOP_BY_HOP, TCP, UDP, ROUTING, FRAGMENT, ESP, ICMP, NONE, OPTIONS = 0, 6, 17, 43, 44, 50, 58, 59, 60


@contextlib.contextmanager
def tracing(wire: Wire, **settings: Any) -> Iterator[Tracer]:
    """Starts a Tracer on v0, then sets v0 up."""
    tracer = Tracer("v0", **settings)
    with wire.inside(wire.here):
        tracer.start()
    try:
        wire.up()
        yield tracer
    finally:
        tracer.close()


Counts = dict[str, tuple[int, int]]


def counted(tracer: Tracer) -> Counts:
    tracer.stats  # noqa: B018
    return dict(tracer.counts)


def total(tracer: Tracer) -> tuple[int, int]:
    """The packets and bytes of all protocols together."""
    packets, size = zip(*counted(tracer).values()) if counted(tracer) else ((), ())
    return sum(packets), sum(size)


def events(tracer: Tracer, count: int) -> list[Any]:
    """Reads `count` events."""
    found: list[Any] = []

    def enough() -> bool:
        found.extend(tracer.read(0.1))
        return len(found) >= count

    wait_until(enough, lambda: found)
    return found


def send(wire: Wire, tracer: Tracer, *sent: bytes) -> tuple[Counts, list[Echo]]:
    """Sends frames; returns their counts and events."""
    before, packets = counted(tracer), total(tracer)[0]
    with wire.socket((wire.there, "v1")) as raw:
        for frame in sent:
            raw.send(frame)
    wait_until(lambda: total(tracer)[0] >= packets + len(sent), lambda: counted(tracer))
    after = counted(tracer)
    changes = {
        name: (packets - before.get(name, (0, 0))[0], size - before.get(name, (0, 0))[1])
        for name, (packets, size) in after.items()
    }
    return {name: change for name, change in changes.items() if any(change)}, tracer.read(0)


# ---- Real ping, real counters ----


@pytest.mark.parametrize(
    ("source", "target"), [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")]
)
@pytest.mark.parametrize("size", [0, 56, 1000])
def test_every_request_of_ping_is_an_event(
    talkative: Wire, source: str, target: str, size: int
) -> None:
    with tracing(talkative) as tracer:
        said = talkative.ping(target, "-c", "20", "-i", "0.002", "-e", "4242", "-s", str(size))
        sent = [int(number) for number in re.findall(r"icmp_seq=(\d+)", said)]
        assert sent == list(range(1, 21))  # each was answered, so each was passed on
        echos = events(tracer, 20)
        assert [echo.sequence for echo in echos] == sent
        same = {(echo.source, echo.target, echo.id, echo.length) for echo in echos}
        assert same == {(source, target, 4242, 8 + size)}
    assert tracer.stats[:3] == (20, 20, 0)


def exchange(wire: Wire, size: int) -> None:
    """Sends `size` bytes there and back over TCP."""

    def echo() -> None:
        peer, _ = server.accept()
        with peer:
            while data := peer.recv(1 << 16):
                peer.sendall(data)

    def ask() -> None:
        client.sendall(bytes(size))
        client.shutdown(socket.SHUT_WR)

    with wire.inside(wire.here):
        server = socket.create_server(("192.0.2.1", 0))
    thread = threading.Thread(target=echo)
    thread.start()
    with wire.inside(wire.there):
        client = socket.create_connection(server.getsockname(), frames.DEADLINE_S)
    with server, client:
        sender = threading.Thread(target=ask)
        sender.start()
        back = 0
        while data := client.recv(1 << 16):
            back += len(data)
        sender.join()
    thread.join()
    assert back == size


def test_counts_agree_with_the_interface(talkative: Wire) -> None:
    with tracing(talkative) as tracer:
        for target in ("192.0.2.1", "2001:db8::1"):
            talkative.ping(target, "-c", "10", "-i", "0.002", "-s", "5000")  # in fragments
        exchange(talkative, 3_000_000)
        talkative.down()
        packets, size = talkative.received()
        assert total(tracer) == (packets, size + packets * ETHERNET_HEADER)  # veth omits it
        counts = counted(tracer)
    assert counts["IPv4 ICMP"][0] == 10 * 4
    assert counts["IPv6 ICMPV6"][0] >= 10 * 4
    assert counts["IPv4 TCP"][1] > 3_000_000
    assert set(counts) <= {"IPv4 ICMP", "IPv4 TCP", "IPv6 ICMPV6", "other"}


# ---- Frames ----

ADDRESSES = {4: frames.V4, 6: frames.V6}
REQUEST, REQUEST_V6 = icmp(8), icmp(128)
CHAIN = extension(OPTIONS) + extension(ROUTING, 2) + extension(FRAGMENT) + fragment(ICMP, 0)

# By name: the frame, its protocol, and the version and length of its event, or None.
FRAMES: dict[str, tuple[bytes, str, tuple[int, int] | None]] = {
    "request": (ethernet(IPV4, ipv4(REQUEST)), "IPv4 ICMP", (4, 64)),
    "reply": (ethernet(IPV4, ipv4(icmp(0))), "IPv4 ICMP", None),
    "request of v6 in v4": (ethernet(IPV4, ipv4(REQUEST_V6)), "IPv4 ICMP", None),
    "options": (ethernet(IPV4, ipv4(REQUEST, options=bytes(4))), "IPv4 ICMP", (4, 64)),
    "all options": (ethernet(IPV4, ipv4(REQUEST, options=bytes(40))), "IPv4 ICMP", (4, 64)),
    "header of 16 bytes": (ethernet(IPV4, ipv4(REQUEST, words=4)), "other", None),
    "header of version 6": (ethernet(IPV4, ipv4(REQUEST, version=6)), "other", None),
    "length below header": (ethernet(IPV4, ipv4(REQUEST, length=19)), "IPv4 ICMP", None),
    "length cuts ICMP": (ethernet(IPV4, ipv4(REQUEST, length=27)), "IPv4 ICMP", None),
    "length cuts data": (ethernet(IPV4, ipv4(REQUEST, length=28)), "IPv4 ICMP", (4, 8)),
    "padding": (ethernet(IPV4, ipv4(icmp(data=b"x")) + bytes(30)), "IPv4 ICMP", (4, 9)),
    "first fragment": (ethernet(IPV4, ipv4(REQUEST, fragment=0x2000)), "IPv4 ICMP", (4, 64)),
    "do not fragment": (ethernet(IPV4, ipv4(REQUEST, fragment=0x4000)), "IPv4 ICMP", (4, 64)),
    "later fragment": (ethernet(IPV4, ipv4(REQUEST, fragment=0x2001)), "IPv4 ICMP", None),
    "last fragment": (ethernet(IPV4, ipv4(REQUEST, fragment=0x1FFF)), "IPv4 ICMP", None),
    "UDP": (ethernet(IPV4, ipv4(REQUEST, 17)), "IPv4 UDP", None),
    "protocol 254": (ethernet(IPV4, ipv4(b"", 254)), "IPv4 254", None),
    "VLAN": (ethernet(IPV4, ipv4(REQUEST), VLAN), "IPv4 ICMP", (4, 64)),
    "QinQ": (ethernet(IPV6, ipv6(REQUEST_V6), QINQ, VLAN), "IPv6 ICMPV6", (6, 64)),
    "three tags": (ethernet(IPV4, ipv4(REQUEST), QINQ, VLAN, VLAN), "other", None),
    "ARP": (ethernet(ARP, bytes(28)), "other", None),
    "ARP in VLAN": (ethernet(ARP, bytes(28), VLAN), "other", None),
    "LLDP": (ethernet(LLDP, bytes(46)), "other", None),
    "802.3": (ethernet(46, bytes(46)), "other", None),
    "v6 request": (ethernet(IPV6, ipv6(REQUEST_V6)), "IPv6 ICMPV6", (6, 64)),
    "v6 reply": (ethernet(IPV6, ipv6(icmp(129))), "IPv6 ICMPV6", None),
    "v4 request in v6": (ethernet(IPV6, ipv6(REQUEST, 1)), "IPv6 ICMP", None),
    "v6 header of version 4": (ethernet(IPV6, ipv6(REQUEST_V6, version=4)), "other", None),
    "v6 length cuts ICMP": (ethernet(IPV6, ipv6(REQUEST_V6, length=7)), "IPv6 ICMPV6", None),
    "v6 UDP": (ethernet(IPV6, ipv6(bytes(8), UDP)), "IPv6 UDP", None),
    "v6 no next header": (ethernet(IPV6, ipv6(b"", NONE)), "IPv6 NONE", None),
    "v6 ESP": (ethernet(IPV6, ipv6(bytes(16), ESP)), "IPv6 ESP", None),
    "hop by hop": (
        ethernet(IPV6, ipv6(extension(ICMP) + REQUEST_V6, HOP_BY_HOP)),
        "IPv6 ICMPV6",
        (6, 64),
    ),
    "longest extension": (
        ethernet(IPV6, ipv6(extension(ICMP, 150) + REQUEST_V6, OPTIONS)),
        "IPv6 ICMPV6",
        (6, 64),
    ),
    "extension beyond the end": (
        ethernet(IPV6, ipv6(extension(ICMP)[:1] + b"\xff" + bytes(6) + REQUEST_V6, OPTIONS)),
        "IPv6 ICMPV6",
        None,
    ),
    "four extensions": (
        ethernet(IPV6, ipv6(CHAIN + REQUEST_V6, HOP_BY_HOP)),
        "IPv6 ICMPV6",
        (6, 64),
    ),
    "eight extensions": (
        ethernet(IPV6, ipv6(extension(OPTIONS) * 7 + extension(ICMP) + REQUEST_V6, OPTIONS)),
        "IPv6 ICMPV6",
        (6, 64),
    ),
    "nine extensions": (
        ethernet(IPV6, ipv6(extension(OPTIONS) * 8 + extension(ICMP) + REQUEST_V6, OPTIONS)),
        "IPv6 DSTOPTS",
        None,
    ),
    "v6 first fragment": (
        ethernet(IPV6, ipv6(fragment(ICMP, 0, 9) + REQUEST_V6, FRAGMENT)),
        "IPv6 ICMPV6",
        (6, 64),
    ),
    "v6 later fragment": (
        ethernet(IPV6, ipv6(fragment(ICMP, 1) + REQUEST_V6, FRAGMENT)),
        "IPv6 ICMPV6",
        None,
    ),
    "v6 later fragment with options": (
        ethernet(IPV6, ipv6(fragment(OPTIONS, 1) + extension(ICMP) + REQUEST_V6, FRAGMENT)),
        "IPv6 DSTOPTS",
        None,
    ),
}


@pytest.fixture(scope="module")
def tracer_on_wire() -> Iterator[tuple[Wire, Tracer]]:
    """One Tracer for all frames, because setting it up takes longer than a test."""
    with Wire() as wire, tracing(wire) as tracer:
        yield wire, tracer


@pytest.mark.parametrize("name", FRAMES)
def test_each_kind_of_frame_is_counted(tracer_on_wire: tuple[Wire, Tracer], name: str) -> None:
    wire, tracer = tracer_on_wire
    frame, protocol, expected = FRAMES[name]
    counts, seen = send(wire, tracer, frame)
    assert counts == {protocol: (1, len(frame))}
    assert tracer.stats.lost == 0
    if expected is None:
        assert seen == []
        return
    version, length = expected
    (echo,) = seen
    assert (echo.source, echo.target) == ADDRESSES[version]
    assert (echo.id, echo.sequence, echo.length) == (77, 5, length)


def tagged_with_options(sequence: int) -> bytes:
    return ethernet(IPV4, ipv4(icmp(8, sequence), options=bytes(8)), QINQ, VLAN)


def extended(sequence: int) -> bytes:
    return ethernet(IPV6, ipv6(CHAIN + icmp(128, sequence), HOP_BY_HOP))


@pytest.mark.parametrize(
    ("make", "whole", "least", "cut_names"),
    [
        (tagged_with_options, "IPv4 ICMP", 22 + 28 + 8, {22 + 20: "other"}),
        (
            extended,
            "IPv6 ICMPV6",
            14 + 40 + 48 + 8,
            {
                54: "other",
                54 + 8: "IPv6 HOPOPTS",
                62 + 8: "IPv6 DSTOPTS",
                70 + 24: "IPv6 ROUTING",  # 16 of these bytes belong to the previous header
                94 + 8: "IPv6 FRAGMENT",
            },
        ),
    ],
    ids=["IPv4", "IPv6"],
)
def test_a_truncated_frame_counts_as_far_as_it_can_be_read(
    tracer_on_wire: tuple[Wire, Tracer],
    make: Callable[[int], bytes],
    whole: str,
    least: int,
    cut_names: dict[int, str],
) -> None:
    """A frame cut at each byte; it is an event if its ICMP header is whole."""
    wire, tracer = tracer_on_wire
    cuts = range(MIN_FRAME, len(make(0)))
    counts, seen = send(wire, tracer, *(make(cut)[:cut] for cut in cuts))
    expected: Counts = {}
    for cut in cuts:
        name = next((name for end, name in cut_names.items() if cut < end), whole)
        packets, size = expected.get(name, (0, 0))
        expected[name] = packets + 1, size + cut
    assert counts == expected
    assert sorted(echo.sequence for echo in seen) == [cut for cut in cuts if cut >= least]


def test_every_frame_is_passed_on_unchanged(wire: Wire) -> None:
    here, there = wire.ends()
    with tracing(wire), wire.socket(here) as receiver, wire.socket(there) as sender:
        for name, (frame, _, _) in FRAMES.items():
            sender.send(frame)
            assert receive(receiver) == frame, name


def test_lost_events_are_counted(wire: Wire) -> None:
    frame, _, _ = FRAMES["request"]
    with tracing(wire, ring_size=65536) as tracer:
        with wire.socket((wire.there, "v1")) as raw:
            for _ in range(3000):
                raw.send(frame)
        wait_until(lambda: total(tracer)[0] == 3000, lambda: counted(tracer))
        tracer.stop()
        seen = list(tracer)
        stats = tracer.stats
    lost = sum(event.count for event in seen if isinstance(event, LostEvent))
    assert 0 < lost < 3000
    assert stats.produced == 3000 == stats.received + lost
    assert tracer.counts == {"IPv4 ICMP": (3000, 3000 * len(frame))}
