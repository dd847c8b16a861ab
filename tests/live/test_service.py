# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What the command tells a service manager, here this test: sd_notify(3). tests/service runs it
under systemd.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conftest import Feed, Start
from tests.live.source import A, Sender
from tests.live.test_slow_reader import block
from tests.support import DEADLINE_S, Command, full_pipe, held_by, status_of, wait_until, waits_in


class Manager:
    """Receives what services send. `environ` is that of a service."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0"))
        self.socket.settimeout(DEADLINE_S)
        self.environ = {**os.environ, "NOTIFY_SOCKET": address}

    def next(self) -> list[str]:
        return self.socket.recv(4096).decode().splitlines()

    def received(self) -> list[list[str]]:
        """All that has come and was not read yet."""
        self.socket.setblocking(False)
        messages = []
        try:
            while True:
                messages.append(self.next())
        except BlockingIOError:
            return messages
        finally:
            self.socket.settimeout(DEADLINE_S)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(
        f"@pybootstrap-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    )
    with made.socket:
        yield made


def quiet(
    bootstrap: Start, manager: Manager, *options: str, stderr: int = subprocess.PIPE, **more: str
) -> Command:
    """Starts the command, which shows nothing because init executes nothing."""
    return bootstrap("--pid", "1", *options, env={**manager.environ, **more}, stderr=stderr)


def test_ready_once_it_traces_and_stopping_at_the_end(bootstrap: Start, manager: Manager) -> None:
    command = quiet(bootstrap, manager)
    assert manager.next() == ["READY=1", "STATUS=tracing"]
    assert "link" in {kind for kind, _ in held_by(command.pid)}
    assert status_of(command.pid)["CapEff"] == "0" * 16
    assert command.end(signal.SIGTERM)[::2] == (0, "")
    assert manager.received() == [["STOPPING=1"]]


def test_not_ready_if_it_cannot_trace(bootstrap: Start, manager: Manager) -> None:
    command = quiet(bootstrap, manager, "--cgroup", "/nowhere")
    assert command.end()[0] == 2
    assert manager.received() == [["STOPPING=1"]]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_watchdog_gets_signs_of_life(
    bootstrap: Start, manager: Manager, options: list[str]
) -> None:
    limit_s = 0.4
    command = quiet(bootstrap, manager, *options, WATCHDOG_USEC=str(int(limit_s * 1e6)))
    assert manager.next()[0] == "READY=1"
    before = time.monotonic()
    for _ in range(5):
        assert manager.next() == ["WATCHDOG=1", "STATUS=0 events written, 0 lost"]
    assert time.monotonic() - before < 5 * limit_s
    command.stop()
    manager.received()
    time.sleep(2 * limit_s)  # a stopped process sends nothing
    assert manager.received() == []
    command.process.send_signal(signal.SIGCONT)
    assert manager.next()[0] == "WATCHDOG=1"


def test_no_signs_of_life_for_another_process(bootstrap: Start, manager: Manager) -> None:
    command = quiet(bootstrap, manager, WATCHDOG_USEC="100000", WATCHDOG_PID="1")
    assert manager.next()[0] == "READY=1"
    wait_until(lambda: waits_in("epoll", command.pid))
    before = status_of(command.pid)["voluntary_ctxt_switches"]
    time.sleep(0.5)  # five limits
    assert manager.received() == []
    assert status_of(command.pid)["voluntary_ctxt_switches"] == before


def test_a_reader_that_takes_nothing_does_not_trip_the_watchdog(
    bootstrap: Start, feed: Feed, manager: Manager
) -> None:
    command = quiet(bootstrap, manager, "--json", WATCHDOG_USEC="1000000")
    command.wait_for_tracing()
    with feed(command.pid) as source:
        block(command, source)
    manager.received()
    for _ in range(3):
        assert manager.next()[1].endswith(" written, 0 lost; waiting for the reader of the output")
    command.read_until(lambda out: out.count(b'"event":"exec"') == 1000)
    wait_until(lambda: ["WATCHDOG=1", "STATUS=1000 events written, 0 lost"] in manager.received())
    assert command.end(signal.SIGTERM)[0] == 0


def test_neither_does_a_slow_reader(bootstrap: Start, feed: Feed, manager: Manager) -> None:
    """It always takes something before the command has waited for long."""
    command = quiet(bootstrap, manager, "--json", WATCHDOG_USEC="1000000")
    command.wait_for_tracing()
    assert command.process.stdout is not None
    with feed(command.pid) as source:
        block(command, source)
    manager.received()
    for _ in range(25):
        assert len(os.read(command.process.stdout.fileno(), 4096)) == 4096
        time.sleep(0.1)
    messages = manager.received()
    assert len(messages) >= 5
    assert all(re.fullmatch(r"STATUS=\d+ events written, 0 lost", told) for _, told in messages)


@pytest.mark.parametrize("address", ["/nowhere/notify", "@nobody-listens", "vsock:2:1", "x" * 200])
def test_a_manager_that_is_not_there_does_not_stop_it(bootstrap: Start, address: str) -> None:
    environ = {**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}
    command = bootstrap("--pid", "1", env=environ)
    command.wait_for_header()
    time.sleep(0.3)  # three limits
    status, _, err = command.end(signal.SIGTERM)
    assert (status, err.count("\n")) == (0, 1)
    assert err.startswith("bootstrap: cannot notify the service manager: ")
    assert "None" not in err


def test_a_manager_that_takes_nothing_does_not_keep_it(bootstrap: Start, manager: Manager) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
        flood.setblocking(False)
        flood.connect(manager.socket.getsockname())
        with contextlib.suppress(BlockingIOError):
            while True:
                flood.send(b"")
    command = quiet(bootstrap, manager)
    wait_until(lambda: "link" in {kind for kind, _ in held_by(command.pid)})
    assert command.end(signal.SIGTERM)[::2] == (0, "")


def test_a_message_that_nobody_reads_does_not_trip_the_watchdog(
    bootstrap: Start, feed: Feed, manager: Manager
) -> None:
    """A loss is worth a message; the output has it as well."""
    more = {"WATCHDOG_USEC": "400000"}
    with full_pipe() as writer:
        command = quiet(bootstrap, manager, "--json", "--ring-size", "64K", stderr=writer, **more)
        command.wait_for_tracing()
        with feed(command.pid) as source:
            answer = source.sent(Sender(A, 20_000))
        count = 20_000 - answer.lost
        out = command.read_until(lambda seen: seen.count(b'"event":"exec"') == count)
        manager.received()
        for _ in range(5):
            assert manager.next()[0] == "WATCHDOG=1"
    assert answer.lost > 0
    assert b'"event":"lost"' in out


def test_a_wrong_limit_is_no_watchdog(bootstrap: Start, manager: Manager) -> None:
    for limit in ("0", "-1", "soon", "9" * 5000):
        command = quiet(bootstrap, manager, WATCHDOG_USEC=limit)
        assert manager.next()[0] == "READY=1"
        command.end(signal.SIGTERM)
        assert manager.received() == [["STOPPING=1"]]
