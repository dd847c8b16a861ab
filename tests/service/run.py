# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Runs packaging/systemd/bootstrap.service under systemd as init, and kills it in several ways.

The wheel is installed as docs/fleet.md says. What must hold: the journal accounts for every event,
and shows every gap. Prints a line for each check; ends with status 1 at the first that fails.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import DEADLINE_S, Machine

UNIT = "/opt/pybootstrap/current/share/pybootstrap/bootstrap.service"
PYTHON = "/usr/bin/python3"  # not one in a home directory, which the service cannot see
HIGHEST_EXPOSURE = 1.0  # of systemd-analyze security; from 10 (unsafe) to 0
WATCHDOG_S = 2
# The options show whether it reads the file. The watchdog is made faster, so that the test is.
PREPARE = """
{python} -m venv --without-pip opt/pybootstrap/1
ln -s 1 opt/pybootstrap/current
{pip} --python opt/pybootstrap/current/bin/python install -q {wheel}
sed -i '1s|^#!.*|#!/opt/pybootstrap/current/bin/python|' opt/pybootstrap/1/bin/bootstrap
mkdir -p etc/default etc/systemd/journald.conf.d etc/systemd/system/bootstrap.service.d
echo 'BOOTSTRAP_OPTIONS=--latency 10 --ring-size 64K' >etc/default/bootstrap
printf '[Journal]\\nLineMax=128K\\n' >etc/systemd/journald.conf.d/lines.conf
printf '[Service]\\nWatchdogSec={watchdog}s\\n' >etc/systemd/system/bootstrap.service.d/test.conf
"""

Record = dict[str, Any]


class Service:
    """The service on a machine."""

    def __init__(self, machine: Machine) -> None:
        self.run = machine.run

    def show(self, name: str) -> str:
        return self.run("systemctl", "show", "--value", f"--property={name}", "bootstrap")

    @property
    def pid(self) -> int:
        """The process id of the command, on the machine."""
        return int(self.show("MainPID"))

    def is_restarted(self, pid: int) -> bool:
        """Whether another process than `pid` is the service, and ready."""
        return self.show("ActiveState") == "active" and self.pid not in (0, pid)

    def lines_of(self, pid: int) -> list[Record]:
        """The JSON lines of a run in the journal, in order."""
        fields = "--output-fields=MESSAGE"
        lines = self.run("journalctl", "--all", "--output=json", fields, f"_PID={pid}")
        messages = [json.loads(line)["MESSAGE"] for line in lines.splitlines()]
        return [json.loads(message) for message in messages if message.startswith("{")]

    def began(self, pid: int) -> list[Record]:
        """The same, once the journal has the first line: it may lag behind."""
        wait_until(lambda: self.lines_of(pid), "trace_start in the journal")
        return self.lines_of(pid)

    def ended(self, pid: int) -> list[Record]:
        """The same, once the journal has the last line."""

        def has_end() -> bool:
            return bool(self.began(pid)[-1]["event"] == "trace_end")

        wait_until(has_end, "trace_end in the journal")
        return self.lines_of(pid)

    def make_events(self, number: int) -> None:
        """Runs programs on the machine."""
        self.run("sh", "-c", f"for i in $(seq {number}); do /bin/true; done")


def runs_of(records: list[Record]) -> list[list[Record]]:
    runs: list[list[Record]] = []
    for record in records:
        if record["event"] == "trace_start":
            runs.append([])
        runs[-1].append(record)
    return runs


def wait_until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.1)


def assert_complete(run: list[Record]) -> str:
    """Checks that a run that has ended accounts for every event; returns the account."""
    start, end = run[0], run[-1]
    assert (start["event"], end["event"]) == ("trace_start", "trace_end"), (start, end)
    assert start["run_id"] == end["run_id"]
    counted = end["counters"]
    events = sum(record["event"] in ("exec", "exit") for record in run)
    lost = sum(record["count"] for record in run if record["event"] == "lost")
    assert (events, lost) == (counted["written"], counted["lost"]), (events, lost, counted)
    assert counted["produced"] == events + lost, counted
    return f"{counted['produced']} produced = {events} written + {lost} lost"


def gap(earlier: list[Record], later: list[Record]) -> str:
    return f"no tracing from {earlier[-1]['time'][11:23]} to {later[0]['time'][11:23]}"


# ---- The checks, in this order ----


def check_the_unit(service: Service) -> str:
    """It is valid, and exposes little."""
    service.run("systemctl", "enable", UNIT)
    said = service.run("systemd-analyze", "verify", "--man=no", UNIT)
    assert said == "", said
    report = service.run("systemd-analyze", "--no-pager", "security", "bootstrap.service")
    exposure = re.search(r"Overall exposure level.*: ([\d.]+) (\w+)", report)
    assert exposure is not None, report
    assert float(exposure[1]) <= HIGHEST_EXPOSURE, report
    return f"exposure {exposure[1]} {exposure[2]}"


def check_start(service: Service) -> str:
    """`systemctl start` returns once it traces; what it runs as has no rights left."""
    service.run("systemctl", "start", "bootstrap")
    pid = service.pid
    status = service.run("cat", f"/proc/{pid}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0, status
    assert fields["Uid"].split()[0] != "0", status
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2"), status
    service.make_events(20)
    service.run("/bin/true", "\1" * 8180)  # each takes 6 bytes of JSON
    wait_until(
        lambda: any(len(json.dumps(line)) > 48 << 10 for line in service.began(service.pid)),
        "a line that is longer than journald's default limit, whole",
    )
    settings = service.began(service.pid)[0]["settings"]
    assert (settings["latency"], settings["ring_size"]) == (10, 65536), settings
    return f"user {fields['Uid'].split()[0]}, no capabilities, {service.show('StatusText')!r}"


def check_killed(service: Service) -> str:
    """After SIGKILL systemd starts it again. The run has no trace_end."""
    pid = service.pid
    service.run("kill", "-KILL", str(pid))
    wait_until(lambda: service.is_restarted(pid), "restart after SIGKILL")
    assert service.show("NRestarts") == "1"
    first, second = service.began(pid), service.began(service.pid)
    assert first[-1]["event"] != "trace_end"
    assert first[0]["run_id"] != second[0]["run_id"]
    assert first[0]["boot_id"] == second[0]["boot_id"]
    return gap(first, second)


def check_hung(service: Service) -> str:
    """A command that does not read events is killed by the watchdog and started again."""
    pid = service.pid
    service.run("kill", "-STOP", str(pid))
    wait_until(lambda: service.is_restarted(pid), "restart by the watchdog")
    assert service.show("NRestarts") == "2"
    log = service.run("journalctl", "--output=cat", "--unit=bootstrap", "_PID=1")
    assert "Watchdog timeout" in log, log
    earlier, later = service.began(pid), service.began(service.pid)
    assert earlier[-1]["event"] != "trace_end"
    return gap(earlier, later)


def check_restarted(service: Service) -> str:
    """`systemctl restart` leaves a complete run."""
    pid = service.pid
    service.make_events(50)
    service.run("systemctl", "restart", "bootstrap")
    earlier, later = service.ended(pid), service.began(service.pid)
    account = assert_complete(earlier)
    assert earlier[-1]["reason"] == "signal"
    return f"{account}; {gap(earlier, later)}"


def check_blocked_journal(service: Service) -> str:
    """While journald takes nothing, it is not killed; what is lost is counted."""
    pid = service.pid
    journald = service.run("systemctl", "show", "--value", "--property=MainPID", "systemd-journald")
    service.run("kill", "-STOP", journald)
    try:
        # More than the socket to journald holds, which is 8 MB.
        storm = 'long=$(printf %04000d 0); for i in $(seq 3000); do /bin/true "$long"; done'
        service.run("sh", "-c", storm)
        wait_until(lambda: "waiting" in service.show("StatusText"), "a status that says so")
        time.sleep(3 * WATCHDOG_S)  # the watchdog would act meanwhile
    finally:
        service.run("kill", "-CONT", journald)
    assert service.pid == pid
    wait_until(lambda: "waiting" not in service.show("StatusText"), "the loop to read again")
    service.run("systemctl", "restart", "bootstrap")
    lines = service.ended(pid)
    assert lines[-1]["counters"]["lost"] > 0, "the journal has not blocked it"
    return assert_complete(lines)


def check_killed_journal(service: Service) -> str:
    """systemd keeps the socket for the next journald, so nothing is lost."""
    pid = service.pid
    service.make_events(50)
    service.run("systemctl", "kill", "--signal=KILL", "systemd-journald")
    service.make_events(50)
    service.run("systemctl", "restart", "bootstrap")
    assert service.pid != pid
    return assert_complete(service.ended(pid))


def check_full_disk(service: Service) -> str:
    """On a full disk it ends and is started again; once there is room, it goes on."""
    drop_in = "/run/systemd/system/bootstrap.service.d/file.conf"
    service.run(
        "sh",
        "-c",
        f"""
        mkdir -p {Path(drop_in).parent} /var/small
        mount -t tmpfs -o size=64k tmpfs /var/small
        printf '[Service]\\nStandardOutput=append:/var/small/events\\n' >{drop_in}
        systemctl daemon-reload""",
    )
    restarts = int(service.show("NRestarts"))
    service.run("systemctl", "restart", "bootstrap")
    service.make_events(200)
    wait_until(lambda: int(service.show("NRestarts")) > restarts + 1, "a second restart")
    log = service.run("journalctl", "--output=cat", "--unit=bootstrap", "--lines=200")
    told = re.findall(r"bootstrap: cannot write the output: No space left.*", log)
    assert told, log
    last = service.run("tail", "-n1", "/var/small/events")
    service.run("mount", "-o", "remount,size=64m", "/var/small")
    wait_until(
        lambda: service.run("tail", "-n1", "/var/small/events") != last,
        "events after there was room",
    )
    service.make_events(50)
    service.run("sh", "-c", f"rm {drop_in}; systemctl daemon-reload; systemctl restart bootstrap")
    lines = service.run("cat", "/var/small/events").splitlines()
    *earlier, complete = runs_of([json.loads(line) for line in lines])
    assert earlier
    assert not any(run[-1]["event"] == "trace_end" for run in earlier)
    return f"{told[0]!r}; then {assert_complete(complete)}"


def check_stopped(service: Service) -> str:
    """`systemctl stop` ends it with success."""
    pid = service.pid
    service.make_events(50)
    service.run("systemctl", "stop", "bootstrap")
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    return assert_complete(service.ended(pid))


def check_invalid_option(service: Service) -> str:
    """It is not started again and again, and says why in one line."""
    service.run("sh", "-c", "echo BOOTSTRAP_OPTIONS=--latency 10x >/etc/default/bootstrap")
    restarts = service.show("NRestarts")
    service.run("systemctl", "start", "bootstrap", check=False)
    time.sleep(3)  # RestartSec is 2 s
    names = ("ActiveState", "ExecMainStatus", "NRestarts")
    assert [service.show(name) for name in names] == ["failed", "2", restarts]
    log = service.run("journalctl", "--output=cat", "--unit=bootstrap", "--lines=10")
    said = [line for line in log.splitlines() if line.startswith("bootstrap: ")]
    assert len(said) == 1, log
    return repr(said[0])


CHECKS = (
    check_the_unit,
    check_start,
    check_killed,
    check_hung,
    check_restarted,
    check_blocked_journal,
    check_killed_journal,
    check_full_disk,
    check_stopped,
    check_invalid_option,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--journal", type=Path, metavar="FILE", help="for the journal, in JSON")
    given = parser.parse_args()
    prepare = PREPARE.format(
        python=PYTHON,
        pip=f"{sys.executable} -m pip",
        wheel=given.wheel.resolve(),
        watchdog=WATCHDOG_S,
    )
    with (
        tempfile.TemporaryDirectory() as directory,
        Machine(prepare, Path(directory) / "log") as machine,
    ):
        print(machine.run("systemctl", "--version").splitlines()[0], flush=True)
        try:
            return run_checks(machine)
        finally:
            if given.journal:
                text = machine.run("journalctl", "--all", "--output=json", "--unit=bootstrap")
                given.journal.write_text(text + "\n")


def run_checks(machine: Machine) -> int:
    """Prints a line for each; returns 1 if one has failed."""
    service = Service(machine)
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            print(f"ok      {name}: {check(service)}", flush=True)
        except AssertionError as error:
            print(f"NOT OK  {name}: {str(error)[:2000]}")
            log = machine.run("journalctl", "--no-pager").splitlines()
            print(*[line for line in log if '{"event":"ex' not in line][-30:], sep="\n")
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
