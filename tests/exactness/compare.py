# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Which tool gets which trap right: pybootstrap, execsnoop and exitsnoop see the same processes.

    sudo python tests/exactness/compare.py [--times N] [--write docs/exactness.md]

prints a table in Markdown, or puts it into a document between the lines BEGIN and END.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from workload import (
    KEPT_ARGS,
    TRAPS,
    Process,
    Recording,
    Script,
    Site,
    Witness,
    compare,
    image_args,
    image_filename,
    record,
    split_status,
)

BEGIN = "<!-- made by tests/exactness/compare.py: begin -->"
END = "<!-- made by tests/exactness/compare.py: end -->"
PACKAGE = "libbpf-tools"  # Debian's and Ubuntu's name
EARLY = "started before the tracer, age at least 100 ms"
EARLY_MS = 4000

# Traps that do not concern exitsnoop, which shows no file names and no arguments.
ABOUT_TEXT = {name for name in TRAPS if name.startswith(("file name", "200 arg", "arguments"))}
ABOUT_TEXT |= {"script with #!", "fexecve"}


# ---- The other tools ----


class Line(NamedTuple):
    """What a tool printed about a process."""

    ppid: int
    rest: tuple[str, ...]


class Snoop:
    """A tool of libbpf-tools: started, stopped, and its output by pid."""

    def __init__(self, site: Site, name: str, arguments: Sequence[str], line: str) -> None:
        self.name = name
        self._path = shutil.which(name, path=os.defpath + ":/usr/sbin:/sbin")
        self._arguments = arguments
        self._line = re.compile(line)
        self._output = site.path / f"{name}.txt"
        self._process: subprocess.Popen[bytes] | None = None
        self.problem = "" if self._path else f"`{name}` is missing: install {PACKAGE}."

    def start(self) -> None:
        if not self._path:
            return
        command = ["stdbuf", "-oL", self._path, *self._arguments]
        if not os.path.exists("/sys/kernel/tracing/events"):  # these tools need tracefs
            mount = 'mount -t tracefs tracefs /sys/kernel/tracing && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 10
        while b"PCOMM" not in self._output.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                self.problem = f"`{self.name}` does not start here: {self._last_line()}"
                return
            time.sleep(0.05)

    def _last_line(self) -> str:
        lines = self._output.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it says nothing"

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def by_pid(self) -> dict[int, list[Line]]:
        lines: dict[int, list[Line]] = defaultdict(list)
        if not self.problem:
            for text in self._output.read_text(errors="surrogateescape").splitlines():
                match = self._line.match(text)
                if match:
                    pid, ppid, *rest = match.groups()
                    lines[int(pid)].append(Line(int(ppid), tuple(rest)))
        return lines


def execsnoop(site: Site) -> Snoop:
    return Snoop(site, "execsnoop", ["-q"], r".{16} (\d+) +(\d+) +0 (.*)$")


def exitsnoop(site: Site) -> Snoop:
    return Snoop(site, "exitsnoop", [], r".{16} (\d+) +(\d+) +\d+ +([\d.]+) +(.*)$")


# ---- What a tool got wrong about one process, in sentences ----


def wrong_execs(process: Process, lines: Sequence[Line]) -> Iterator[str]:
    if len(lines) != len(process.images):
        yield f"{len(lines)} of {len(process.images)} execs"
        return
    for image, line in reversed(list(zip(process.images, lines))):  # the last image is the subject
        if image_args(image)[1:2] == (image_filename(image),):
            continue  # a "#!" script: this tool shows the caller's view of its arguments
        filename, args = image_filename(image), image_args(image)
        if not line.rest[0].startswith(f'"{filename}"'):
            yield f"file name of {len(filename)} bytes cut"
        elif line.rest[0].strip() != " ".join(f'"{w}"' for w in [filename, *args[1:]]):
            whole = image["args_size"] <= KEPT_ARGS
            yield "arguments cut" if whole else "arguments cut long before 8 KiB"
        if line.ppid not in process.parents:
            yield "another parent"


def status_text(status: int) -> str:
    """A wait status as exitsnoop prints it, without the signal's name."""
    code, number, core = split_status(status)
    if number is None:
        return f"code {code}" if code else "0"
    return f"signal {number}" + (", core dumped" if core else "")


def wrong_exits(process: Process, lines: Sequence[Line], least_age_s: float = 0) -> Iterator[str]:
    if len(lines) != 1:
        yield f"{len(lines)} EXITs of one process" if lines else "no EXIT"
        return
    expected = status_text(process.reaped["status"])
    status = re.sub(r" \(.*\)", "", lines[0].rest[1]).strip()
    if status != expected:
        yield f"says {status}, wait4 {expected}"
    if lines[0].ppid not in process.parents:
        yield "another parent"
    if float(lines[0].rest[0]) < least_age_s:
        yield "another age"


# ---- The table ----


class Row(NamedTuple):
    trap: str
    pybootstrap: str
    execsnoop: str
    exitsnoop: str


def verdict(problems: Sequence[Sequence[str]]) -> str:
    """One cell; `problems` has a list for each run of the trap."""
    bad = [p for p in problems if p]
    if not bad:
        return "right"
    first = bad[0][0][:80].replace("|", r"\|")
    return f"wrong in {len(bad)} of {len(problems)}: {first}"


class Result(NamedTuple):
    recording: Recording
    execs: Snoop
    exits: Snoop
    early: Row


def rows(result: Result, times: int) -> Iterator[Row]:
    witness = result.recording.witness
    differences = compare(result.recording.events, witness)
    exec_lines, exit_lines = result.execs.by_pid(), result.exits.by_pid()
    for number, (trap, script) in enumerate(TRAPS.items()):
        ours, execs, exits = [], [], []
        for index in range(number * times, (number + 1) * times):
            processes = witness.of(index)
            ours.append([d.what for d in differences if d.process in processes])
            execs.append([w for p in processes for w in wrong_execs(p, exec_lines[p.key.pid])])
            exits.append([w for p in processes for w in wrong_exits(p, exit_lines[p.key.pid])])
        shows_exec = script.execs > 1 and not result.execs.problem
        shows_exit = trap not in ABOUT_TEXT and not result.exits.problem
        yield Row(
            trap,
            verdict(ours),
            verdict(execs) if shows_exec else "–",
            verdict(exits) if shows_exit else "–",
        )
    yield result.early


def run(times: int) -> list[str]:
    with Site() as site:
        tools = execsnoop(site), exitsnoop(site)
        result = _run(site, *tools, times)
        lines = ["| trap | pybootstrap | execsnoop | exitsnoop |", "| --- | --- | --- | --- |"]
        lines += ["| " + " | ".join(row) + " |" for row in rows(result, times)]
        for tool in tools:
            if tool.problem:
                lines += ["", tool.problem]
    return lines


def _run(site: Site, execs: Snoop, exits: Snoop, times: int) -> Result:
    from pybootstrap import Tracer

    scripts = [script for script in TRAPS.values() for _ in range(times)]
    early = site.run([Script.of(f"sleep {EARLY_MS} exit 3")], 1)
    while not any(line["kind"] == "image" for line in early.lines()):
        time.sleep(0.01)
    try:
        execs.start()
        exits.start()
        with Tracer(min_duration_ms=100) as slow:
            recording = record(site, scripts, parallel=4)
            witness = early.witness()
            slow.stop()
            problems = [d.what for d in compare(slow, witness, execs=False, early=True)]
        time.sleep(0.5)  # the tools need time to read
    finally:
        execs.stop()
        exits.stop()
    theirs = _early_exit(witness, exits)
    return Result(recording, execs, exits, Row(EARLY, verdict([problems]), "–", theirs))


def _early_exit(witness: Witness, exits: Snoop) -> str:
    if exits.problem:
        return "–"
    process = witness.of(0)[0]
    lines = exits.by_pid()[process.key.pid]
    return verdict([list(wrong_exits(process, lines, EARLY_MS / 1000))])


def write(path: Path, table: Sequence[str]) -> None:
    """Puts the table between the marks of the document, which is made if it is missing."""
    text = path.read_text() if path.exists() else f"# Exactness\n\n{BEGIN}\n{END}\n"
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"compare.py: {path} has no lines {BEGIN} and {END}")
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as new:
        new.write("\n".join([head + BEGIN, "", *table, "", END + tail]))
    os.chmod(new.name, 0o644)
    os.replace(new.name, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare tracers of exec and exit, as a table.")
    parser.add_argument("--times", type=int, default=20, help="how often each trap is tried")
    parser.add_argument("--write", metavar="FILE", type=Path, help="the document to put it into")
    options = parser.parse_args()
    if os.geteuid():
        sys.exit("compare.py: tracing needs root")
    table = run(options.times)
    if options.write:
        write(options.write, table)
    else:
        print("\n".join(table))


if __name__ == "__main__":
    main()
