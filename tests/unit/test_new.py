# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The project that pybootstrap.engine.new writes; tests/live/test_your_own_tool.py runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "pybootstrap/engine/template"


def new(directory: Path, *words: str, tree: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs the command in a directory, with the pybootstrap of this tree."""
    return subprocess.run(
        [sys.executable, "-m", "pybootstrap.engine.new", *words],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def make(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # Hide the variables of a "make test" that may have started us.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *words], cwd=directory, env=env, capture_output=True, text=True, check=False
    )


def files(directory: Path) -> dict[str, str]:
    """The files of a project, by path."""
    found = (path for path in directory.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(directory)): path.read_text() for path in found}


def refused(directory: Path, *words: str) -> str:
    """Expects a refusal that changes no file; returns its one sentence."""
    before = files(directory)
    done = new(directory, *words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert files(directory) == before
    return line


def test_the_template_is_written_under_the_given_name(tmp_path: Path) -> None:
    done = new(tmp_path, "sig_nals")
    assert (done.returncode, done.stderr) == (0, "")
    written = files(tmp_path / "sig_nals")
    assert {name.replace("sig_nals", "mytool") for name in written} == set(files(TEMPLATE))
    assert not [name for name, text in written.items() if "mytool" in name + text]
    assert "from sig_nals import" in written["tests/test_sig_nals.py"]


def test_an_empty_directory_is_used_and_missing_ones_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for directory in ("empty", "not/yet there"):
        assert new(tmp_path, "mytool", directory).returncode == 0
        assert (tmp_path / directory / "mytool/__init__.py").is_file()


def test_a_project_refers_to_the_checkout_that_wrote_it(tmp_path: Path) -> None:
    place = tmp_path / "a $(HOME) # 'place'"
    shutil.copytree(ROOT / "pybootstrap", place / "pybootstrap")
    shutil.copytree(ROOT / "bpf", place / "bpf")
    new(tmp_path, "mytool", tree=place)
    shown = make(tmp_path / "mytool", '--eval=show:;@echo "$$PYBOOTSTRAP"', "show")
    assert shown.stdout == f"{place}\n"


def test_an_installed_package_writes_the_same_and_asks_for_a_wheel(
    tmp_path: Path, installed: Path
) -> None:
    subprocess.run([sys.executable, "-m", "compileall", "-q", installed], check=True)
    done = new(tmp_path, "mytool", tree=installed)
    assert done.stdout.endswith("PYBOOTSTRAP=..., a wheel or a checkout of pybootstrap\n")
    new(tmp_path, "mytool", "other")
    ours, others = files(tmp_path / "mytool"), files(tmp_path / "other")
    asks, knows = ours.pop("Makefile"), others.pop("Makefile")
    assert ours == others
    assert asks == knows.replace(f"PYBOOTSTRAP ?= {ROOT}\n", "PYBOOTSTRAP ?=\n")

    made = make(tmp_path / "mytool")
    assert made.returncode == 2
    assert made.stderr.startswith(
        "make: set PYBOOTSTRAP, in the Makefile or on the command line, "
        "to a wheel or a checkout of pybootstrap\n"
    )
    assert not (tmp_path / "mytool/.venv").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "'' is not a name"),
        ("my-tool", "'my-tool' is not a name"),
        ("2tools", "'2tools' is not a name"),
        ("tool_", "'tool_' is not a name"),
        ("../tool", "'../tool' is not a name"),
        ("työkalu", "'työkalu' is not a name"),
        ("mytool\n", r"'mytool\n' is not a name"),
        ("import", "'import' is a keyword"),
        ("struct", "'struct' is a keyword"),
        ("json", "'json' is already a Python module"),
        ("pybootstrap", "'pybootstrap' is already a Python module"),
        ("pytest", "'pytest' is already a Python module"),
        ("bpf", "'bpf' already has a meaning"),
    ],
)
def test_unusable_names_are_refused(tmp_path: Path, name: str, why: str) -> None:
    assert f": {why}" in refused(tmp_path, name, "there")


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mytool").mkdir()
    (tmp_path / "mytool/.hidden").write_text("mine")
    assert ": mytool is not empty: name another directory" in refused(tmp_path, "mytool")
    for directory in ("mytool/.hidden", "mytool/.hidden/below"):
        why = f": cannot write to {directory}: Not a directory"
        assert why in refused(tmp_path, "mytool", directory)
