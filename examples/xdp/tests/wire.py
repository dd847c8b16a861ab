# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Two network namespaces with a veth pair between them, and frames to send through it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Callable

DEADLINE_S = 30.0
CLONE_NEWNET = 0x40000000
SOL_PACKET, PACKET_AUXDATA, ETH_P_ALL = 263, 8, 3
VLAN_VALID = 1 << 4  # in the status of struct tpacket_auxdata


def wait_until(true: Callable[[], object], seen: Callable[[], object] = str) -> None:
    """Polls until `true()` holds. Fails after DEADLINE_S with what `seen()` returns."""
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, f"not within {DEADLINE_S} s: {seen()}"
        time.sleep(0.01)


def output(*words: str) -> str:
    """Runs a command that must succeed and returns its output."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def is_up(namespace: str, interface: str) -> bool:
    return "LOWER_UP" in output("ip", "-n", namespace, "link", "show", interface)


_numbers = itertools.count()


class Wire:
    """`v0` in the namespace `here` and `v1` in the namespace `there`, both down.

    It carries only what a test sends, unless `talkative`: then both ends have addresses, and IPv6
    sends its own messages.
    """

    def __init__(self, *, talkative: bool = False) -> None:
        number = next(_numbers)
        self.here, self.there = (f"xdpcount-{os.getpid()}-{number}-{end}" for end in "ht")
        self._talkative = talkative

    def __enter__(self) -> Wire:
        for namespace in (self.here, self.there):
            output("ip", "netns", "add", namespace)
            if not self._talkative:
                setting = "net.ipv6.conf.default.disable_ipv6=1"
                output("ip", "netns", "exec", namespace, "sysctl", "-q", "-w", setting)
        there = ("peer", "name", "v1", "netns", self.there)
        output("ip", "-n", self.here, "link", "add", "v0", "type", "veth", *there)
        if self._talkative:
            for number, end in enumerate(self.ends(), 1):
                for address in (f"192.0.2.{number}/24", f"2001:db8::{number}/64"):
                    nodad = ["nodad"] if ":" in address else []
                    output("ip", "-n", end[0], "address", "add", address, "dev", end[1], *nodad)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for namespace in (self.here, self.there):
            output("ip", "netns", "delete", namespace)

    def ends(self) -> list[tuple[str, str]]:
        """Namespace and interface of each."""
        return [(self.here, "v0"), (self.there, "v1")]

    def up(self) -> None:
        """Sets both ends up, and waits until they are."""
        for namespace, interface in self.ends():
            output("ip", "-n", namespace, "link", "set", interface, "up")
        for end in self.ends():
            wait_until(functools.partial(is_up, *end))

    def down(self) -> None:
        """Sets both ends down, so that no more frames arrive."""
        for namespace, interface in self.ends():
            output("ip", "-n", namespace, "link", "set", interface, "down")

    def received(self) -> tuple[int, int]:
        """Packets and bytes that v0 has received, as its driver counts them."""
        (link,) = json.loads(output("ip", "-n", self.here, "-s", "-j", "link", "show", "v0"))
        return link["stats64"]["rx"]["packets"], link["stats64"]["rx"]["bytes"]

    def attached(self) -> list[Any]:
        """What is attached to v0 according to bpftool and ip."""
        (net,) = json.loads(output("ip", "netns", "exec", self.here, "bpftool", "-j", "net"))
        (link,) = json.loads(output("ip", "-n", self.here, "-j", "link", "show", "v0"))
        return [*net["xdp"], *([link["xdp"]] if "xdp" in link else [])]

    def ping(self, target: str, *options: str) -> str:
        """Pings `target` from the namespace `there`; returns the output."""
        return output("ip", "netns", "exec", self.there, "ping", *options, target)

    @contextlib.contextmanager
    def inside(self, namespace: str) -> Iterator[None]:
        """Moves the calling thread into the namespace for the block."""
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            into(f"/run/netns/{namespace}")
            yield
        finally:
            into(f"/proc/self/fd/{back}")
            os.close(back)

    def socket(self, end: tuple[str, str]) -> socket.socket:
        """A socket for whole frames of one end."""
        with self.inside(end[0]):
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        raw.bind((end[1], 0))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        raw.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        raw.settimeout(DEADLINE_S)
        return raw


def into(path: str) -> None:
    """setns(2), which Python has from 3.12 on."""
    namespace = os.open(path, os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(namespace, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    os.close(namespace)


def receive(raw: socket.socket) -> bytes:
    """A frame, with the outermost VLAN tag, which the kernel removes, put back."""
    frame, control, _, _ = raw.recvmsg(1 << 16, 256)
    for _, kind, data in control:
        status, _, _, _, _, tag, kind_of_tag = struct.unpack("=IIIHHHH", data[:20])
        if kind == PACKET_AUXDATA and status & VLAN_VALID:
            frame = frame[:12] + struct.pack("!HH", kind_of_tag, tag) + frame[12:]
    return frame


# ---- Frames ----

BROADCAST, SOURCE = b"\xff" * 6, b"\x02\0\0\0\0\x01"
V4 = "192.0.2.7", "192.0.2.8"
V6 = "2001:db8::7", "2001:db8::8"


def ethernet(ethertype: int, payload: bytes, *tags: int) -> bytes:
    """A frame with VLAN tags of these kinds."""
    words = b"".join(struct.pack("!HH", kind, 7) for kind in tags)
    return BROADCAST + SOURCE + words + struct.pack("!H", ethertype) + payload


def ipv4(payload: bytes, protocol: int = 1, *, options: bytes = b"", **other: int) -> bytes:
    """A packet; `other` overrides version, words, fragment or length."""
    words = other.get("words", 5 + len(options) // 4)
    first = other.get("version", 4) << 4 | words
    length = other.get("length", 20 + len(options) + len(payload))
    fixed = (first, 0, length, 1, other.get("fragment", 0), 64, protocol, 0)
    addresses = b"".join(socket.inet_aton(address) for address in V4)
    return struct.pack("!BBHHHBBH", *fixed) + addresses + options + payload


def ipv6(payload: bytes, following: int = 58, **other: int) -> bytes:
    """A packet; `other` overrides version or length."""
    fixed = (other.get("version", 6) << 28, other.get("length", len(payload)), following, 64)
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, address) for address in V6)
    return struct.pack("!IHBB", *fixed) + addresses + payload


def extension(following: int, more: int = 0) -> bytes:
    """An IPv6 extension header, not a fragment's, of 8 bytes plus `more` times 8."""
    return struct.pack("!BB", following, more) + bytes(6 + 8 * more)


def fragment(following: int, offset: int, reserved: int = 0) -> bytes:
    """An IPv6 fragment header; the offset is in units of 8 bytes."""
    return struct.pack("!BBHI", following, reserved, offset << 3 | 1, 7)


def icmp(kind: int = 8, sequence: int = 5, data: bytes = bytes(56)) -> bytes:
    """An ICMP message of any version."""
    return struct.pack("!BBHHH", kind, 0, 0, 77, sequence) + data
