# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command xdpcount: what it prints, how it ends, and that nothing stays in the kernel."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
import xdpcount
from wire import DEADLINE_S, Wire, ethernet, icmp, ipv4, output, wait_until

RUN = "import sys, xdpcount; sys.exit(xdpcount.main())"
ETHERNET_HEADER = 14
REQUEST = ethernet(0x800, ipv4(icmp()))


class Command:
    """A running xdpcount."""

    def __init__(self, wire: Wire, directory: Path, *arguments: str, **environment: str) -> None:
        self._wire = wire
        self._paths = [directory / name for name in ("out", "err")]
        path = str(Path(xdpcount.__file__).parents[1])
        words = ["ip", "netns", "exec", wire.here, sys.executable, "-c", RUN, *arguments]
        with contextlib.ExitStack() as stack:
            out, err = (stack.enter_context(path.open("wb")) for path in self._paths)
            self.process = subprocess.Popen(
                words,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": path, **environment},
            )

    def said(self) -> tuple[str, str]:
        """What it has written to standard output and standard error."""
        out, err = (path.read_text() for path in self._paths)
        return out, err

    def wait_until_attached(self) -> Command:
        wait_until(lambda: self._wire.attached() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()
        return self

    def wait_for_lines(self, count: int) -> None:
        wait_until(lambda: self.said()[0].count("\n") >= count, self.said)

    def end(self, number: int | None = signal.SIGINT) -> tuple[int, str, str]:
        """Sends the signal, if one is given, and returns the status and all output."""
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(DEADLINE_S)
        return (status, *self.said())


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the command on a wire; at the end of the test, kills it if it still runs."""
    running: list[Command] = []

    def run(wire: Wire, *arguments: str, **environment: str) -> Command:
        directory = tmp_path / str(len(running))
        directory.mkdir()
        running.append(Command(wire, directory, *arguments, **environment))
        return running[-1]

    yield run
    for command in running:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()


def programs() -> set[int]:
    """The ids of programs in the kernel with our program's name."""
    listed = json.loads(output("bpftool", "-j", "prog", "list"))
    return {program["id"] for program in listed if program.get("name") == "on_packet"}


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = programs()
    yield
    wait_until(lambda: programs() <= before, programs)


def counts(err: str) -> dict[str, tuple[int, int]]:
    """The counts it prints at its end: packets and bytes by protocol."""
    lines = re.findall(r"^xdpcount: (.*): (\d+) packets, (\d+) bytes$", err, re.MULTILINE)
    assert len(lines) == err.count("\n"), err
    return {name: (int(packets), int(size)) for name, packets, size in lines}


def send(wire: Wire, frame: bytes, count: int = 1) -> None:
    with wire.socket((wire.there, "v1")) as raw:
        for _ in range(count):
            raw.send(frame)


def test_ping_until_ctrl_c(talkative: Wire, start: Start) -> None:
    command = start(talkative, "v0").wait_until_attached()
    talkative.up()
    for target in ("192.0.2.1", "2001:db8::1"):
        talkative.ping(target, "-c", "3", "-i", "0.002", "-e", "7")
    command.wait_for_lines(7)
    talkative.down()
    packets, size = talkative.received()
    status, out, err = command.end(signal.SIGINT)
    assert status == 0
    header, *lines = out.splitlines()
    assert header.split() == ["TIME", "EVENT", "FIELDS"]
    ends = ("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")
    assert [line.split()[1:] for line in lines] == [
        ["echo", f"source={source}", f"target={target}", "id=7", f"sequence={number}", "length=64"]
        for source, target in ends
        for number in (1, 2, 3)
    ]
    counted = counts(err).values()
    assert sum(count[0] for count in counted) == packets
    assert sum(count[1] for count in counted) == size + packets * ETHERNET_HEADER
    assert talkative.attached() == []


def test_json(wire: Wire, start: Start) -> None:
    command = start(wire, "-j", "-n", "2", "v0").wait_until_attached()
    wire.up()
    send(wire, REQUEST, 2)
    status, out, err = command.end(None)
    assert (status, counts(err)) == (0, {"IPv4 ICMP": (2, 2 * len(REQUEST))})
    first, *events, last = map(json.loads, out.splitlines())
    assert (first["event"], last["event"], last["name"]) == ("trace_start", "trace_end", "xdpcount")
    for event in events:
        assert event.pop("time")
        expected = {"source": "192.0.2.7", "target": "192.0.2.8", "id": 77, "sequence": 5}
        assert event == {"event": "echo", **expected, "length": 64}


def test_nothing_is_left_after_sigkill(wire: Wire, start: Start) -> None:
    command = start(wire, "v0").wait_until_attached()
    wire.up()
    command.end(signal.SIGKILL)
    wait_until(lambda: wire.attached() == [], wire.attached)


def test_under_sudo_it_counts_as_the_calling_user(wire: Wire, start: Start) -> None:
    command = start(wire, "v0", SUDO_UID="65534", SUDO_GID="65534").wait_until_attached()
    command.wait_for_lines(1)  # by then it runs as that user
    status = Path(f"/proc/{command.process.pid}/status").read_text()
    assert re.search(r"^Uid:(\t65534){4}$", status, re.MULTILINE), status
    wire.up()
    send(wire, REQUEST)
    command.wait_for_lines(2)
    code, _, err = command.end()
    assert (code, counts(err)) == (0, {"IPv4 ICMP": (1, len(REQUEST))})


def test_counting_begins_when_the_interface_is_up(wire: Wire, start: Start) -> None:
    command = start(wire, "v0").wait_until_attached()
    for _ in range(2):
        wire.up()
        send(wire, REQUEST)
        wire.down()
    command.wait_for_lines(3)
    status, _, err = command.end()
    assert (status, counts(err)) == (0, {"IPv4 ICMP": (2, 2 * len(REQUEST))})


def test_an_interface_may_be_removed_while_tracing(wire: Wire, start: Start) -> None:
    command = start(wire, "v0").wait_until_attached()
    wire.up()
    send(wire, REQUEST)
    command.wait_for_lines(2)
    output("ip", "-n", wire.here, "link", "delete", "v0")
    assert command.process.poll() is None
    status, _, err = command.end()
    assert (status, counts(err)) == (0, {"IPv4 ICMP": (1, len(REQUEST))})


@pytest.mark.parametrize("name", ["v2", "", "v0/..", "a" * 300])
def test_a_missing_interface_is_an_error(wire: Wire, start: Start, name: str) -> None:
    message = f"xdpcount: there is no network interface {name!r}\n"
    assert start(wire, name).end(None) == (2, "", message)


def test_a_second_command_on_the_same_interface_fails(wire: Wire, start: Start) -> None:
    first = start(wire, "v0").wait_until_attached()
    status, out, err = start(wire, "v0").end(None)
    assert (status, out) == (1, "")
    assert re.fullmatch(
        r"xdpcount: cannot attach on_packet to v0: Device or resource busy.*\n", err
    )
    wire.up()
    send(wire, REQUEST)
    first.wait_for_lines(2)
    assert first.end()[0] == 0
    third = start(wire, "v0").wait_until_attached()
    assert third.end()[0] == 0


def test_an_mtu_too_large_for_xdp_is_an_error(wire: Wire, start: Start) -> None:
    for namespace, interface in wire.ends():
        output("ip", "-n", namespace, "link", "set", interface, "mtu", "9000")
    status, out, err = start(wire, "v0").end(None)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"xdpcount: cannot attach on_packet to v0: .*\n", err)
