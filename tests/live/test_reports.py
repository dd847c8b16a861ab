# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The reports in JSON output: they say when tracing began and ended, and account for every event.
The synthetic source's own counters are the witness.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pybootstrap._version import __version__
from tests.live.conftest import Feed, Start
from tests.live.source import A, Sender
from tests.live.test_slow_reader import block, traced
from tests.support import (
    Command,
    ns_of,
    run,
    status_of,
    wait_until,
    waits_in,
    without_reports,
)

# A report every 50 ms, so that a test need not wait for minutes.
OFTEN = (
    "from pybootstrap.engine import report; report.STATUS_S = 0.05\n"
    "from pybootstrap.cli import main; raise SystemExit(main())"
)


def reports(out: str | bytes) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in out.splitlines()]
    return [line for line in lines if line["event"].startswith("trace_")]


def test_first_and_last_line(bootstrap: Start) -> None:
    before = time.time_ns()
    command = bootstrap("--json", "--ppid", str(os.getpid()), "-d", "1", "--ring-size", "64K")
    first = command.read_until(bool)
    run("/bin/sleep", "0.01")
    command.read_until(lambda out: b'"exit"' in out)
    detached = time.time_ns()
    status, out, _ = command.end(signal.SIGTERM)
    assert status == 0
    start, end = json.loads(first.splitlines()[0]), json.loads(out.splitlines()[-1])
    assert (start["event"], end["event"]) == ("trace_start", "trace_end")
    assert before < ns_of(start["time"]) < detached < ns_of(end["time"]) < time.time_ns()
    for report in (start, end):
        assert (report["name"], report["version"]) == ("bootstrap", __version__)
        assert report["host"] == os.uname().nodename
        assert report["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert report["settings"]["ppid"] == [os.getpid()]
        assert report["settings"]["duration"] == 1
        assert report["settings"]["ring_size"] == 65536
        assert report["run_id"] == start["run_id"]
    assert re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", start["run_id"])
    assert set(start["counters"].values()) == {0}
    names = "produced received lost missed untracked truncated written"
    assert end["counters"] == {
        **dict.fromkeys(names.split(), 0),
        "produced": 1,
        "received": 1,
        "written": 1,
    }
    assert "reason" not in start
    assert end["reason"] == "signal"


def test_each_run_has_its_own_id(bootstrap: Start) -> None:
    runs = [bootstrap("--json", "--pid", "1") for _ in range(2)]
    assert len({json.loads(r.read_until(bool).splitlines()[0])["run_id"] for r in runs}) == 2


def test_written_and_lost_add_up_to_what_was_produced(
    bootstrap: Start, feed: Feed, tmp_path: Path
) -> None:
    file = tmp_path / "events"
    command = traced(bootstrap, "--ring-size", "64K", "-o", str(file))
    with feed(command.pid) as source:
        for _ in range(3):
            command.stop()
            answer = source.sent(Sender(A, 1000))
            command.process.send_signal(signal.SIGCONT)
            wait_until(lambda: waits_in("epoll", command.pid))
    assert command.end(signal.SIGTERM)[0] == 0
    events = without_reports(file.read_bytes())
    counted = reports(file.read_bytes())[-1]["counters"]
    assert counted["produced"] == answer.produced == 3000
    assert counted["lost"] == answer.lost > 0
    assert counted["written"] == sum(event["event"] == "exec" for event in events)


def test_count_ends_with_a_report_and_counts_only_events(bootstrap: Start, feed: Feed) -> None:
    command = traced(bootstrap, "-n", "3")
    with feed(command.pid) as source:
        source.sent(Sender(A, 10))
    status, out, _ = command.end()
    assert status == 0
    assert len(without_reports(out)) == 3
    end = reports(out)[-1]
    assert (end["reason"], end["counters"]["written"]) == ("count", 3)
    assert end["counters"]["produced"] == 10


def often(bootstrap: Start, *options: str, **popen: object) -> Command:
    return bootstrap(*options, program=("-c", OFTEN), **popen)


def test_an_idle_command_reports_its_status(bootstrap: Start) -> None:
    command = often(bootstrap, "--json", "--pid", "1")
    out = command.read_until(lambda out: out.count(b"trace_status") >= 3)
    out += command.end(signal.SIGTERM)[1].encode()
    assert without_reports(out) == []


def test_a_busy_stream_does_not_delay_the_status(bootstrap: Start, feed: Feed) -> None:
    """Each report counts exactly the events before it."""
    command = often(bootstrap, "--json", "--pid", "1", "--latency", "0")
    command.wait_for_tracing()
    with feed(command.pid) as source:
        source.send(Sender(A, 3000, pace_ms=0.1))
        out = command.read_until(lambda out: out.count(b'"event":"exec"') == 3000)
        source.answer()
    out += command.end(signal.SIGTERM)[1].encode()
    without_reports(out)
    seen, while_busy = 0, 0
    for line in map(json.loads, out.splitlines()):
        if line["event"] == "exec":
            seen += 1
        else:
            assert line["counters"]["written"] == seen
            while_busy += 0 < seen < 3000
    assert while_busy > 1


def test_a_blocked_reader_gets_one_late_report(bootstrap: Start, feed: Feed) -> None:
    command = often(bootstrap, "--json", "--pid", "1")
    command.wait_for_tracing()
    with feed(command.pid) as source:
        block(command, source)
        time.sleep(0.5)  # ten intervals
    out = command.read_until(lambda out: out.count(b'"event":"exec"') == 1000)
    out += command.end(signal.SIGTERM)[1].encode()
    times = [ns_of(report["time"]) for report in reports(out)]
    assert max(later - earlier for earlier, later in zip(times, times[1:])) > 400_000_000
    assert min(later - earlier for earlier, later in zip(times, times[1:-1])) > 45_000_000
    assert len(without_reports(out)) == 1000


def test_a_reader_that_left_gets_no_report_and_ends_it(bootstrap: Start) -> None:
    command = often(bootstrap, "--json", "--pid", "1")
    command.read_until(bool)
    assert command.process.stdout is not None
    command.process.stdout.close()
    command.process.stdout = None
    assert command.end()[::2] == (0, "")


def test_an_error_is_the_reason_of_the_end(bootstrap: Start, feed: Feed) -> None:
    code = (
        "from pybootstrap.engine import decoder, errors\n"
        "from pybootstrap.cli import main\n"
        "def fail(*_): raise errors.RecordError('a bug')\n"
        "decoder.Decoder.decode = fail\n"
        "raise SystemExit(main())"
    )
    command = bootstrap("--json", "--pid", "1", program=("-c", code))
    command.wait_for_tracing()
    with feed(command.pid) as source:
        source.sent(Sender(A, 5))
    status, out, err = command.end()
    assert (status, err) == (1, "bootstrap: a bug\n")
    end = reports(out)[-1]
    assert (end["event"], end["reason"]) == ("trace_end", "error")
    assert (end["counters"]["produced"], end["counters"]["written"]) == (5, 0)


@pytest.mark.parametrize(("options", "wakes"), [([], False), (["--json"], True)])
def test_only_json_wakes_up_an_idle_command(
    bootstrap: Start, options: list[str], wakes: bool
) -> None:
    command = often(bootstrap, "--pid", "1", *options)
    command.read_until(bool)
    wait_until(lambda: waits_in("epoll", command.pid))

    def switches() -> str:
        return status_of(command.pid)["voluntary_ctxt_switches"]

    before = switches()
    time.sleep(0.5)  # ten intervals
    assert (switches() != before) is wakes


def test_a_full_disk_at_the_end(bootstrap: Start) -> None:
    """The last report cannot be written; the message says so."""
    with Path("/dev/full").open("wb") as full:
        status, _, err = bootstrap("--json", "--pid", "1", stdout=full).end()
    assert (status, err) == (74, "bootstrap: cannot write the output: No space left on device\n")
