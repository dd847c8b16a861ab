# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Real output, of every kind, against the schemas in the package."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.support import Command, run
from tests.unit.test_schema import FORMS, validator

Start = Callable[..., Command]
LOST = 600  # processes whose events do not fit into the smallest ring


def crash() -> int:
    """Runs a process that ends with SIGSEGV, and with a core dump if the machine makes them."""
    code = "import os, resource as r; r.setrlimit(r.RLIMIT_CORE, (1, 1)); os.kill(os.getpid(), 11)"
    return run(sys.executable, "-c", code)[1]


@pytest.mark.parametrize(("form", "option"), [("json", "-j"), ("json-otel", "--json=otel")])
def test_real_output_is_valid(form: str, option: str, bootstrap: Start, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    odd = tmp_path / os.fsdecode(b"odd \xff")
    odd.symlink_to("/bin/true")
    command = bootstrap(option, "-o", str(file), "--ring-size", "64K", "--ppid", str(os.getpid()))
    command.wait_for_tracing()
    crash()
    run("sh", "-c", "kill -9 $$")
    run("sh", "-c", "exit 3")
    run(str(odd), os.fsdecode(b"\xfe"))
    command.stop()
    for _ in range(LOST):
        run("true")
    command.process.send_signal(signal.SIGCONT)
    status, out, _ = command.end(signal.SIGTERM)
    assert (status, out) == (0, "")
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    check = validator(form)
    for line in lines:
        check.validate(line)
    kinds = {line[FORMS[form].EVENT].removeprefix("bootstrap.") for line in lines}
    assert kinds == {"exec", "exit", "lost", "trace_start", "trace_end"}
    names = {name for line in lines for name in line}
    signals = {line.get(FORMS[form].member("signal")) for line in lines}
    assert {9, 11} <= signals
    assert {name.rpartition("_")[2] for name in names} >= {"base64"}
