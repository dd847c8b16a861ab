# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""A source of records without processes: source.bpf.c and source.c, built and run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pybootstrap.engine.build import BPF_FLAGS, VMLINUX, WARNINGS, find_bpftool, find_clang, run
from tests.support import held_by

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("tests/live")
A, B = (sorted(os.sched_getaffinity(0)) * 2)[:2]


class Size(IntEnum):
    """enum size in source.bpf.c."""

    SMALL = 0
    LARGE = 1
    STALE = 2


class Sender(NamedTuple):
    """Who sends what: see source.c."""

    cpu: int
    number: int = 1
    size: Size = Size.SMALL
    pace_ms: float = 0
    after: int = 0
    hold: int = 0
    delay_ms: float = 0

    def __str__(self) -> str:
        pace_us, delay_us = int(self.pace_ms * 1000), int(self.delay_ms * 1000)
        return (
            f"{self.cpu} {self.number} {self.size:d} {pace_us} {self.after} {self.hold} {delay_us}"
        )


class Answer(NamedTuple):
    submitted_ns: int
    """When the last record was submitted: wall clock."""
    produced: int
    """The Tracer's counters by then."""
    lost: int


def build(directory: Path) -> Path:
    """Compiles the source with what the package was built with; returns the program."""
    setup: Any = pytest.importorskip("setup", reason="needs what builds the package")
    unlinked, linked = directory / "source.unlinked.o", directory / "source.bpf.o"
    skeleton, program = directory / "source.skel.h", directory / "source"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # the paths in setup.py are relative
        libbpf = setup.find_libbpf()
        includes = [f"-I{VMLINUX}", "-Ibpf", *libbpf.include]
        bpftool = find_bpftool()
        compile_bpf = [find_clang(), *BPF_FLAGS, *WARNINGS, *includes]
        run(*compile_bpf, "-c", HERE / "source.bpf.c", "-o", unlinked)
        run(bpftool, "gen", "object", linked, unlinked)
        run(bpftool, "gen", "skeleton", linked, "name", "source_bpf", output=skeleton)
        compile_c = ["cc", "-std=gnu11", "-O2", *WARNINGS, "-pthread", *includes]
        compile_c += [HERE / "source.c", "-isystem", directory, "-o", program]
        run(*compile_c, *libbpf.files, *libbpf.link)
    return program


class Source:
    """The running program, which sends to the one Tracer of a process; in a `with` statement.

    So that nothing else on the machine is measured, the calling thread runs on CPU B, because a
    record that is delayed on A keeps A busy; and it and the program have real-time priority.
    """

    def __init__(self, program: Path, pid: int) -> None:
        maps = [str(number) for kind, number in held_by(pid) if kind == "map"]
        self._process = subprocess.Popen(
            [program, *maps], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Source:
        self.send()  # it answers once it has loaded
        self.answer()
        self._affinity = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {B})
        with contextlib.suppress(PermissionError):  # as some containers have it
            os.sched_setscheduler(self._process.pid, os.SCHED_FIFO, os.sched_param(1))
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, self._affinity)
        self._process.communicate()

    def send(self, *senders: Sender, wait_ms: float = 0) -> None:
        """Has all these send at once, after so long; returns at once. `answer()` comes next."""
        order = "; ".join([str(int(wait_ms * 1000)), *map(str, senders)])
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def sent(self, *senders: Sender) -> Answer:
        """Has all these send at once, and waits until they have."""
        self.send(*senders)
        return self.answer()

    def answer(self) -> Answer:
        """Waits until all have sent."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the source of records has ended"
        return Answer(**json.loads(line))
