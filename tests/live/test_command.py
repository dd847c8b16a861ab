# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command that the engine gives any tool, here forks.py; fork(2) is the witness."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Callable
from unittest.mock import ANY

import pytest

from tests.live.test_skeleton import compiled, fork
from tests.support import Command, held_by, wait_until, wait_until_gone, without_reports

Start = Callable[..., Command]
HEADER = "TIME     PARENT CHILD\n"


@pytest.fixture(scope="module")
def forks_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("forks")
    (directory / "forks.bpf.o").write_bytes(compiled(directory, "tests/live/forks.bpf.c"))
    return directory / "forks.bpf.o"


@pytest.fixture
def forks(forks_object: Path) -> Iterator[Start]:
    """Starts the command, which shows forks by this process."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, object_file: Path | None = forks_object) -> Command:
            words = [
                *([str(object_file)] if object_file else []),
                "--of",
                str(os.getpid()),
                *arguments,
            ]
            return stack.enter_context(Command(*words, program=("-m", "tests.live.forks")))

        yield start


def wait_for_tracing(command: Command) -> None:
    wait_until(lambda: "link" in {kind for kind, _ in held_by(command.pid)})


def test_lines_until_a_signal(forks: Start) -> None:
    command = forks()
    assert command.read_until(bool).decode() == HEADER
    held = held_by(command.pid)
    children = [fork() for _ in range(5)]
    status, out, err = command.end(signal.SIGTERM)
    assert (status, err) == (0, "forks: 5 forks were read\n")
    assert [line.split()[1:] for line in out.splitlines()] == [
        [str(os.getpid()), str(child)] for child in children
    ]
    assert held
    wait_until_gone(held)


def test_count_json_and_output_file(forks: Start, tmp_path: Path) -> None:
    command = forks("-j", "-n", "3", "-o", str(tmp_path / "forks"))
    wait_for_tracing(command)
    children = [fork() for _ in range(5)]
    assert command.end()[:2] == (0, "")
    assert without_reports((tmp_path / "forks").read_text()) == [
        {"event": "fork_record", "time": ANY, "parent": os.getpid(), "child": child}
        for child in children[:3]
    ]


def test_default_text_names_every_field(forks: Start) -> None:
    command = forks("--plain", "-n", "1")
    assert command.read_until(bool).decode() == "TIME     EVENT            FIELDS\n"
    child = fork()
    status, out, _ = command.end()
    assert (status, out[8:]) == (0, f" fork_record      parent={os.getpid()} child={child}\n")


FORKS = 2000  # more than the smallest ring holds
SHELL = f"read go; i=0; while [ $i -lt {FORKS} ]; do (:); i=$((i + 1)); done"


def test_losses_are_reported_when_they_happen_and_at_the_end(forks: Start) -> None:
    with subprocess.Popen(["/bin/sh", "-c", SHELL], stdin=subprocess.PIPE) as shell:
        command = forks("--strict", "--ring-size", "64K", "--of", str(shell.pid))
        command.read_until(bool)
        command.stop()
        shell.communicate(b"\n")
    command.process.send_signal(signal.SIGCONT)
    status, out, err = command.end(signal.SIGINT)
    seen = out.count("\n")
    lost = FORKS - seen
    assert status == 1
    assert lost > 0
    assert err == (
        f"forks: {lost} events lost: the ring buffer was full\n"
        f"forks: {lost} of {FORKS} events were lost: {lost} found the ring buffer full "
        "(see --ring-size)\n"
        f"forks: {seen} forks were read\n"
    )


def test_check_names_the_tool(forks: Start) -> None:
    status, out, err = forks("--check").end()
    assert (status, err) == (0, "")
    said = "ok      tracing: ring buffer and programs work; so do forks"
    assert out.splitlines()[-1] == said


def test_its_name_and_version(forks: Start) -> None:
    status, out, _ = forks("--version", object_file=None).end()  # without its object, too
    assert status == 0
    assert out.startswith("forks 7.1 (libbpf v")
    assert forks("--help").end()[1].startswith("usage: forks [-h] [--of PID] [--plain] [-j]")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--of", "none"], 2, "argument --of: 'none' is not a whole number"),
        (["--of", "0"], 2, "nobody sees the forks of process 0"),
        (["--run-as", "nobody at all"], 2, "there is no user 'nobody at all' on this machine"),
        (["-o", "/nowhere/file"], 74, "cannot write the output: /nowhere/file: No such file"),
    ],
)
def test_errors_are_one_line_with_its_name(
    forks: Start, arguments: list[str], status: int, said: str
) -> None:
    ended, out, err = forks(*arguments).end()
    assert (ended, out) == (status, "")
    assert err.splitlines()[-1].startswith(f"forks: {said}")


def test_a_file_that_is_no_object_is_an_error(forks: Start) -> None:
    status, _, err = forks(object_file=Path(__file__)).end()
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("forks: ")
