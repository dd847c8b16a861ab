# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Traces connections over loopback; the sockets, ss and /proc are the witnesses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import AF_INET, SHUT_WR, SOCK_DGRAM, socket
from termios import FIONREAD, TIOCOUTQ
from typing import Any

import pytest
from connections import (
    DEADLINE_S,
    Ends,
    close,
    connect,
    ends,
    listen,
    pair,
    pending,
    send,
    this_process,
    wait_until,
)
from tcplife import Closed, Tracer

from pybootstrap import SettingError

LOCALHOSTS = ["127.0.0.1", "::1", "::ffff:127.0.0.1"]


# ---- Events ----


def of(event: Closed) -> Ends:
    return Ends(*(getattr(event, name) for name in Ends._fields))


class Watch:
    """A running Tracer and the events it has reported."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.events: dict[Ends, Closed] = {}

    def read(self, timeout: float) -> None:
        """Takes what is there; waits so many seconds for the first event."""
        for event in self.tracer.read(timeout):
            assert isinstance(event, Closed), event
            assert of(event) not in self.events
            self.events[of(event)] = event

    def closed(self, *wanted: Ends) -> list[Closed]:
        """Waits until these are reported."""

        def all_seen() -> bool:
            self.read(0.1)
            return self.events.keys() >= set(wanted)

        wait_until(all_seen)
        return [self.events[one] for one in wanted]

    def ports(self) -> set[int]:
        """Ends tracing and returns the ports of all reported connections."""
        self.tracer.stop()
        self.read(0)
        return {port for one in self.events for port in (one.local_port, one.remote_port)}


@contextmanager
def watch(kind: type[Tracer] = Tracer, **settings: Any) -> Iterator[Watch]:
    with kind(**settings) as tracer:
        yield Watch(tracer)


def process(event: Closed) -> tuple[int | None, str]:
    return event.pid, event.comm


NOBODY = (None, "")


@contextmanager
def python(code: str, *arguments: object, **popen: Any) -> Iterator[subprocess.Popen[str]]:
    """Runs code in another process, which ends when its standard input is closed."""
    command = [sys.executable, "-c", f"import os, socket, sys\n{code}", *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **popen
    ) as child:
        try:
            yield child
        finally:
            child.kill()


# ---- What is reported ----


@pytest.mark.parametrize("host", LOCALHOSTS)
def test_both_ends_with_addresses_ports_bytes_and_process(host: str) -> None:
    with watch() as seen:
        client, server = pair(host)
        send(client, server, 1000)
        send(server, client, 7)
        wanted = ends(client), ends(server)
        close(client, server)
        of_client, of_server = seen.closed(*wanted)
    assert (of_client.sent, of_client.received) == (1000, 7)
    assert (of_server.sent, of_server.received) == (7, 1000)
    assert process(of_client) == process(of_server) == this_process()


def test_the_duration_is_the_time_from_connect_to_close() -> None:
    with watch() as seen, listen() as listener:
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        client, server = connect(listener)
        connected = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wanted = ends(client), ends(server)
        closing = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        close(client, server)
        events = seen.closed(*wanted)
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    for event in events:
        assert event.duration_ns is not None
        assert closing - connected < event.duration_ns < after - before


def test_a_half_closed_connection_is_not_reported_yet() -> None:
    with watch() as seen:
        client, server = pair()
        wanted = ends(client), ends(server)
        send(client, server, 10)
        client.shutdown(SHUT_WR)
        assert server.recv(1) == b""
        for _ in range(10):
            send(server, client, 20_000)
        close(server, client)
        of_client, of_server = seen.closed(*wanted)
    assert (of_client.sent, of_client.received) == (10, 200_000)
    assert (of_server.sent, of_server.received) == (200_000, 10)


def test_the_accepting_end_may_close_first() -> None:
    with watch() as seen:
        client, server = pair()
        wanted = ends(client), ends(server)
        send(client, server, 10)
        close(server, client)
        of_client, of_server = seen.closed(*wanted)
    assert (of_client.sent, of_client.received) == (10, 0)
    assert (of_server.sent, of_server.received) == (0, 10)


def test_unread_bytes_count_as_received() -> None:
    """Closing a socket with unread data resets the connection."""
    with watch() as seen:
        client, server = pair()
        wanted = ends(client), ends(server)
        client.sendall(bytes(100))
        server.recv(60)
        wait_until(lambda: pending(client, TIOCOUTQ) == 0)
        close(server, client)
        of_client, of_server = seen.closed(*wanted)
    assert (of_client.sent, of_client.received) == (100, 0)
    assert (of_server.sent, of_server.received) == (0, 100)


def test_bytes_and_a_fin_that_were_not_acknowledged() -> None:
    """The receiver's buffer is full, so they wait until it resets the connection."""
    with watch() as seen:
        client, server = pair()
        wanted = ends(client), ends(server)
        client.setblocking(False)
        written = 0
        with suppress(BlockingIOError):
            while True:
                written += client.send(bytes(65536))
        wait_until(lambda: written - pending(client, TIOCOUTQ) == pending(server, FIONREAD))
        arrived = pending(server, FIONREAD)
        client.shutdown(SHUT_WR)
        close(server, client)
        of_client, of_server = seen.closed(*wanted)
    assert (of_client.sent, of_client.received) == (arrived, 0)
    assert (of_server.sent, of_server.received) == (0, arrived)
    assert 0 < arrived < written


def many_at_once() -> list[tuple[Ends, int, int]]:
    """Opens and closes connections; for each end, the bytes it sent and received."""
    Path("/proc/thread-self/comm").write_text("thread")  # not the name of the process
    done = []
    pairs = [pair(LOCALHOSTS[number % 3]) for number in range(150)]
    for number, (client, server) in enumerate(pairs):
        send(client, server, number)
        send(server, client, 2 * number)
        done += [(ends(client), number, 2 * number), (ends(server), 2 * number, number)]
    for number, (client, server) in enumerate(pairs):
        close(*((client, server) if number % 2 else (server, client)))
    return done


def test_many_connections_at_once() -> None:
    """In one thread, because the kernel skips events if threads preempt each other (`missed`)."""
    with watch() as seen, ThreadPoolExecutor(1) as pool:
        wanted = pool.submit(many_at_once).result(DEADLINE_S)
        events = seen.closed(*(end for end, _, _ in wanted))
        connections = seen.tracer.skeleton.maps.connections
        left = [noted for _, noted in connections.items() if noted["pid"] == os.getpid()]
    assert [(of(event), event.sent, event.received) for event in events] == wanted
    assert {process(event) for event in events} == {this_process()}
    assert all(event.duration_ns for event in events)
    assert (left, seen.tracer.untracked, seen.tracer.stats.lost) == ([], 0, 0)


def test_the_kernels_own_counters_agree() -> None:
    with watch() as seen:
        client, server = pair()
        for size in (1, 50_000, 3):
            send(client, server, size)
        send(server, client, 5)
        wanted = ends(client)
        said = subprocess.run(
            ["ss", "-tinH", f"sport = :{wanted.local_port} and dport = :{wanted.remote_port}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        close(client, server)
        (event,) = seen.closed(wanted)
    counted = dict(re.findall(r"(bytes_\w+):(\d+)", said))
    again = int(counted.get("bytes_retrans", 0))
    assert event.sent == int(counted["bytes_sent"]) - again == 50_004
    assert event.received == int(counted["bytes_received"]) == 5


# ---- What is not reported ----


def test_only_established_connections_are_reported() -> None:
    with watch() as seen, listen() as listener:
        nobody = listener.getsockname()
        listener.close()
        with socket() as refused, pytest.raises(ConnectionRefusedError):
            refused.connect(nobody)
        with socket(AF_INET, SOCK_DGRAM) as datagrams:
            datagrams.connect(nobody)
        client, server = pair()
        wanted = ends(client), ends(server)
        close(client, server)
        seen.closed(*wanted)
        assert nobody[1] not in seen.ports()


# ---- Which process ----

CLIENT = """
end = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(end.getsockname()[1], flush=True)
sys.stdin.readline()
"""


def test_a_killed_process_is_named_because_it_connected() -> None:
    with watch() as seen, listen() as listener, python(CLIENT, listener.getsockname()[1]) as it:
        server = listener.accept()[0]
        here = ends(server)
        there = Ends(*here[2:], *here[:2])
        comm = Path(f"/proc/{it.pid}/comm").read_text().rstrip("\n")
        it.kill()
        (of_client,) = seen.closed(there)
        server.close()
        (of_server,) = seen.closed(here)
    assert process(of_client) == (it.pid, comm)
    assert process(of_server) == this_process()


def test_a_reset_by_the_peer_does_not_name_the_peer() -> None:
    reset = "end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0] + [0] * 4))\n"
    with watch() as seen, listen() as listener:
        with python(CLIENT + reset, listener.getsockname()[1]) as it:
            server = listener.accept()[0]
            here = ends(server)
            it.communicate("\n", timeout=DEADLINE_S)
            of_client, of_server = seen.closed(Ends(*here[2:], *here[:2]), here)
        server.close()
    assert of_client.pid == it.pid
    assert process(of_server) == NOBODY


def test_a_connection_never_accepted_has_no_process() -> None:
    with watch() as seen, listen() as listener, socket() as client:
        client.connect(listener.getsockname())
        here = ends(client)
        listener.close()
        of_client, of_server = seen.closed(here, Ends(*here[2:], *here[:2]))
    assert process(of_server) == NOBODY
    assert process(of_client) == this_process()


@contextmanager
def kept(end: socket) -> Iterator[subprocess.Popen[str]]:
    """Another process that also has this socket open."""
    code = "print(flush=True)\nsys.stdin.readline()"
    with python(code, pass_fds=[end.fileno()]) as it:
        assert it.stdout is not None
        it.stdout.readline()
        yield it


def test_a_socket_shared_by_two_processes() -> None:
    """Named is the process that connected, else the one that closes the socket last."""
    with watch() as seen:
        client, server = pair()
        wanted = ends(client), ends(server)
        with kept(client) as other:
            client.close()
            other.communicate("\n", timeout=DEADLINE_S)
        with kept(server) as another:
            server.close()
            another.communicate("\n", timeout=DEADLINE_S)
        of_client, of_server = seen.closed(*wanted)
    assert (of_client.pid, of_server.pid) == (os.getpid(), another.pid)


def test_another_network_namespace() -> None:
    """A namespace of its own can have two IPv6 addresses."""
    script = 'ip link set lo up && ip addr add fd00::2 dev lo nodad && exec "$@"'
    code = """import socket
listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
client = socket.create_connection(listener.getsockname()[:2], source_address=("fd00::2", 0))
server = listener.accept()[0]
client.sendall(b"abc")
server.recv(3)
print(client.getsockname()[1], client.getpeername()[1])
client.close()
"""
    command = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, "-c", code]
    with watch() as seen, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as it:
        here, there = map(int, it.communicate(timeout=DEADLINE_S)[0].split())
        (event,) = seen.closed(Ends("fd00::2", here, "::1", there))
    assert (event.pid, event.sent) == (it.pid, 3)


# ---- Connections from before ----


def test_connections_from_before_have_no_duration() -> None:
    client, server = pair()
    send(client, server, 50)
    wanted = ends(client), ends(server)
    with watch(min_duration_ms=3_600_000) as seen:
        send(client, server, 100)
        send(server, client, 7)
        close(client, server)
        of_client, of_server = seen.closed(*wanted)
    assert of_client.duration_ns is of_server.duration_ns is None
    assert (of_client.sent, of_client.received) == (150, 7)
    assert (of_server.sent, of_server.received) == (7, 150)
    assert process(of_client) == process(of_server) == this_process()


class Small(Tracer):
    def on_open(self, skeleton: Any) -> None:
        super().on_open(skeleton)
        skeleton.maps.connections.max_entries = 4


def test_a_full_table_is_reported_and_loses_no_connection() -> None:
    with watch(Small) as seen, listen() as listener:
        pairs = [connect(listener) for _ in range(20)]
        wanted = [ends(end) for both in pairs for end in both]
        for both in pairs:
            send(*both, 11)
            close(*both)
        events = seen.closed(*wanted)
        stats = seen.tracer.stats
    assert [(event.sent, event.received) for event in events] == [(11, 0), (0, 11)] * 20
    assert sum(event.duration_ns is None for event in events) >= 36
    assert seen.tracer.untracked >= 36
    assert seen.tracer.closing_remarks(stats) == [
        f"{seen.tracer.untracked} times there was no memory to note something of a connection"
    ]


# ---- Filters ----


def test_shorter_connections_are_filtered_out() -> None:
    with watch(min_duration_ms=500) as seen, listen() as listener:
        lasting = connect(listener)
        wanted = [ends(end) for end in lasting]
        short = connect(listener)
        port = short[0].getsockname()[1]
        close(*short)
        time.sleep(0.5)  # the duration that passes the filter
        close(*lasting)
        seen.closed(*wanted)
        assert port not in seen.ports()


def test_the_port_filter_matches_either_end() -> None:
    with listen() as one, listen() as two, listen() as other:
        ports = [listener.getsockname()[1] for listener in (one, two, other)]
        with watch(ports=ports[:2]) as seen:
            close(*connect(other))
            for listener in (one, two):
                client, server = connect(listener)
                wanted = ends(client), ends(server)
                close(client, server)
                seen.closed(*wanted)
            assert ports[2] not in seen.ports()
            assert seen.tracer.stats.produced == 4


@pytest.mark.parametrize(
    "settings",
    [{"ports": [0]}, {"ports": [65536]}, {"ports": ["80"]}, {"min_duration_ms": -1}],
)
def test_invalid_settings_are_refused(settings: Any) -> None:
    with pytest.raises(SettingError):
        Tracer(**settings)
