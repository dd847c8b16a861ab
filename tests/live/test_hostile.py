# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Hostile processes: their names, their arguments and their number.

What must hold: each event is one line of text without a byte that controls a terminal; JSON is
valid and preserves every byte; the counters balance.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pybootstrap import ExecEvent, ExitEvent, LostEvent, Tracer
from tests.live.conftest import Start
from tests.support import (
    DEADLINE_S,
    Command,
    assert_balanced,
    collect,
    exact_bytes,
    execs,
    exits,
    new_cgroup,
    of_pids,
    until_exit,
)

HOSTILE = {
    "escape sequences": b"\x1b[2J\x1b]0;owned\x07",
    "new lines": b"\r\n00:00:00 EXEC",
    "a forged line": b"x\n12:00:00 EXEC  sshd             1       0       /bin/sh",
    "invalid UTF-8": b"\xff\xfe\x80\xc3(",
    "encoded surrogates": b"\xed\xa0\x80\xed\xb0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80\xf8\x88",
    "cut UTF-8": "fifteen bytes \u00e9".encode(),  # the kernel cuts a comm after 15
    "bidi override": "\u202egpj.\u2066exe\u2069".encode(),
    "invisible": "\u200b\u2060\ufeff\u00ad".encode(),
    "line separators": "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg".encode(),
    "C1 controls": "\u009b31m\u0090q\u009c".encode(),
    "backspaces": b"rm\x08\x08\x7f\x7fls\t",
    "shell": b"'$(id)`id`;|&#\\ \"",
    "format": b"%s%n%x{0}{event}",
    "JSON": b'"}\\u0000,{"event":"exec"',
    "spaces": b"  a  ",
    "wide": "\u4e2d\u6587\U0001f600".encode(),
}

libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NAME = 15


@pytest.fixture
def utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANG", "LC_CTYPE", "PYTHONIOENCODING", "PYTHONUTF8"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")


@pytest.fixture(name="programs")
def make_programs(tmp_path: Path) -> dict[str, bytes]:
    """Makes a program of each hostile name, except those with a slash."""
    programs = {}
    for what, name in HOSTILE.items():
        path = os.fsencode(tmp_path) + b"/" + name.replace(b"/", b"_")
        shutil.copy(b"/bin/true", path)
        programs[what] = path
    return programs


def spawn(path: bytes, argv: Sequence[bytes] | None) -> int:
    """Runs a program to its end with any argv, even an empty one or NULL."""
    none = ctypes.POINTER(ctypes.c_char_p)()
    words = none if argv is None else (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    environ = (ctypes.c_char_p * 2)(b"X=\x1b[31m\n\xff", None)
    pid = os.fork()
    if pid == 0:
        libc.execve(path, words, environ)
        os._exit(99)
    _, status, _ = os.wait4(pid, 0)
    assert status == 0
    return pid


def end_as(comm: bytes) -> int:
    """Runs a process that sets this comm before it ends."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if libc.prctl(PR_SET_NAME, comm, 0, 0, 0) == 0 else 1)
    _, status, _ = os.wait4(pid, 0)
    assert status == 0
    return pid


def output_of(command: Command) -> tuple[list[bytes], list[str]]:
    """Ends the command properly; all lines of standard output and standard error."""
    command.process.send_signal(signal.SIGTERM)
    out, err = command.process.communicate(timeout=DEADLINE_S)
    assert command.process.returncode == 0, err
    assert b"Traceback" not in err
    assert out.endswith(b"\n")
    return out[:-1].split(b"\n"), err.decode().splitlines()


# ---- Names ----


@pytest.mark.usefixtures("utf8")
@pytest.mark.parametrize("options", [[], ["--args"], ["--long"], ["--long", "--args"]])
def test_text_has_one_printable_line_per_event(
    bootstrap: Start, programs: dict[str, bytes], options: list[str]
) -> None:
    command = bootstrap(*options)
    command.wait_for_header()
    both = [spawn(path, [path, *HOSTILE.values()]) for path in programs.values()]
    only_end = [end_as(name[:15]) for name in HOSTILE.values()]
    lines, _ = output_of(command)
    seen: dict[int, int] = dict.fromkeys(both + only_end, 0)
    for line in lines:
        text = line.decode("utf-8")  # strict
        assert text.isprintable(), text
        match = re.match(r"\d\d:\d\d:\d\d (EXEC|EXIT)  .*", text)
        assert match, text
        for pid in re.findall(rf" (\d+) +{os.getpid()} ", text):
            seen[int(pid)] = seen.get(int(pid), 0) + 1
    assert [seen[pid] for pid in both] == [2] * len(both)
    assert [seen[pid] for pid in only_end] == [1] * len(only_end)


@pytest.mark.usefixtures("utf8")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_unencodable_names_do_not_end_the_command(
    bootstrap: Start, programs: dict[str, bytes], encoding: str
) -> None:
    command = bootstrap("--args", env={**os.environ, "PYTHONIOENCODING": encoding})
    command.wait_for_header()
    pids = [spawn(path, [path, *HOSTILE.values()]) for path in programs.values()]
    lines, _ = output_of(command)
    text = b"\n".join(lines).decode(encoding)
    for pid in pids:
        assert len(re.findall(rf" {pid} +{os.getpid()} ", text)) == 2


@pytest.mark.usefixtures("utf8")
@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_json_gives_back_every_byte(
    bootstrap: Start, programs: dict[str, bytes], locale: str
) -> None:
    environ = {**os.environ, "LC_ALL": locale}
    if locale == "C":  # keep Python from switching to UTF-8
        environ |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = bootstrap("--json", env=environ)
    command.wait_for_tracing()
    argv = [*HOSTILE.values(), b"", b"end", b""]
    started = {spawn(path, argv): path for path in programs.values()}
    ended = {end_as(name[:15]): name for name in HOSTILE.values()}
    lines, _ = output_of(command)

    kinds: dict[int, list[str]] = {}
    for line in lines:
        event = json.loads(line.decode("ascii"))
        pid = event.get("pid")
        if pid in started:
            path = started[pid]
            assert exact_bytes(event, "filename") == path
            assert exact_bytes(event, "args") == argv
            assert exact_bytes(event, "comm") == os.path.basename(path)[:15]
        if pid in ended:
            assert exact_bytes(event, "comm") == ended[pid][:15]
        kinds.setdefault(pid, []).append(event["event"])
    assert all(kinds[pid] == ["exec", "exit"] for pid in started)
    assert all(kinds[pid] == ["exit"] for pid in ended)


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_name_changed_before_the_end(name: bytes) -> None:
    """The exec has the first name, the exit the last one."""
    change = "import ctypes, sys; ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0)"
    with Tracer() as tracer:
        pid = spawn(
            os.fsencode(sys.executable), [b"python", b"-c", change.encode(), name.hex().encode()]
        )
        seen = of_pids(collect(tracer, until_exit(pid)), {pid})
    assert [os.fsencode(e.comm) for e in seen] == [
        os.fsencode(os.path.basename(sys.executable))[:15],
        name[:15],
    ]
    assert seen[0].args == seen[1].args


def test_an_empty_name() -> None:
    with Tracer() as tracer:
        pid = end_as(b"")
        (event,) = exits(collect(tracer, until_exit(pid)), {pid})
    assert event.comm == ""


# ---- Arguments ----


ARGUMENTS = {
    "4 KB in one": [b"true", b"\x1b" * 4096],
    "4 KB of nothing": [b""] * 4096,
    "only empty": [b""],
    "empty first": [b"", b"x"],
    "line feeds": [b"\n"] * 1000,
    "as much as is kept": [b"true", b"\xff" * (8192 - 6)],
}


@pytest.mark.parametrize("argv", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments_are_whole(argv: list[bytes]) -> None:
    with Tracer() as tracer:
        pid = spawn(b"/bin/true", argv)
        events = of_pids(collect(tracer, until_exit(pid)), {pid})
    assert [type(e) for e in events] == [ExecEvent, ExitEvent]
    for event in events:
        assert event.args is not None
        assert [os.fsencode(arg) for arg in event.args] == argv
        assert not event.args_truncated


TOO_LONG = {
    "one byte too many": [b"true", b"\xff" * (8192 - 5)],
    "the longest argument": [b"true", b"\x9b" * (32 * os.sysconf("SC_PAGESIZE") - 1)],
    "cut between two": [b"a" * 4095, b"b" * 4095, b"\x1b"],
    "a megabyte of nothing": [b""] * 100_000,
}


@pytest.mark.parametrize("argv", TOO_LONG.values(), ids=TOO_LONG.keys())
def test_arguments_are_marked_if_cut_and_right_up_to_there(argv: list[bytes]) -> None:
    with Tracer() as tracer:
        pid = spawn(b"/bin/true", argv)
        events = of_pids(collect(tracer, until_exit(pid)), {pid})
        truncated = tracer.stats.truncated
    assert truncated >= 2
    assert [type(e) for e in events] == [ExecEvent, ExitEvent]
    whole = b"".join(arg + b"\0" for arg in argv)
    for event in events:
        assert event.args is not None
        assert event.args_truncated
        kept = b"\0".join(os.fsencode(arg) for arg in event.args)
        assert whole.startswith(kept)
        assert 8190 <= len(kept) <= 8192


@pytest.mark.parametrize("argv", [[], None], ids=["argv[0] is NULL", "argv is NULL"])
def test_an_empty_argument_list(argv: list[bytes] | None) -> None:
    """Since Linux 5.18 the kernel turns it into one empty argument."""
    release = os.uname().release.split(".")
    with Tracer() as tracer:
        pid = spawn(b"/bin/true", argv)
        events = of_pids(collect(tracer, until_exit(pid)), {pid})
    expected = ("",) if (int(release[0]), int(release[1])) >= (5, 18) else ()
    assert [e.args for e in events] == [expected, expected]
    assert [e.filename for e in events] == ["/bin/true"] * 2


@pytest.mark.usefixtures("utf8")
@pytest.mark.parametrize("options", [["--args"], ["--json"]])
def test_the_command_shows_any_arguments(bootstrap: Start, options: list[str]) -> None:
    command = bootstrap(*options)
    command.wait_for_tracing()
    pids = [spawn(b"/bin/true", a) for a in [*ARGUMENTS.values(), *TOO_LONG.values(), [], None]]
    lines, _ = output_of(command)
    for pid in pids:
        form = rf'"pid":{pid},' if options == ["--json"] else rf" {pid} +{os.getpid()} "
        assert sum(bool(re.search(form.encode(), line)) for line in lines) == 2


# ---- Numbers ----


def test_thousands_of_short_processes() -> None:
    """The shell counts its processes; every second one calls exec."""
    count = 2000
    script = f"i=0; while [ $i -lt {count} ]; do (:); /bin/true; i=$((i+1)); done; echo $i"
    with Tracer() as tracer:
        shell = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE)
        events = collect(tracer, until_exit(shell.pid))
        out, _ = shell.communicate()
        tracer.stop()
        events += tracer
        assert_balanced(tracer, events)
        assert tracer.stats.lost == 0
    assert int(out) == count
    children = [e for e in events if not isinstance(e, LostEvent) and e.ppid == shell.pid]
    assert sum(isinstance(e, ExecEvent) for e in children) == count
    ends = [e for e in children if isinstance(e, ExitEvent)]
    assert len({(e.pid, e.start_boottime_ns) for e in ends}) == len(ends) == 2 * count


BOMB = """
import os, random
while True:
    try:
        os.fork()
    except OSError:
        pass
    if random.random() < 0.3:
        os._exit(3)
"""

# Starts the bomb in a cgroup, ends it once it has met its limit, and counts how many processes have
# ended, because it adopts all orphans.
KEEPER = """
import ctypes, os, pathlib, signal, sys, time
group, bomb = pathlib.Path(sys.argv[1]), sys.argv[2]
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
ended = 0

def reap():
    global ended
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            ended += 1
    except ChildProcessError:
        return False
    return True

def members():
    return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]

def hits():
    return int((group / "pids.events").read_text().split()[1])

end = time.monotonic() + 20
while not (hits() and ended > 500) and time.monotonic() < end:
    if not reap() and os.fork() == 0:  # at first, and should it have died out
        (group / "cgroup.procs").write_text(str(os.getpid()))
        exec(compile(bomb, "bomb", "exec"), {})
    time.sleep(0.001)
(group / "pids.max").write_text("0")  # no more forks
end = time.monotonic() + 20
while reap() and time.monotonic() < end:
    for pid in members():  # all below us, so none is gone for good before we reap it
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    time.sleep(0.01)
print(ended)
"""


@pytest.fixture
def pids_cgroup() -> Iterator[Path]:
    """A new cgroup, v1 or v2, that allows 64 tasks."""
    with new_cgroup("bomb", "pids") as group:
        (group / "pids.max").write_text("64")
        yield group


def test_a_fork_bomb_in_a_cgroup(pids_cgroup: Path) -> None:
    with Tracer() as tracer:
        keeper = subprocess.Popen(
            [sys.executable, "-c", KEEPER, str(pids_cgroup), BOMB],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        events = collect(tracer, until_exit(keeper.pid))
        out, _ = keeper.communicate()
        tracer.stop()
        events += tracer
        assert_balanced(tracer, events)
        lost = tracer.stats.lost
    assert keeper.returncode == 0
    bomb = [
        e
        for e in events
        if isinstance(e, ExitEvent) and e.sid == keeper.pid and e.pid != keeper.pid
    ]
    assert len({(e.pid, e.start_boottime_ns) for e in bomb}) == len(bomb)
    assert len(bomb) <= int(out) <= len(bomb) + lost
    assert int(out) > 500
    hit = (pids_cgroup / "pids.events").read_text().split()
    assert int(hit[1]) > 0, "the bomb never reached its limit"
    assert not execs(events, {e.pid for e in bomb})
