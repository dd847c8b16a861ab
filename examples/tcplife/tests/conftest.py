# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Builds a copy of the tool and tests that, so the tool need not be installed first."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

COPY = Path(tempfile.mkdtemp(prefix="tcplife-"))
atexit.register(shutil.rmtree, COPY)
for part in ("bpf", "tcplife", "pyproject.toml", "setup.py", "README.md"):
    source = Path(__file__).parents[1] / part
    copy = shutil.copytree if source.is_dir() else shutil.copy
    copy(source, COPY / part)
subprocess.run([sys.executable, "setup.py", "-q", "build_bpf", "--inplace"], cwd=COPY, check=True)
sys.path.insert(0, str(COPY))
pytest.register_assert_rewrite("connections")


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Skips tests that cannot run here, or fails them if PYBOOTSTRAP_REQUIRE_KERNEL=1."""
    missing = [name for name in ("ip", "ss", "unshare") if shutil.which(name) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if missing:
        refuse = pytest.fail if os.environ.get("PYBOOTSTRAP_REQUIRE_KERNEL") == "1" else pytest.skip
        refuse(f"these tests need {', '.join(missing)}")
