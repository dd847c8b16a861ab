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
    """Which CPU sends what: see source.c."""

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
    """The wall-clock time at which the last record was submitted."""
    produced: int
    """The Tracer's counters at that time."""
    lost: int


def build(directory: Path) -> Path:
    """Compiles the source with the package's libbpf; returns the program."""
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
    """The running program, in a `with` statement. It sends to the only Tracer of a process.

    To keep other work out of the measurement, the program and the calling thread get real-time
    priority, and the thread runs on CPU B, because a record that is delayed on A keeps A busy.
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
        with contextlib.suppress(PermissionError):  # some containers forbid it
            os.sched_setscheduler(self._process.pid, os.SCHED_FIFO, os.sched_param(1))
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, self._affinity)
        self._process.communicate()

    def send(self, *senders: Sender, wait_ms: float = 0) -> None:
        """Lets all these send together after a delay; returns at once. Call `answer()` next."""
        order = "; ".join([str(int(wait_ms * 1000)), *map(str, senders)])
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def sent(self, *senders: Sender) -> Answer:
        """Lets all these send together, and waits until they have sent."""
        self.send(*senders)
        return self.answer()

    def answer(self) -> Answer:
        """Waits until all of them have sent."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the source of records has ended"
        return Answer(**json.loads(line))
