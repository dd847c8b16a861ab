# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Filters: values they refuse, the cost of unused ones, and the options of the command.

cases.py checks what they let through.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pybootstrap import SettingError, Tracer
from tests.live.conftest import Start
from tests.support import bpftool, held_by, run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pids": [0]}, "pids"),
        ({"pids": ["1"]}, "pids"),
        ({"pids": range(1, 66)}, "at most 64"),
        ({"pids": 5}, r"pids takes a list of values, such as \[5\], not 5"),
        ({"pids": "5"}, "pids takes a list"),
        ({"ppids": b"5"}, "ppids takes a list"),
        ({"users": "root"}, r"such as \['root'\], not 'root'"),
        ({"comms": "true"}, "comms takes a list"),
        ({"cgroups": "/sys/fs/cgroup"}, "cgroups takes a list"),
        ({"cgroups": Path("/sys/fs/cgroup")}, "cgroups takes a list"),
        ({"cgroups": [5]}, "paths of directories, not 5"),
        ({"cgroups": ["/a\0b"]}, "null"),
        ({"users": [1.5]}, "users"),
        ({"users": ["9" * 5000]}, "there is no user"),
        ({"comms": [5]}, "names of commands, not 5"),
        ({"comms": ["a\0b"]}, "names of commands"),
        ({"users": ["no-such-user"]}, "no-such-user"),
        ({"users": [-1]}, "users"),
        ({"comms": ["sixteen-bytes-xx"]}, "'sixteen-bytes-x'"),
        ({"cgroups": ["/no/such/cgroup"]}, "/no/such/cgroup"),
        ({"cgroups": ["/bin/sh"]}, "/bin/sh"),
        ({"cgroups": ["/tmp"]}, "cgroup v2"),
    ],
)
def test_wrong_values_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message), Tracer(**settings):  # type: ignore[arg-type]
        pass


def translated_bytes(tracer: Tracer) -> int:
    """The length of the programs after the verifier has removed dead code."""
    with tracer:
        ids = {number for kind, number in held_by() if kind == "prog"}
        return sum(bpftool("prog", "show", "id", str(number))["bytes_xlated"] for number in ids)


def test_a_filter_that_is_off_leaves_no_instruction() -> None:
    plain = translated_bytes(Tracer(args=False))
    assert translated_bytes(Tracer(args=False, failed=False, pids=[], users=[])) == plain
    for settings in ({"pids": [1]}, {"ppids": [1]}, {"users": [0]}, {"comms": ["x"]}):
        assert translated_bytes(Tracer(args=False, **settings)) > plain
    assert translated_bytes(Tracer(args=False, failed=True)) < plain  # no exec is sent at all


def test_a_user_id_with_too_many_digits_is_an_error(bootstrap: Start) -> None:
    status, out, err = bootstrap("-u", "9" * 5000).end()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "there is no user" in err


def test_the_options_filter_as_the_settings_do(bootstrap: Start) -> None:
    command = bootstrap("-x", "-u", "root", "-c", "sh", "--ppid", str(os.getpid()))
    command.wait_for_header()
    run("/bin/false")
    run("/bin/sh", "-c", "exit 0")
    pid, _ = run("/bin/sh", "-c", "exit 3")
    _, out, err = command.end(signal.SIGTERM)
    assert err == ""
    (line,) = out.splitlines()
    assert line.split()[1:5] == ["EXIT", "sh", str(pid), str(os.getpid())]
