# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The checks of guest.py that run the tools of examples/, installed from their wheels."""

from __future__ import annotations

import importlib
import os
import socket
import struct
from typing import Any

from checking import Check

from tests.support import held_by, wait_until_gone

SENT, ANSWERED = b"q" * 5000, b"a" * 70000
PINGS = 20


def converse() -> tuple[int, int]:
    """Exchange a known number of bytes over loopback; return the ports of both ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        served, _ = server.accept()
        ports = client.getsockname()[1], server.getsockname()[1]
        with client, served:
            client.sendall(SENT)
            assert len(served.recv(len(SENT), socket.MSG_WAITALL)) == len(SENT)
            served.sendall(ANSWERED)
            assert len(client.recv(len(ANSWERED), socket.MSG_WAITALL)) == len(ANSWERED)
    return ports


def check_tcplife() -> str:
    """Both ends of each connection are reported, with their bytes and this process."""
    tcplife = importlib.import_module("tcplife")
    with tcplife.Tracer(ring_size=65536) as tracer:
        conversations = [converse() for _ in range(5)]
        tracer.stop()
        events = list(tracer)
        assert tracer.stats.lost == 0, tracer.stats
    for client, server in conversations:
        both = {client, server}
        ends = {e.local_port: e for e in events if {e.local_port, e.remote_port} == both}
        assert set(ends) == both, f"{client} to {server}: {events}"
        counts = {port: (e.sent, e.received) for port, e in ends.items()}
        expected = {client: (len(SENT), len(ANSWERED)), server: (len(ANSWERED), len(SENT))}
        assert counts == expected, f"{counts} instead of {expected}"
        assert {e.pid for e in ends.values()} == {os.getpid()}, events
    return f"{len(conversations)} connections, both ends of each"


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return ~(total + (total >> 16)) & 0xFFFF


def ping(sequence: int) -> None:
    """Send one echo request to this machine, and receive its answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sender:
        sender.settimeout(30)
        head = struct.pack("!BBHHH", 8, 0, 0, 4321, sequence)
        sender.sendto(head[:2] + struct.pack("!H", checksum(head)) + head[4:], ("127.0.0.1", 0))
        while True:
            answer = sender.recv(100)[20:28]
            if answer[0] == 0 and answer[4:] == head[4:]:
                return


def check_xdpcount() -> str:
    """Every echo request is reported, every packet counted and passed, and nothing is left."""
    xdpcount = importlib.import_module("xdpcount")
    with xdpcount.Tracer("lo", ring_size=65536) as tracer:
        held = held_by()
        for sequence in range(PINGS):
            ping(sequence)
        tracer.stop()
        events: list[Any] = list(tracer)
        assert tracer.stats.lost == 0, tracer.stats
        packets, _ = tracer.counts["IPv4 ICMP"]
    echoes = [(e.source, e.target, e.id, e.sequence) for e in events]
    assert echoes == [("127.0.0.1", "127.0.0.1", 4321, n) for n in range(PINGS)], echoes
    assert packets == 2 * PINGS, f"{packets} packets instead of requests and answers"
    wait_until_gone(held)
    return f"{PINGS} echo requests on lo"


CHECKS: tuple[Check, ...] = (check_tcplife, check_xdpcount)
