# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""A wheel that was unpacked where pip would have refused it: one sentence, from a real loader."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Callable

import pytest

import pybootstrap
from pybootstrap.engine import misfit

NATIVE = "pybootstrap/engine/_native.abi3.so"
X86_64, AARCH64 = 62, 183  # elf.h


def for_another_architecture(native: Path) -> None:
    content = bytearray(native.read_bytes())
    other = X86_64 if content[18] == AARCH64 else AARCH64
    content[18:20] = other.to_bytes(2, "little")
    native.write_bytes(content)


def for_a_newer_glibc(native: Path) -> None:
    content = native.read_bytes()
    (newest, *_) = sorted(set(re.findall(rb"GLIBC_2\.\d\d\0", content)), reverse=True)
    native.write_bytes(content.replace(newest, b"GLIBC_9.99\0"))


CAUSES: dict[str, tuple[Callable[[Path], None], str]] = {
    "architecture": (for_another_architecture, r"the wheel is for \w+ and this Python for \w+:"),
    "glibc": (for_a_newer_glibc, "does not fit this machine .*`GLIBC_9.99' not found"),
    "missing": (Path.unlink, "its extension module is missing"),
}


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=site, capture_output=True, text=True, check=False
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    shutil.copytree(Path(pybootstrap.__file__).parent, tmp_path / "pybootstrap")
    return tmp_path


@pytest.mark.parametrize("cause", CAUSES)
def test_one_sentence_says_what_does_not_fit(site: Path, cause: str) -> None:
    damage, expected = CAUSES[cause]
    damage(site / NATIVE)
    for option in ("--version", "--check", "-n1"):
        done = run(site, "-m", "pybootstrap", option)
        assert done.returncode == 69, done
        assert re.fullmatch(f"bootstrap: .*{expected}.*\n", done.stderr), done
    done = run(site, "-c", "from pybootstrap import Tracer")
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(f"ImportError: pybootstrap: .*{expected}.*", last), done
    assert done.stderr.count("Traceback") == 1, done


def test_a_missing_cffi_is_named(site: Path) -> None:
    done = run(site, "-S", "-m", "pybootstrap", "--version")  # without site-packages
    assert done.returncode == 69, done
    assert re.fullmatch("bootstrap: the package cffi is missing: `.* install .*\n", done.stderr)


def test_free_threaded_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its import system does not look for .abi3.so, so this is the error there.
    error = ModuleNotFoundError("No module named ...", name="pybootstrap.engine._native")
    monkeypatch.setitem(sysconfig.get_config_vars(), "Py_GIL_DISABLED", 1)
    assert misfit.explain(error).startswith("free-threaded Python is not supported")


def test_other_import_errors_are_not_explained() -> None:
    assert misfit.explain(ModuleNotFoundError("No module named 'json'", name="json")) == ""


def test_help_needs_no_extension_module(site: Path) -> None:
    (site / NATIVE).unlink()
    assert run(site, "-m", "pybootstrap", "--help").returncode == 0
