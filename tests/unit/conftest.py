# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Fixtures of several modules."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with pybootstrap as a wheel installs it, but without the extension."""
    tree = tmp_path_factory.mktemp("pybootstrap")
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("bpf", "docs", "pybootstrap", "vmlinux", "LICENSES"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, tree)
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "installed"]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    return tree / "installed"
