# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command tcplife and its wheel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import tcplife
from connections import (
    DEADLINE_S,
    Ends,
    close,
    connect,
    ends,
    listen,
    send,
    this_process,
    wait_until,
)

PROJECT = Path(tcplife.__file__).parents[1]


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    run = "import sys, tcplife; sys.exit(tcplife.main())"
    with subprocess.Popen(
        [sys.executable, "-c", run, *arguments],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as it:
        try:
            yield it
        finally:
            it.kill()


def test_lines_of_text() -> None:
    with listen("::1") as listener, command("--port", str(listener.getsockname()[1])) as it:
        assert it.stdout is not None
        header = it.stdout.readline().split()
        client, server = connect(listener)
        send(client, server, 1234)
        here = ends(client)
        close(client, server)
        fields, _ = it.stdout.readline().split(), it.stdout.readline()
        it.send_signal(signal.SIGINT)
        rest, errors = it.communicate(timeout=DEADLINE_S)
    assert header == ["TIME", "PID", "COMM", "MS", "SENT", "RECEIVED", "LOCAL", "REMOTE"]
    shown = dict(zip(header, fields))
    assert (shown["PID"], shown["COMM"]) == (str(os.getpid()), this_process()[1])
    assert (shown["SENT"], shown["RECEIVED"]) == ("1234", "0")
    assert shown["LOCAL"] == f"[::1]:{here.local_port}"
    assert shown["REMOTE"] == f"[::1]:{here.remote_port}"
    assert float(shown["MS"]) > 0
    assert (it.returncode, rest, errors) == (0, "", "")


def is_attached(pid: int) -> bool:
    """Whether the process has a link open, which is what attaches a program."""
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if "link_id" in info.read_text():
                return True
    return False


def test_lines_of_json() -> None:
    with listen() as listener:
        port = listener.getsockname()[1]
        with command("--json", "-n", "2", "--port", "1", "--port", str(port)) as it:
            wait_until(lambda: is_attached(it.pid))
            client, server = connect(listener)
            wanted = ends(client), ends(server)
            send(client, server, 5)
            close(client, server)
            out, errors = it.communicate(timeout=DEADLINE_S)
    assert (it.returncode, errors) == (0, "")
    found = {}
    first, *events, last = map(json.loads, out.splitlines())
    assert (first["event"], last["event"], last["name"]) == ("trace_start", "trace_end", "tcplife")
    for one in events:
        assert (one["event"], one["pid"], one["comm"]) == ("closed", *this_process())
        assert one["duration_ns"] > 0
        found[tuple(one[name] for name in Ends._fields)] = one["sent"], one["received"]
    assert found == {wanted[0]: (5, 0), wanted[1]: (0, 5)}


def test_invalid_options_are_refused() -> None:
    with command("--port", "65536") as it:
        _, errors = it.communicate(timeout=DEADLINE_S)
    assert it.returncode == 2
    assert errors.startswith("tcplife: argument --port: '65536' is not a whole number")


# ---- The package ----


def test_one_wheel_runs_on_every_python(tmp_path: Path) -> None:
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"tcplife-{tcplife.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {"tcplife/__init__.py", "tcplife/tcplife.bpf.o"}
