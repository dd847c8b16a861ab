# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The checks of in_root.py about what does not work here: who refuses it, and in which words.

The machine has no BTF: run.py hid it.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from checking import Check
from in_root import COMMAND, VENV, WHEELS, check_install, pip, run

EX_UNAVAILABLE = 69
NOT_SUPPORTED = "is not a supported wheel on this platform"


def our_wheel(architecture: str) -> Path:
    (wheel,) = WHEELS.glob(f"pybootstrap_bpf-*_{architecture}.whl")
    return wheel


def refused_by_pip(expected: str, *arguments: str | Path) -> str:
    """Let pip fail; return the error that says what we expect."""
    done = pip(*arguments)
    assert done.returncode != 0, done.stdout
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR: ")]
    said = [line for line in errors if re.search(expected, line)]
    assert said, done.stdout
    return said[0].partition(" ")[2]


def check_architecture_refused() -> str:
    wheel = our_wheel("aarch64")
    return refused_by_pip(
        "is not a supported wheel on this platform", "install", "--no-deps", wheel
    )


def check_glibc_refused() -> str:
    """A wheel whose tag asks for a glibc that is newer than any."""
    wheel = our_wheel("x86_64")
    with tempfile.TemporaryDirectory() as folder:
        newer = Path(folder, re.sub("manylinux.*_x86_64", "manylinux_2_99_x86_64", wheel.name))
        shutil.copy(wheel, newer)
        return refused_by_pip(NOT_SUPPORTED, "install", "--no-deps", newer)


def check_other_pythons_refused() -> str:
    """Pip, choosing for Python 3.8 and for free-threaded 3.14, refuses what it takes for 3.9."""
    with tempfile.TemporaryDirectory() as folder:
        command = (
            "download", "--no-deps", "--dest", folder, "--only-binary", ":all:",
            "--platform", "manylinux2014_x86_64", "--implementation", "cp", our_wheel("x86_64"),
        )  # fmt: skip
        taken = pip(*command, "--python-version", "3.9")
        assert taken.returncode == 0, taken.stdout
        refused_by_pip(NOT_SUPPORTED, *command, "--python-version", "3.14", "--abi", "cp314t")
        return refused_by_pip(NOT_SUPPORTED, *command, "--python-version", "3.8")


def forced(architecture: str, python: Path = VENV / "bin/python") -> str:
    """Unpack a wheel, as somebody does whom pip refused; return the one line that it says."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(our_wheel(architecture)).extractall(folder)
        start = f"import sys; sys.path.insert(0, {folder!r}); "
        done = run(
            python, "-c", start + "from pybootstrap.cli import main; sys.exit(main(['-n1']))"
        )
        assert done.returncode == EX_UNAVAILABLE, done.stdout
        assert done.stdout.count("\n") == 1, done.stdout
        imported = run(python, "-c", start + "from pybootstrap import Tracer").stdout
        said = done.stdout.strip().partition(": ")[2]
        assert imported.splitlines()[-1] == f"ImportError: pybootstrap: {said}", imported
        return said


def check_architecture_forced() -> str:
    said = forced("aarch64")
    assert "is for aarch64 and this Python for x86_64" in said, said
    return said


def check_cffi_missing() -> str:
    """The system's Python has no cffi."""
    said = forced("x86_64", Path(sys.executable))
    assert "the package cffi is missing" in said, said
    return said


def check_no_btf() -> str:
    """A kernel without BTF is named by the command, and by --check."""
    done = run(COMMAND, "-n", "1")
    assert done.returncode == EX_UNAVAILABLE, done.stdout
    assert re.fullmatch("bootstrap: this kernel has no type information .*\n", done.stdout), done
    said = done.stdout.strip().partition(": ")[2]
    done = run(COMMAND, "--check")
    assert done.returncode == EX_UNAVAILABLE, done.stdout
    assert f"NOT OK  BTF: {said}\n" in done.stdout, done.stdout
    return said


CHECKS: tuple[Check, ...] = (
    check_architecture_refused, check_glibc_refused, check_other_pythons_refused, check_install,
    check_architecture_forced, check_cffi_missing, check_no_btf,
)  # fmt: skip
