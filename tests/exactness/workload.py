# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Processes that behave in every way we know, and how wait4(2) and a Tracer report them.

- `Script` is a behaviour: words for behave.c. `generate()` makes one from a seed; see `TRAPS`.
- `Site` is a directory with the built program; `Site.run()` runs scripts and collects
  witnesses. Every process is reaped with wait4: by its parent, or as an orphan by the supervisor,
  which is a child subreaper.
- `compare()` compares the events of a Tracer with the witnesses and returns the differences.

Witnesses know processes by (pid, start in clock ticks), as proc_pid_stat(5) has them.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pybootstrap import Event, ExecEvent, ExitEvent, Stats

HERE = Path(__file__).resolve().parent
TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")
RTMIN = int(signal.SIGRTMIN)
ENDING = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM XCPU SYS"  # by default
)
SIGNALS = [int(signal.Signals[f"SIG{name}"]) for name in ENDING.split()]
SIGNALS += [RTMIN, RTMIN + 3, int(signal.SIGRTMAX)]

# ---- Scripts ----


@dataclass(frozen=True)
class Script:
    """What one process does, as words for behave.c, and the processes and execs that result."""

    words: tuple[str, ...]
    processes: int = 1  # that it makes, including itself
    execs: int = 1  # that succeed in all of them, including the one that starts it

    @classmethod
    def of(cls, text: str, processes: int = 1, execs: int = 1) -> Script:
        """A script written as one line."""
        return cls(tuple(text.split()), processes, execs)

    def __str__(self) -> str:
        return " ".join(self.words)


# Words that start with @ stand for paths: see Site.
TRAPS = {
    "leader exits first, another thread calls exit(7)": Script.of(
        "inthread sysexit:5 sleep 60 exit 7"
    ),
    "leader exits first, another thread just ends": Script.of(
        "inthread sysexit:5 sleep 60 sysexit 7"
    ),
    "pthread_exit in main, another thread calls exit(7)": Script.of(
        "inthread pexit sleep 60 exit 7"
    ),
    "leader exits first, then SIGKILL": Script.of(
        "killed 9 [ inthread sysexit:5 sleep 40 hang ]", 2
    ),
    "exec from a non-leader thread": Script.of("inthread hang sleep 20 exec exit 3", 1, 2),
    "exec from a non-leader thread, leader gone": Script.of(
        "inthread sysexit:5 sleep 20 exec exit 3", 1, 2
    ),
    "exec while 20 other threads run": Script.of("threads 20 hang sleep 20 exec exit 3", 1, 2),
    "64 threads exit at once, each for itself": Script.of("crowd 64 each"),
    "64 threads call exit_group at once": Script.of("crowd 64 group"),
    "64 threads call pthread_exit at once": Script.of("crowd 64 pexit"),
    "SIGKILL": Script.of("raise 9"),
    "SIGKILL while 20 threads run": Script.of("killed 9 [ threads 20 hang hang ]", 2),
    "SIGSEGV, no core": Script.of("core 0 segv"),
    "SIGSEGV, core dumped": Script.of("core 1 segv"),
    "SIGABRT with 20 threads, core dumped": Script.of("core 1 threads 20 hang sleep 5 abort"),
    "real-time signal": Script.of(f"raise {RTMIN + 3}"),
    "stopped and continued": Script.of("stop exit 4", 2),
    "killed while stopped for a debugger": Script.of("tracekill exit 1", 2),
    "ended under a debugger that is its parent": Script.of("traced [ exec exit 4 ]", 2, 2),
    "parent under a debugger that is not": Script.of("attached [ exec exit 4 ]", 3, 2),
    "exec fails: no such file": Script.of("execpath @missing exit 3"),
    "exec fails late": Script.of("fork [ execpath @late exit 3 ] exit 1", 2),
    "vfork, then exec": Script.of("vforkexec [ exit 3 ]", 2, 2),
    "vfork, then _exit": Script.of("vforkexit 9", 2),
    "double exec": Script.of("exec exec exit 3", 1, 3),
    "fork without exec": Script.of("fork [ exit 6 ]", 2),
    "orphan": Script.of("bg [ sleep 40 exit 6 ] exit 2", 2),
    "zombie whose parent never waits": Script.of("bg [ exit 6 ] sleep 40 exit 2", 2),
    "script with #!": Script.of("execpath @script exit 3", 1, 2),
    "fexecve": Script.of("execfd exit 3", 1, 2),
    "file name of 300 bytes": Script.of("execpath @long300 exit 3", 1, 2),
    "file name of 4,000 bytes": Script.of("execpath @long4000 exit 3", 1, 2),
    "200 arguments": Script.of("execpad 200 20 exit 3", 1, 2),
    "arguments of 400 bytes": Script.of("execpad 3 120 exit 3", 1, 2),
    "arguments of 20,000 bytes": Script.of("execpad 4 5000 exit 3", 1, 2),
    "pid namespace": Script.of("newpid [ exec exit 5 ]", 2, 2),
    "setuid and setsid after exec": Script.of("fork [ setsid uid 65534 comm other exit 5 ]", 2),
}

# Races about who ends first, and whether an exec comes before that; to be repeated.
RACES = {
    # An exec makes the remaining thread the leader, whatever the old one did.
    "exec, then the new leader first": Script.of(
        "inthread hang sleep 5 exec inthread sysexit:5 sleep 20 exit 7", 1, 2
    ),
    "exec of a thread left alone, then leader first": Script.of(
        "inthread sysexit:3 sleep 5 exec inthread sysexit:5 sleep 20 sysexit 7", 1, 2
    ),
    "leader first, last thread ends": Script.of("inthread sysexit:5 sysexit 7"),
    "leader first, exit": Script.of("inthread sysexit:5 sleep 5 exit 7"),
    "leader first, threads": Script.of("threads 9 sysexit:4 inthread sysexit:5 sysexit 7"),
    "exec among ending threads": Script.of(
        "threads 30 sysexit:9 inthread sysexit:5 exec exit 3", 1, 2
    ),
    "exec, then threads": Script.of(
        "threads 20 hang inthread hang exec threads 9 pexit exit 3", 1, 2
    ),
}


class Part(NamedTuple):
    """Words, and how many processes and execs they add."""

    words: str
    processes: int = 0
    execs: int = 0


def _join(parts: Iterable[Part]) -> Part:
    listed = list(parts)
    return Part(
        " ".join(p.words for p in listed),
        sum(p.processes for p in listed),
        sum(p.execs for p in listed),
    )


class _Generator:
    """Writes behaviours; the random generator makes every choice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def script(self) -> Script:
        part = self.body(depth=0)
        return Script(tuple(part.words.split()), 1 + part.processes, 1 + part.execs)

    def body(self, depth: int) -> Part:
        """The behaviour of a process that may have children."""
        steps = [self.step(depth) for _ in range(self.rng.randrange(4))]
        return _join([*steps, self.ending()])

    def leaf(self) -> Part:
        """The behaviour of a process that has no children."""
        return _join([*(self.quiet_step() for _ in range(self.rng.randrange(3))), self.ending()])

    def step(self, depth: int) -> Part:
        if depth < 3 and self.rng.random() < 0.6:
            return self.child_step(depth)
        return self.quiet_step()

    def quiet_step(self) -> Part:
        """A step that makes no process."""
        rng = self.rng
        how = rng.choice([f"sleep:{rng.randrange(15)}", "exit", "pexit", "sysexit:9"])
        leader = rng.choice([f"sysexit:{rng.randrange(256)}", "pexit", f"sleep:{rng.randrange(9)}"])
        return rng.choice(
            [
                Part("exec", execs=1),
                Part("execpath @script", execs=1),
                Part("execpath @long300", execs=1),
                Part(f"execpad {rng.randrange(30)} {rng.randrange(1, 400)}", execs=1),
                Part("execpath @missing"),
                Part(f"inthread {leader}"),
                Part(f"threads {rng.randrange(1, 12)} {how}"),
                Part(f"core {rng.randrange(2)}"),
                Part(f"sleep {rng.randrange(12)}"),
                Part(f"burn {rng.randrange(1, 12)} {rng.randrange(1, 4)}"),
                Part(f"touch {rng.randrange(1, 12)}"),
                Part(f"disk {rng.randrange(1, 64)}"),
                Part(f"comm name-{rng.randrange(100)}"),
                Part("setsid"),
            ]
        )

    def child_step(self, depth: int) -> Part:
        kind = self.rng.randrange(11)
        if kind < 5:
            return self.forked(self.body(depth + 1), self.rng.choice(["fork", "fork", "bg"]))
        if kind == 5:
            child = self.forked(self.leaf(), "vforkexec")
            return child._replace(execs=child.execs + 1)
        if kind == 6:
            return self.forked(self.leaf(), self.rng.choice(["traced", "newpid"]))
        if kind == 7:
            return _join([self.forked(self.leaf(), "attached"), Part("", processes=1)])
        if kind == 8:
            return self.killed()
        words = self.rng.choice(
            [f"vforkexit {self.rng.randrange(256)}", "stop", "tracekill", "bg [ sleep 5 ] reap"]
        )
        return Part(words, processes=1)

    def forked(self, child: Part, word: str) -> Part:
        return Part(f"{word} [ {child.words} ]", child.processes + 1, child.execs)

    def killed(self) -> Part:
        number = self.rng.choice([9, 9, 15, 6, RTMIN + 3])
        steps = [self.quiet_step() for _ in range(self.rng.randrange(3))]
        threads = Part(self.rng.choice(["", "threads 10 hang"]))
        return self.forked(_join([*steps, threads, Part("hang")]), f"killed {number}")

    def ending(self) -> Part:
        rng = self.rng
        code = rng.choice([0, 1, 7, rng.randrange(256)])
        how = rng.choice(["each", "group", "pexit"])
        return rng.choice(
            [
                Part(""),
                Part(f"exit {code}"),
                Part(f"cexit {code}"),
                Part(f"sysexit {code}"),
                Part("pexit"),
                Part(f"raise {rng.choice(SIGNALS)}"),
                Part(f"killself {rng.choice(SIGNALS)}"),
                Part("segv"),
                Part("abort"),
                Part("core 1 segv"),
                Part(f"threads 5 hang sleep 1 killself {rng.choice(SIGNALS)}"),
                Part(f"threads 5 hang sleep 1 exit {code}"),
                Part(f"crowd {rng.choice([2, 3, 8, 64])} {how}"),
                Part("execpath @late"),
                Part(f"uid 65534 exit {code}"),
                Part(f"uid 65534 exec raise {rng.choice(SIGNALS)}", execs=1),
            ]
        )


def generate(seed: int) -> Script:
    """The behaviour number `seed`; as a hypothesis strategy: `integers(0, 2**63).map(generate)`."""
    return _Generator(random.Random(seed)).script()


def plan(seed: int, processes: int) -> list[Script]:
    """Scripts that make at least this many processes."""
    scripts: list[Script] = []
    count = 0
    while count < processes:
        script = generate(seed + len(scripts))
        scripts.append(script)
        count += script.processes
    return scripts


# ---- Witnesses ----


class Key(NamedTuple):
    """One process, even if its pid is reused."""

    pid: int
    start: int  # clock ticks since boot


@dataclass
class Process:
    """What is known about a process without any tracer."""

    key: Key
    images: list[dict[str, Any]] = field(default_factory=list)  # one for each successful exec
    reaped: dict[str, Any] = field(default_factory=dict)  # what wait4 returned
    parents: set[int] = field(default_factory=set)
    user: tuple[int, int] | None = None  # uid and gid, as it last reported
    ns_pid: int | None = None
    script: int | None = None  # index of the script it belongs to


class Witness:
    """All processes of one run, from the lines that behave.c and the supervisor wrote."""

    def __init__(self, scripts: Sequence[Script], lines: Iterable[dict[str, Any]]) -> None:
        self.scripts = scripts
        self.processes: dict[Key, Process] = {}
        self._by_pid: dict[int, list[Process]] = defaultdict(list)
        self._supervisor = 0
        for line in lines:
            self._add(line)
        for process in self.processes.values():
            self._find_script(process)

    def _add(self, line: dict[str, Any]) -> None:
        key = Key(line["pid"], line["start"])
        process = self.processes.get(key)
        if process is None:
            process = self.processes[key] = Process(key)
            self._by_pid[key.pid].append(process)
        kind = line["kind"]
        if kind == "spawn":
            process.script = line["script"]
            self._supervisor = line["by"]
            return
        process.parents.add(line["ppid"])
        process.ns_pid = line.get("ns_pid", process.ns_pid)
        if kind == "image":
            process.images.append(line)
        elif "by" in line:
            process.parents.add(line["by"])
        if kind == "reap":
            process.reaped = line
        else:
            process.user = line["uid"], line["gid"]

    def _find_script(self, process: Process) -> int | None:
        if process.script is None:
            for pid in process.parents:
                older = [p for p in self._by_pid.get(pid, ()) if p.key.start <= process.key.start]
                if older and older[-1] is not process:
                    process.script = self._find_script(older[-1])
                    break
        return process.script

    def of(self, script: int) -> list[Process]:
        """The processes of one script, beginning with its first."""
        found = [p for p in self.processes.values() if p.script == script]
        return sorted(found, key=lambda p: (p.key.start, p.key.pid))

    def has_parent(self, event: ExecEvent | ExitEvent) -> bool:
        """Whether the event's parent is a process of ours that lived when the event's started."""
        start = event.start_boottime_ns
        return event.ppid == self._supervisor or any(
            parent.key.start * TICK_NS <= start <= parent.reaped.get("time_ns", 0)
            for parent in self._by_pid.get(event.ppid, ())
        )

    def children_reaped_by(self) -> dict[Key, list[dict[str, Any]]]:
        children: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        for process in self.processes.values():
            reaped = process.reaped
            if reaped:
                children[Key(reaped["by"], reaped["by_start"])].append(reaped)
        return children

    def differences(self) -> Iterator[Difference]:
        """Differences between the processes that ran and those that the scripts should make."""
        made: dict[int | None, list[Process]] = defaultdict(list)
        for process in self.processes.values():
            made[process.script].append(process)
            if not process.reaped:
                yield Difference("witness: never reaped", process, self.scripts)
        for process in made.pop(None, ()):
            yield Difference("witness: of no script", process, self.scripts)
        for index, script in enumerate(self.scripts):
            processes = made[index]
            images = sum(len(p.images) for p in processes)
            if (len(processes), images) != (script.processes, script.execs):
                detail = f"witness: {len(processes)} processes and {images} execs, expected"
                detail += f" {script.processes} and {script.execs}: {script}"
                yield Difference(detail, None, self.scripts)


def _proc(pid: int | str, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text(errors="surrogateescape")


def look_up(pid: int | str) -> dict[str, Any]:
    """What /proc says about a process or zombie, as behave.c's look_up()."""
    text = _proc(pid, "stat")
    before, _, after = text.rpartition(")")
    fields = after.split()
    status = dict(line.split(":", 1) for line in _proc(pid, "status").splitlines() if ":" in line)
    return {
        "pid": int(text.split()[0]),
        "start": int(fields[19]),
        "ppid": int(fields[1]),
        "sid": int(fields[3]),
        "uid": int(status["Uid"].split()[0]),
        "gid": int(status["Gid"].split()[0]),
        "comm": os.fsencode(before.partition("(")[2]).hex(),
    }


# ---- Running ----

LIMIT_S = 60  # plus a second for each script; the slowest machine takes a tenth of it

_PR_SET_CHILD_SUBREAPER = 36


def _late_elf() -> bytes:
    """A program that execve(2) accepts but cannot map after it has given up the old image."""
    entry = 0x400000
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0xFFFF_8000_0000_0000, 0, 4096, 4096, 4096)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = struct.pack("<HHIQQQIHHHHHH", 2, _machine(), 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return (ident + head + load).ljust(4096, b"\0")


def _machine() -> int:
    """This machine's ELF number, from the Python interpreter."""
    with open("/proc/self/exe", "rb") as exe:
        machine: int = struct.unpack("<H", exe.read(20)[18:20])[0]
    return machine


class Site:
    """A directory with the behave program and the files that scripts name with @.

    Everybody may enter it, because some scripts give up root. `program` is the built behave.c, for
    a machine without a compiler.
    """

    def __init__(self, program: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="exactness-"))
        self.path.chmod(0o777)
        self.behave = self.path / "behave"
        try:
            if program:
                shutil.copy(program, self.behave)
            else:
                self._build()
        except BaseException:
            self.close()
            raise
        self._names = {
            "@missing": str(self.path / "missing"),
            "@late": self._write("late", _late_elf()),
            "@script": self._write("script", b"#!%s\n" % os.fsencode(self.behave)),
            "@long300": self.long_name(300),
            "@long4000": self.long_name(4000),
        }

    def _build(self) -> None:
        compiler = os.environ.get("CC", "cc")
        source = str(HERE / "behave.c")
        command = [compiler, "-O2", "-pthread", "-Wall", "-Wextra", "-o", str(self.behave), source]
        subprocess.run(command, check=True)

    def _write(self, name: str, content: bytes) -> str:
        path = self.path / name
        path.write_bytes(content)
        path.chmod(0o755)
        return str(path)

    def long_name(self, size: int) -> str:
        """A path of the behave program that is `size` bytes long."""
        fill = size - len(os.fsencode(self.behave))
        return str(self.path) + "/" * (fill % 2) + "/." * (fill // 2) + "/behave"

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def argv(self, script: Script) -> list[str]:
        return [str(self.behave), *(self._names.get(word, word) for word in script.words)]

    def run(self, scripts: Sequence[Script], parallel: int = 16) -> Run:
        """Starts a supervisor that runs the scripts; ask the result for `ended()`."""
        return Run(self, scripts, parallel)


def _descendants(pid: int) -> list[int]:
    """All descendants of a process, including zombies."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile
            parents[int(path.name)] = look_up(path.name)["ppid"]
    found = [pid]
    for above in found:
        found += [one for one, parent in parents.items() if parent == above]
    return found[1:]


class Run:
    """Scripts that a supervisor, a child of ours, is running."""

    def __init__(self, site: Site, scripts: Sequence[Script], parallel: int) -> None:
        self._scripts = scripts
        # All processes append their lines to it: see memfd_create(2) and O_APPEND in open(2).
        memory = os.memfd_create("witness", 0)
        self._lines = os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_APPEND)
        os.close(memory)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _Supervisor(site, self._lines).run(scripts, parallel)
            except BaseException as error:
                print(f"supervisor: {error!r}", flush=True)
                os._exit(1)
            os._exit(0)
        self._status: int | None = None

    def ended(self, options: int = os.WNOHANG) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, options)
            self._status = status if pid else None
        return self._status is not None

    def give_up(self) -> str:
        """Kills what still runs, the supervisor last; returns a description of it."""
        left = []
        for pid in (*_descendants(self.pid), self.pid):
            what = _proc(pid, "cmdline").replace("\0", " ").strip()
            threads = [path.name for path in Path(f"/proc/{pid}/task").glob("*")]
            waits = [_proc(f"{pid}/task/{thread}", "wchan") or "?" for thread in threads]
            left.append(f"pid {pid}, threads in {', '.join(waits)}: {what}")
            os.kill(pid, signal.SIGKILL)
        self.ended(options=0)
        return "; ".join(left)

    def lines(self) -> list[dict[str, Any]]:
        """The lines written so far."""
        content = os.pread(self._lines, os.fstat(self._lines).st_size, 0)
        return [json.loads(line) for line in content.splitlines()]

    def witness(self) -> Witness:
        """Waits for the end; returns all witnesses."""
        self.ended(options=0)
        if self._status:
            raise RuntimeError(f"the supervisor ended with wait status {self._status}")
        lines = self.lines()
        os.close(self._lines)
        return Witness(self._scripts, lines)


class _Supervisor:
    """The parent of all scripts: starts them, some at a time, and reaps them and their orphans."""

    def __init__(self, site: Site, lines: int) -> None:
        self._site = site
        self._lines = lines
        self._me = look_up("self")
        self._environment = {
            **os.environ,
            "BEHAVE_FD": str(lines),
            "BEHAVE_SELF": str(site.behave),
        }
        os.set_inheritable(lines, True)
        os.chdir(site.path)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")

    def run(self, scripts: Sequence[Script], parallel: int) -> None:
        running: set[int] = set()
        for index, script in enumerate(scripts):
            while len(running) >= parallel:
                running.discard(self._reap())
            running.add(self._spawn(index, script))
        while self._reap():
            pass

    def _say(self, line: dict[str, Any]) -> None:
        os.write(self._lines, json.dumps(line).encode() + b"\n")

    def _spawn(self, index: int, script: Script) -> int:
        argv = self._site.argv(script)
        pid = os.posix_spawn(
            argv[0], argv, self._environment, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ]
        )
        self._say({"kind": "spawn", "script": index, "by": self._me["pid"], **look_up(pid)})
        return pid

    def _reap(self) -> int:
        """Waits for a child; returns 0 if there is none."""
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return 0
        assert info is not None
        who = look_up(info.si_pid)  # a zombie by now: its start time can be read
        pid, status, usage = os.wait4(info.si_pid, 0)
        self._say(
            {
                "kind": "reap",
                **who,
                "time_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                "by": self._me["pid"],
                "by_start": self._me["start"],
                "status": status,
                "user_us": round(usage.ru_utime * 1e6),
                "system_us": round(usage.ru_stime * 1e6),
                "max_rss_kb": usage.ru_maxrss,
                "minor_faults": usage.ru_minflt,
                "major_faults": usage.ru_majflt,
                "read_blocks": usage.ru_inblock,
                "write_blocks": usage.ru_oublock,
                "voluntary": usage.ru_nvcsw,
                "involuntary": usage.ru_nivcsw,
            }
        )
        return pid


class Recording(NamedTuple):
    """What a Tracer and the witnesses reported about the same run."""

    events: list[Event]
    witness: Witness
    stats: Stats


def record(
    site: Site,
    scripts: Sequence[Script],
    parallel: int = 16,
    **settings: Any,
) -> Recording:
    """Runs the scripts under a `Tracer(**settings)`.

    The ring is larger than by default, because other processes of the machine fill it too.
    """
    from pybootstrap import Tracer

    settings.setdefault("ring_size", 64 << 20)

    events: list[Event] = []
    with Tracer(**settings) as tracer:
        run = site.run(scripts, parallel)
        deadline = time.monotonic() + LIMIT_S + len(scripts)
        while not run.ended():
            events += tracer.read(timeout=0.2)
            if time.monotonic() > deadline:
                raise RuntimeError(f"not done in time: {run.give_up()}")
        tracer.stop()
        while True:
            rest = tracer.read()
            if not rest:
                break
            events += rest
    return Recording(events, run.witness(), tracer.stats)


# ---- Comparing ----


class Difference:
    """Something that a tracer got wrong, or that went wrong in the workload itself."""

    def __init__(self, what: str, process: Process | None, scripts: Sequence[Script]) -> None:
        self.what = what
        self.process = process
        index = process.script if process else None
        self.script = scripts[index] if index is not None else None

    def __str__(self) -> str:
        pid = f"pid {self.process.key.pid}: " if self.process else ""
        return f"{pid}{self.what}" + (f" [{self.script}]" if self.script else "")

    __repr__ = __str__


KEPT_ARGS = 8192  # bytes of arguments that a Tracer promises to keep

# How much less than wait4 an EXIT event may report, because it is made before the process is quite
# gone: what follows is accounted to the process after the event. It may never report more.
# CPU time: the rest of do_exit(), most of it freeing memory, and what each CPU that runs a thread
# has not accounted since its last tick. Switches: a few for each of up to 64 threads. Faults and
# blocks: what clearing a thread's id and closing its files may need. Seen in 5,000 processes on
# kernel 6.18, 2 CPUs: 4.4 ms; 2 and 6 switches; no faults; 24 blocks written.
CPU_SLACK_US = 20_000
CPU_SLACK_US_PER_MB = 200
SLACK = {
    "minor_faults": 64,
    "major_faults": 1,
    "read_blocks": 8,
    "write_blocks": 64,
    "voluntary": 64,
    "involuntary": 128,
}


def split_status(status: int) -> tuple[int, int | None, bool]:
    """exit_code, signal and core_dumped of a wait status."""
    if os.WIFSIGNALED(status):
        return 0, os.WTERMSIG(status), os.WCOREDUMP(status)
    return os.WEXITSTATUS(status), None, False


def _unhex(text: str) -> str:
    return os.fsdecode(bytes.fromhex(text))


def image_filename(image: dict[str, Any]) -> str:
    return _unhex(image["filename"])


def image_args(image: dict[str, Any]) -> tuple[str, ...]:
    """The arguments as an event has them, that is, their first 8 KiB."""
    args = _unhex(image["args"]).split("\0")
    if not args[-1]:
        args.pop()
    return tuple(args)


def own_usage(reaped: dict[str, Any], children: Sequence[dict[str, Any]]) -> dict[str, int]:
    """What wait4 reported for a process, minus the usage of its own reaped children."""
    names = ("user_us", "system_us", *SLACK)
    return {name: reaped[name] - sum(child[name] for child in children) for name in names}


def usage_differences(
    usage: Any, reaped: dict[str, Any], children: Sequence[dict[str, Any]]
) -> Iterator[str]:
    own = own_usage(reaped, children)
    cpu_us = (usage.user_ns + usage.system_ns) / 1000
    expected = own["user_us"] + own["system_us"]
    slack = CPU_SLACK_US + CPU_SLACK_US_PER_MB * reaped["max_rss_kb"] / 1024
    rounding = 2 * (len(children) + 1)  # wait4 truncates both times to microseconds
    if not expected - slack <= cpu_us <= expected + rounding:
        yield f"CPU time {cpu_us} us, wait4 {expected} us"
    given = {
        "minor_faults": usage.minor_faults,
        "major_faults": usage.major_faults,
        "read_blocks": usage.read_bytes // 512,
        "write_blocks": usage.write_bytes // 512,
        "voluntary": usage.voluntary_switches,
        "involuntary": usage.involuntary_switches,
    }
    for name, value in given.items():
        if not own[name] - SLACK[name] <= value <= own[name]:
            yield f"{name} {value}, wait4 {own[name]}"
    yield from _peak_differences(usage.max_rss_bytes, reaped, children)


def _peak_differences(
    peak: int, reaped: dict[str, Any], children: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """wait4's peak is the larger one of the process and its reaped children."""
    expected = reaped["max_rss_kb"] * 1024
    largest_child = max((child["max_rss_kb"] * 1024 for child in children), default=0)
    if peak > expected or (peak < expected and largest_child < expected):
        yield f"peak memory {peak}, wait4 {expected}"


def _wrong(what: str, got: object, expected: object) -> Iterator[str]:
    if got != expected:
        one, other = repr(got), repr(expected)
        same = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), 0)
        start = max(0, same - 40) if max(len(one), len(other)) > 300 else 0
        at = f" at {start}" if start else ""
        yield f"{what}{at} {one[start : start + 200]}, expected {other[start : start + 200]}"


def _identity_differences(
    event: ExecEvent | ExitEvent, seen: dict[str, Any], process: Process
) -> Iterator[str]:
    # A dead leader keeps its user if another thread changes that of the process.
    if (event.uid, event.gid) != process.user:
        yield from _wrong("user", (event.uid, event.gid), (seen["uid"], seen["gid"]))
    yield from _wrong("sid", event.sid, seen["sid"])
    yield from _wrong("comm", event.comm, _unhex(seen["comm"]))
    if process.ns_pid is not None:
        yield from _wrong("ns_pid", event.ns_pid, process.ns_pid)


class _Told(NamedTuple):
    """The Tracer's settings, which determine what it can report."""

    execs: bool
    args: bool
    early: bool


def exec_differences(
    event: ExecEvent, image: dict[str, Any], process: Process, args: bool
) -> Iterator[str]:
    yield from _identity_differences(event, image, process)
    if event.ppid not in process.parents:
        yield f"ppid {event.ppid}, expected one of {process.parents}"
    yield from _wrong("filename", event.filename, image_filename(image))
    yield from _wrong("args", event.args, image_args(image) if args else ())
    truncated = args and image["args_size"] > KEPT_ARGS
    yield from _wrong("args_truncated", event.args_truncated, truncated)


def exit_differences(
    event: ExitEvent,
    process: Process,
    children: Sequence[dict[str, Any]],
    told: _Told,
) -> Iterator[str]:
    reaped = process.reaped
    status = event.exit_code, event.signal, event.core_dumped
    yield from _wrong("status", status, split_status(reaped["status"]))
    yield from _identity_differences(event, reaped, process)
    if event.ppid not in process.parents:
        yield f"ppid {event.ppid}, expected one of {process.parents}"
    image = process.images[-1] if process.images and not told.early else None
    with_text = image if told.args else None
    yield from _wrong("filename", event.filename, with_text and image_filename(with_text))
    yield from _wrong("args", event.args, with_text and image_args(with_text))
    yield from _wrong("duration_since", event.duration_since, "exec" if image else "start")
    longest = reaped["time_ns"] - event.start_boottime_ns
    if not 0 < event.duration_ns <= longest:
        yield f"duration {event.duration_ns} ns, expected at most {longest}"
    usage = getattr(event, "usage", None)
    if usage is not None:
        yield from usage_differences(usage, reaped, children)


def event_key(event: ExecEvent | ExitEvent) -> Key:
    return Key(event.pid, event.start_boottime_ns // TICK_NS)


class _Events:
    """The events of a run, by process."""

    def __init__(self, events: Iterable[Event]) -> None:
        from pybootstrap import ExecEvent, ExitEvent

        self.execs: dict[Key, list[ExecEvent]] = defaultdict(list)
        self.exits: dict[Key, list[ExitEvent]] = defaultdict(list)
        self.lost = 0
        for event in events:
            if isinstance(event, ExecEvent):
                self.execs[event_key(event)].append(event)
            elif isinstance(event, ExitEvent):
                self.exits[event_key(event)].append(event)
            else:
                self.lost += event.count

    def strangers(self, witness: Witness) -> Iterator[ExecEvent | ExitEvent]:
        """Events of unknown processes whose parent is one of ours."""
        for by_key in (self.execs, self.exits):
            for key, events in by_key.items():
                if key not in witness.processes and witness.has_parent(events[0]):
                    yield from events


def compare(
    events: Iterable[Event],
    witness: Witness,
    execs: bool = True,
    args: bool = True,
    early: bool = False,
) -> list[Difference]:
    """Returns the differences between events and witnesses.

    `execs=False`: the Tracer had a `min_duration_ms`, which every process reached, and so sent no
    execs; `args`: as set on the Tracer; `early`: the processes had started before the Tracer.
    """
    seen = _Events(events)
    scripts = witness.scripts
    found = list(witness.differences())
    if seen.lost:
        found.append(Difference(f"{seen.lost} events lost", None, scripts))
    told = _Told(execs and not early, args, early)
    children = witness.children_reaped_by()
    for key, process in witness.processes.items():
        if not process.reaped:
            continue
        what = _process_differences(process, seen, children.get(key, []), told)
        found += [Difference(text, process, scripts) for text in what]
    found += [
        Difference(f"of no process: {event!r:.400}", None, scripts)
        for event in seen.strangers(witness)
    ]
    return found


def _process_differences(
    process: Process,
    seen: _Events,
    children: Sequence[dict[str, Any]],
    told: _Told,
) -> Iterator[str]:
    exec_events = seen.execs.get(process.key, [])
    exit_events = seen.exits.get(process.key, [])
    images = process.images if told.execs else []
    if len(exec_events) != len(images):
        yield f"{len(exec_events)} EXECs, expected {len(images)}"
    else:
        for exec_event, image in zip(exec_events, images):
            for text in exec_differences(exec_event, image, process, told.args):
                yield f"EXEC: {text}"
    if len(exit_events) != 1:
        yield f"{len(exit_events)} EXITs, expected 1"
    for exit_event in exit_events:
        for text in exit_differences(exit_event, process, children, told):
            yield f"EXIT: {text}"
