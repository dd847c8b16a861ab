# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The checks of guest.py that load the package: the cases of tests/cases.py, and these."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import SkipTest

from checking import Check

from tests.cases import CASES, EX_NOPERM, OTHER_USER, load_time
from tests.support import DEADLINE_S

LOAD_TIMED: dict[str, dict[str, Any]] = {"default": {}, "no args": {"args": False}}


def check_cffi() -> str:
    """The only compiled dependency can be loaded."""
    backend = importlib.import_module("_cffi_backend")
    return f"_cffi_backend {backend.__version__}"


def check_load_time() -> str:
    """The time that loading takes, best of three; emulation makes it about twenty times longer."""
    best = {name: min(load_time(s) for _ in range(3)) for name, s in LOAD_TIMED.items()}
    return ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in best.items())


def others_may_not_run(path: str) -> bool:
    """Return whether other users cannot reach or run a program."""
    return any(not part.stat().st_mode & 0o001 for part in (Path(path), *Path(path).parents))


def check_other_user() -> str:
    """Like check_unprivileged, but as another user, because here others can read the package."""
    # The interpreter itself, because other users may not reach a virtual environment.
    python = os.path.realpath(sys.executable)
    if others_may_not_run(python):
        raise SkipTest(f"only its owner may run {python}")
    done = subprocess.run(
        [python, "-m", "pybootstrap", "-n", "1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False, timeout=DEADLINE_S,
        user=OTHER_USER, group=OTHER_USER, extra_groups=[], cwd="/",
    )  # fmt: skip
    assert done.returncode == EX_NOPERM, f"status {done.returncode}: {done.stdout}"
    assert done.stdout.count("\n") == 1, f"more or less than one line: {done.stdout}"
    return done.stdout.strip()


CHECKS: tuple[Check, ...] = (check_cffi, check_load_time, *CASES, check_other_user)
