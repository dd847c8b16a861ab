"""These tests load the BPF program, as root, and compare events with signals that they send."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable

from mytool import Tracer

DEADLINE_S = 30


def read_until(tracer: Tracer, seen: Callable[[Any], bool]) -> list[Any]:
    """The events up to one for which seen(event) is true."""
    events: list[Any] = []
    end = time.monotonic() + DEADLINE_S
    while not any(map(seen, events)):
        assert time.monotonic() < end, events
        events += tracer.read(timeout=1)
    return events


def test_a_signal_is_reported_with_sender_and_receiver() -> None:
    with Tracer(signal=signal.SIGTERM) as tracer, subprocess.Popen(["sleep", "60"]) as child:
        comm = Path(f"/proc/{child.pid}/comm").read_text().strip()
        child.send_signal(signal.SIGWINCH)  # counted, and not reported
        child.terminate()
        assert child.wait(DEADLINE_S) == -signal.SIGTERM
        events = read_until(tracer, lambda event: event.pid == child.pid)
        others = tracer.skeleton.bss.others
    assert {event.signal for event in events} == {signal.SIGTERM}
    (sent,) = [event for event in events if event.pid == child.pid]
    assert (sent.comm, sent.sender_pid, sent.ignored) == (comm, os.getpid(), False)
    assert others >= 1
