# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Giving up root, tracing without root, and whose rights an output file is opened with."""

from __future__ import annotations

import errno
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pybootstrap import SettingError
from pybootstrap.engine.privileges import Account, account, invoking_account
from tests.live.conftest import Feed, Start
from tests.live.source import A, Sender
from tests.support import run, run_until, status_of

NOBODY = pwd.getpwnam("nobody")
SUDO = {"SUDO_UID": str(NOBODY.pw_uid), "SUDO_GID": str(NOBODY.pw_gid)}


@pytest.mark.parametrize(
    ("environ", "arguments", "uid"),
    [
        (SUDO, [], NOBODY.pw_uid),
        ({}, ["--run-as", "nobody"], NOBODY.pw_uid),
        ({"SUDO_UID": "0", "SUDO_GID": "0"}, [], 0),
        ({}, [], 0),
    ],
)
def test_tracing_continues_after_privileges_are_given_up(
    bootstrap: Start, environ: dict[str, str], arguments: list[str], uid: int
) -> None:
    command = bootstrap(*arguments, env={**os.environ, **environ})
    command.wait_for_header()
    status = status_of(command.process.pid)
    pid, _ = run("/bin/true")
    ended, out, err = command.end(signal.SIGTERM)
    assert status["Uid"].split() == [str(uid)] * 4
    assert [status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == ["0" * 16] * 5
    assert status["NoNewPrivs"] == "1"
    if uid:
        assert status["Gid"].split() == [str(NOBODY.pw_gid)] * 4
        assert set(status["Groups"].split()) <= {str(NOBODY.pw_gid)}
    assert (ended, err) == (0, "")
    assert len(re.findall(rf"^\S+ E\w+ +true +{pid} ", out, re.MULTILINE)) == 2


def test_an_output_file_belongs_to_the_invoking_user(bootstrap: Start, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    forbidden, allowed = tmp_path / "root", tmp_path / "nobody"
    forbidden.mkdir(mode=0o700)
    allowed.mkdir()
    shutil.chown(allowed, "nobody")
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o1 == 0:
            parent.chmod(parent.stat().st_mode | 0o1)  # pytest's own directories are private
    environ = {**os.environ, **SUDO}
    status, _, err = bootstrap("-n", "1", "-o", str(forbidden / "x"), env=environ).end()
    assert (status, err.count("\n")) == (74, 1)
    assert "Permission denied" in err
    command = bootstrap("-n", "2", "-o", str(allowed / "x"), env=environ)
    run_until(lambda: command.process.poll() is not None)
    assert (allowed / "x").stat().st_uid == NOBODY.pw_uid
    assert len((allowed / "x").read_text().splitlines()) == 3


def test_a_fifo_without_reader_is_an_error(bootstrap: Start, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    status, _, err = bootstrap("-o", str(tmp_path / "fifo")).end()
    assert (status, err.count("\n")) == (74, 1)


def output_of(command: list[str]) -> str:
    """The output of a command that must end by itself with status 0 while processes come and go."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run_until(lambda: process.poll() is not None)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    return out


def test_a_plain_user_with_two_capabilities_can_trace() -> None:
    """CAP_BPF and CAP_PERFMON are enough: every other right is taken away."""
    prefix = ["setpriv", "--bounding-set=-all,+bpf,+perfmon"]
    out = output_of([*prefix, sys.executable, "-m", "pybootstrap", "-n", "2"])
    assert len(out.splitlines()) == 3


def test_check_without_privilege() -> None:
    ended = subprocess.run(
        ["setpriv", "--bounding-set=-all", sys.executable, "-m", "pybootstrap", "--check"],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (77, "")
    assert "NOT OK  capabilities: tracing needs the capabilities CAP_BPF and" in ended.stdout


def test_strict(bootstrap: Start, feed: Feed) -> None:
    """Nobody reads standard output until far more events have come than the ring holds."""
    reading, writing = os.pipe()
    command = bootstrap("-j", "--strict", "-p", "1", "--ring-size", "64K", stdout=writing)
    os.close(writing)
    command.wait_for_tracing()
    with feed(command.pid) as source:
        assert source.sent(Sender(A, 12_000)).lost > 0
    command.process.send_signal(signal.SIGTERM)
    with open(reading, "rb") as pipe:
        lines = pipe.read().splitlines()
    status, _, err = command.end()
    assert status == 1
    assert any(b'"event":"lost"' in line for line in lines)
    assert "events were lost" in err.splitlines()[-1]


def test_accounts() -> None:
    expected = Account(NOBODY.pw_uid, NOBODY.pw_gid, [NOBODY.pw_gid])
    assert account("nobody") == account(str(NOBODY.pw_uid)) == expected
    assert invoking_account(SUDO) == expected
    assert invoking_account({}) is None
    assert invoking_account({"SUDO_UID": "0", "SUDO_GID": "0"}) is None
    without_entry = {"SUDO_UID": "3999999", "SUDO_GID": "7"}
    assert invoking_account(without_entry) == Account(3999999, 7, [7])
    for bad in ({"SUDO_UID": "x", "SUDO_GID": "0"}, {"SUDO_UID": "5"}):
        with pytest.raises(SettingError, match="SUDO_UID"):
            invoking_account(bad)
    with pytest.raises(SettingError, match="no-such-user"):
        account("no-such-user")


SERVICE = """
import ctypes, os
from pybootstrap import Tracer
from pybootstrap.engine.privileges import give_up
with Tracer() as tracer:
    os.setgroups([])
    os.setresgid(*[{gid}] * 3)
    os.setresuid(*[{uid}] * 3)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as for whoever began as this user
    print(tracer.fileno(), flush=True)
    input()
    give_up(None)
    print("given up", flush=True)
    input()
"""
TAKER = """
import ctypes, os, sys
pid, fd = map(int, sys.argv[1:])
os.setgroups([])
os.setresgid(*[{gid}] * 3)
os.setresuid(*[{uid}] * 3)
libc = ctypes.CDLL(None, use_errno=True)
taken = libc.syscall(438, os.pidfd_open(pid), fd, 0)  # pidfd_getfd(2) on all machines but alpha
print("taken" if taken >= 0 else os.strerror(ctypes.get_errno()))
"""


def as_nobody(script: str) -> list[str]:
    return [sys.executable, "-c", script.format(uid=NOBODY.pw_uid, gid=NOBODY.pw_gid)]


def test_another_process_of_its_user_cannot_take_its_descriptors() -> None:
    """Dropping capabilities makes a process easier to trace, unless it stops being dumpable."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(as_nobody(SERVICE), **pipes) as service:  # type: ignore[call-overload]
        fd = service.stdout.readline().strip()

        def take() -> str:
            taker = [*as_nobody(TAKER), str(service.pid), fd]
            return subprocess.run(taker, capture_output=True, check=True, text=True).stdout.strip()

        assert take() == "taken"  # or the refusal below would mean nothing
        service.stdin.write("\n")
        service.stdin.flush()
        assert service.stdout.readline() == "given up\n"
        assert take() == os.strerror(errno.EPERM)
        service.communicate("\n")
    assert service.returncode == 0


def test_an_output_file_is_opened_as_the_invoking_user_despite_run_as(
    bootstrap: Start, tmp_path: Path
) -> None:
    """A sudoers(5) rule for this one command must not grant the right to write any file."""
    tmp_path.chmod(0o700)
    path = tmp_path / "x"
    environ = {**os.environ, **SUDO}
    status, _, err = bootstrap("--run-as", "root", "-o", str(path), env=environ).end()
    assert (status, err.count("\n")) == (74, 1)
    assert "Permission denied" in err
    assert not path.exists()


def test_standard_output_can_be_named(bootstrap: Start) -> None:
    command = bootstrap("-o", "-")
    command.wait_for_header()
    assert command.end(signal.SIGTERM)[0] == 0


def test_invalid_ids_from_sudo_are_refused() -> None:
    for number in ("4294967295", "4294967296", "9" * 5000):
        for environ in ({**SUDO, "SUDO_UID": number}, {**SUDO, "SUDO_GID": number}):
            with pytest.raises(SettingError, match="unset them"):
                invoking_account(environ)
        with pytest.raises(SettingError, match="there is no user"):
            account(number)


@pytest.mark.parametrize("arguments", [["-n", "1"], ["--check"]])
def test_without_proc(arguments: list[str]) -> None:
    script = 'umount -l /proc && exec "$0" -m pybootstrap "$@"'
    assert output_of(["unshare", "--mount", "sh", "-c", script, sys.executable, *arguments])
