# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Follows "Installing" in docs/fleet.md, and removes the files of a running tracer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.test_your_own_tool import ROOT, copy_of_the_checkout
from tests.support import Command, run, run_until

PAGE = (ROOT / "docs/fleet.md").read_text()
INSTALLING = PAGE[PAGE.index("## Installing\n") : PAGE.index("## As a service\n")]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", INSTALLING, re.DOTALL | re.MULTILINE)


class Host:
    """A directory that takes the place of / in the commands of the page."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.version = root / "opt/pybootstrap/0.1.0"
        self.command = root / "usr/local/bin/bootstrap"

    def run(self, commands: str) -> subprocess.CompletedProcess[str]:
        for place in ("/opt/", "/usr/local/", "/etc/"):
            commands = commands.replace(place, f"{self.root}{place}")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.root,
            env={**os.environ, "PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host on which every command of the section was run, with a wheel of this checkout."""
    host = Host(tmp_path_factory.mktemp("host"))
    (host.root / "usr/local/bin").mkdir(parents=True)
    checkout = copy_of_the_checkout(host.root / "checkout")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    env = {**os.environ, "V": "", "VMLINUX": ""}
    subprocess.run([*pip, "-w", host.root / "dist", checkout], check=True, env=env)
    for commands in BLOCKS:
        done = host.run(commands)
        assert done.returncode == 0, f"{commands}{done.stdout}{done.stderr}"
    return host


def start(*command: str | Path) -> Command:
    """Starts what was installed, not the command of this checkout."""
    code = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    return Command(program=["-c", code, *map(str, command)])


def test_the_section_has_commands() -> None:
    assert len(BLOCKS) == 4


def test_the_command_traces_where_it_was_installed(host: Host) -> None:
    with start(host.command, "-c", "true", "-n", "2") as command:
        command.wait_for_tracing()
        run_until(lambda: command.process.poll() is not None)
        status, out, err = command.end()
    assert (status, err) == (0, "")
    assert "/true" in out


def test_links_lead_to_the_man_page_the_completions_and_the_unit(host: Host) -> None:
    places = [host.root / "usr/local/share", host.root / "etc"]
    files = [path for place in places for path in place.rglob("*bootstrap*") if path.is_file()]
    names = ["_bootstrap", "bootstrap", "bootstrap.1", "bootstrap.fish", "bootstrap.fish"]
    assert sorted(path.name for path in files) == [*names, "bootstrap.service"]
    current = host.root / "opt/pybootstrap/current"
    assert all(Path(os.readlink(path)).is_relative_to(current) for path in files)


def test_a_wheel_that_was_changed_is_refused(host: Host) -> None:
    (block,) = (block for block in BLOCKS if "--require-hashes" in block)
    command = next(line for line in block.splitlines() if "--require-hashes" in line)
    shutil.copytree(host.root / "wheelhouse", host.root / "changed")
    (wheel,) = (host.root / "changed").glob("pybootstrap_bpf-*.whl")
    with wheel.open("ab") as file:
        file.write(b"\n")
    done = host.run(command.replace("wheelhouse", "changed").replace("-q", "-q --force-reinstall"))
    assert done.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr


@pytest.mark.parametrize("options", [[], ["-j"], ["-a"]])
def test_a_tracer_whose_files_are_removed_goes_on_and_ends_as_usual(
    host: Host, options: list[str], tmp_path: Path
) -> None:
    """Nothing is imported once tracing has begun, even to report a loss."""
    environment = tmp_path / "environment"
    shutil.copytree(host.version, environment, symlinks=True)
    python = [str(environment / "bin/python"), "-I"]  # without the working directory, a checkout
    with start(*python, "-m", "pybootstrap", "--ring-size", "64K", *options) as c:
        c.wait_for_tracing()
        c.stop()
        shutil.rmtree(environment)
        for _ in range(400):
            run("true")
        c.process.send_signal(signal.SIGCONT)
        c.read_until(lambda out: out.count(b"true") > 100)
        status, _, err = c.end(signal.SIGTERM)
    assert status == 0
    assert re.search(r"bootstrap: [0-9]+ of [0-9]+ events were lost: ", err)
    assert [line for line in err.splitlines() if not line.startswith("bootstrap: ")] == []
