# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command: its output, how it ends, and its exit statuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pybootstrap import __version__
from pybootstrap.cli import make_parser
from pybootstrap.render import HEADER
from tests.live.conftest import Start
from tests.support import assert_nothing_is_left, run, run_until

LINE = re.compile(
    r"(?P<time>\d\d:\d\d:\d\d) (?P<event>EXEC |EXIT ) (?P<comm>.{16}) "
    r"(?P<pid>\d+ *) (?P<ppid>\d+ *) (?P<detail>.+)"
)


def lines_of(output: str, pid: int) -> list[str]:
    """Event and last column of one process's lines; checks the form of every line."""
    found = []
    for line in output.splitlines():
        if line + "\n" == HEADER:
            continue
        match = LINE.fullmatch(line)
        assert match, line
        if int(match["pid"]) == pid:
            assert int(match["ppid"]) == os.getpid()
            assert len(match["pid"]) == len(match["ppid"]) == 7
            found.append(f"{match['event'].rstrip()} {match['comm'].rstrip()} {match['detail']}")
    return found


def without_ms(lines: list[str]) -> list[str]:
    return [re.sub(r"\(\d+ms\)", "(_ms)", line) for line in lines]


def test_text(bootstrap: Start) -> None:
    command = bootstrap()
    command.wait_for_header()
    good, _ = run("/bin/true", "unseen")
    bad, _ = run("/bin/sh", "-c", "exit 3")
    killed, _ = run("/bin/sh", "-c", "kill -KILL $$")
    status, out, err = command.end(signal.SIGINT)
    assert (status, err) == (0, "")
    assert without_ms(lines_of(out, good)) == ["EXEC true /bin/true", "EXIT true [0] (_ms)"]
    assert without_ms(lines_of(out, bad)) == ["EXEC sh /bin/sh", "EXIT sh [3] (_ms)"]
    assert without_ms(lines_of(out, killed)) == ["EXEC sh /bin/sh", "EXIT sh [0] (_ms) SIGKILL"]


def test_args(bootstrap: Start) -> None:
    command = bootstrap("--args")
    command.wait_for_header()
    pid, _ = run("/bin/sh", "-c", "exit 3", "a\nb")
    _, out, _ = command.end(signal.SIGTERM)
    assert without_ms(lines_of(out, pid)) == [
        r"EXEC sh /bin/sh -c 'exit 3' 'a\x0ab'",
        r"EXIT sh [3] (_ms) /bin/sh -c 'exit 3' 'a\x0ab'",
    ]


def test_count(bootstrap: Start) -> None:
    command = bootstrap("-n", "3")
    command.wait_for_header()
    for _ in range(5):
        run("/bin/true")
    status, out, _ = command.end()
    assert status == 0
    assert len(out.splitlines()) == 3


def test_output_through_a_pipe_is_not_delayed(bootstrap: Start) -> None:
    command = bootstrap()
    command.wait_for_header()
    run("/bin/true")
    assert command.process.stdout is not None
    assert LINE.fullmatch(command.process.stdout.readline().decode().rstrip("\n"))


def test_a_closed_pipe_ends_it_quietly(bootstrap: Start) -> None:
    command = bootstrap()
    command.wait_for_header()
    assert command.process.stdout is not None
    command.process.stdout.close()
    run_until(lambda: command.process.poll() is not None)
    assert command.process.stderr is not None
    assert (command.process.wait(), command.process.stderr.read()) == (0, b"")
    command.process.stdout = None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_ends_it_and_leaves_nothing(
    bootstrap: Start, number: signal.Signals
) -> None:
    """Also during start-up, although the interpreter handles the signal until main() runs."""
    for delay_ms in range(0, 300, 30):
        command = bootstrap()
        time.sleep(delay_ms / 1000)  # any moment of its start-up
        status, _, err = command.end(number)
        assert status == 0 or not re.search(r'(cli|command)\.py", line \d+, in main', err), err
    assert_nothing_is_left()


# Sends itself SIGINT at the N-th import after that of the command's module.
STRIKES = """
import __future__, os, sys
import pybootstrap
left = int(sys.argv[1]) + 1
def strike(event, arguments):
    global left
    if event == "import" and (left > int(sys.argv[1])) == (arguments[0] == "pybootstrap.cli"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 2)
sys.addaudithook(strike)
from pybootstrap.cli import main
status = main(sys.argv[2:])
sys.exit(3 if left > 0 else status)
"""


def test_a_signal_during_any_import_ends_it_quietly() -> None:
    """During main(), that is: the interpreter itself handles a signal before that."""
    number = 0
    while True:
        number += 1
        command = [sys.executable, "-c", STRIKES, str(number), "--check"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode == 3:
            break
        # 1: during --check, where 0 would mean that the machine can trace.
        assert (ended.returncode in {0, 1}, ended.stderr) == (True, ""), number
    assert number > 20


def test_a_signal_after_the_end_changes_nothing() -> None:
    code = """
import os, signal, sys
from pybootstrap.cli import main
status = main(sys.argv[1:])
os.kill(os.getpid(), signal.SIGINT)
sys.exit(status)
"""
    for arguments, status in ((["-V"], 0), (["-u", "nobody at all"], 2)):
        command = [sys.executable, "-c", code, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == status
        assert ended.stderr.count("\n") == (status != 0)


def test_closed_standard_output_is_an_error(bootstrap: Start) -> None:
    status, _, err = bootstrap("-n", "1", stdout=None, preexec_fn=lambda: os.close(1)).end()
    assert (status, err.count("\n")) == (74, 1)


@pytest.mark.parametrize("option", ["-n1", "--help", "--version", "--check"])
def test_full_standard_output_is_an_error(bootstrap: Start, option: str) -> None:
    with Path("/dev/full").open("wb") as full:
        status, _, err = bootstrap(option, stdout=full).end()
    assert status == 74
    assert err == "bootstrap: cannot write the output: No space left on device\n"


def test_verbose(bootstrap: Start, tmp_path: Path) -> None:
    said = tmp_path / "stderr"  # more than a pipe holds
    with said.open("wb") as stderr:
        command = bootstrap("-v", stderr=stderr)
    command.wait_for_header()
    assert command.end(signal.SIGTERM)[0] == 0
    assert "libbpf: " in said.read_text()


def test_help(bootstrap: Start) -> None:
    assert bootstrap("--help").end() == (0, make_parser().format_help(), "")


def test_version(bootstrap: Start) -> None:
    status, out, _ = bootstrap("--version").end()
    assert status == 0
    assert re.fullmatch(rf"bootstrap {re.escape(__version__)} \(libbpf v[\d.]+\)\n", out)


def test_the_installed_script_is_the_same_command() -> None:
    script = Path(sys.executable).parent / "bootstrap"
    out = subprocess.run([script, "--version"], capture_output=True, check=True, text=True).stdout
    assert out.startswith(f"bootstrap {__version__} ")
