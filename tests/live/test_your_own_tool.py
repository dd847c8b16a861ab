# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Follows docs/your-own-tool.md as a reader does: runs each command and makes each change."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/your-own-tool.md"
BLOCKS = re.findall(r"^```(sh|diff)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


class Walk(NamedTuple):
    """What following the page has left."""

    tool: Path
    elsewhere: Path
    outputs: list[tuple[str, str]]  # each block of commands and its output

    def output(self, command: str) -> str:
        """The joined outputs of the blocks that contain this command."""
        return "".join(output for block, output in self.outputs if command in block)


def copy_of_the_checkout(target: Path) -> Path:
    """Copies it so that root leaves no files in ours; with what was built, to save time."""
    names = ("bpf", "build", "docs", "libbpf", "LICENSES", "packaging", "pybootstrap", "vmlinux")
    for name in names:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("kernels"))
    for name in ("Makefile", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy2(ROOT / name, target)
    return target


def run(commands: str, directory: Path) -> tuple[str, Path]:
    """Runs a block; returns its output and the directory it ends in."""
    # Hide the variables of a "make test" that may have started us.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    script = commands.replace("sudo ", "") + "pwd"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=directory,
        env={**env, "V": "", "VMLINUX": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{commands}{done.stdout}{done.stderr}"
    output, _, place = done.stdout.rstrip("\n").rpartition("\n")
    return output, Path(place)


def change(diff: str, directory: Path) -> None:
    """Applies a diff; the old lines of each hunk must occur in the file exactly once."""
    for name, text in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", diff, re.DOTALL | re.MULTILINE):
        path = directory / name
        for hunk in text.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(x[1:] for x in lines if x[0] in kept) for kept in (" -", " +"))
            contents = path.read_text()
            assert contents.count(old) == 1, f"{name} has not once:\n{old}"
            path.write_text(contents.replace(old, new))


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Meanwhile starts processes, each of which sends us SIGCHLD when it ends."""
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(0.1):
            subprocess.run(["true"], check=True)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """Follows the page from its first block to the last, while signals are sent."""
    place = tmp_path_factory.mktemp("walk")
    (place / "pybootstrap").mkdir()
    directory = copy_of_the_checkout(place / "pybootstrap")
    outputs = []
    with signals():
        for kind, text in BLOCKS:
            if kind == "diff":
                change(text, directory)
            else:
                output, directory = run(text, directory)
                outputs.append((text, output))
    return Walk(place / "mytool", place / "elsewhere", outputs)


def test_the_first_run_shows_events(walk: Walk) -> None:
    header = walk.output("make new").index("TIME     SIGNAL")
    lines = walk.output("make new")[header:].splitlines()[1:7]
    assert all(re.match(r"\d\d:\d\d:\d\d SIG[A-Z]+ ", line) for line in lines), lines


def test_each_change_passes_its_test(walk: Walk) -> None:
    tests = (walk.tool / "tests/test_mytool.py").read_text().count("\ndef test_")
    passed = re.findall(r"(\d+) passed", walk.output("make test"))
    assert (tests, passed) == (4, ["1", "2", "4"])


def test_json_has_every_field(walk: Walk) -> None:
    (shown,) = re.findall(r"^\{.*\}$", PAGE.read_text(), re.MULTILINE)
    fields = {"sent": list(json.loads(shown)), "delivered": ["event", "time", "signal", "pid"]}
    printed = re.findall(r"^\{.*\}$", walk.output("make run ARGS='-j"), re.MULTILINE)
    first, *events, last = [json.loads(line) for line in printed]
    assert (first["event"], last["event"]) == ("trace_start", "trace_end")
    assert len(events) == 2
    assert [list(event) for event in events] == [fields[event["event"]] for event in events]


def test_the_wheel_runs_where_there_is_no_compiler(walk: Walk) -> None:
    (wheel,) = (walk.tool / "dist").glob("*.whl")
    assert wheel.name == "mytool-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert "mytool/mytool.bpf.o" in archive.namelist()
    with signals():
        alone = subprocess.run(
            [str(walk.elsewhere / "bin/mytool"), "-n", "1"],
            cwd="/",
            env={"PATH": "/none"},
            capture_output=True,
            text=True,
            check=True,
        )
    for output in (alone.stdout, walk.output("elsewhere/bin/mytool")):
        assert re.search(r"^\d\d:\d\d:\d\d SIG[A-Z]+ ", output, re.MULTILINE), output
