# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Building a tool of one's own with pybootstrap.engine.build. Nothing is loaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EM_BPF = 247  # elf.h

PROJECT = """\
[build-system]
requires = ["setuptools>=77", "pybootstrap-bpf"]
build-backend = "setuptools.build_meta"

[project]
name = "count"
version = "1"

[tool.setuptools]
packages = ["count"]
"""
SETUP = """\
from setuptools import setup
from pybootstrap.engine.build import bpf_objects

setup(cmdclass=bpf_objects("bpf/count.bpf.c", into="count"))
"""
PROGRAM = """\
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "ring.bpf.h"
#include "count.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("raw_tp/sys_enter")
int count(u64 *ctx)
{
	struct count *c = ring_reserve(sizeof(*c));

	if (!c)
		return 0;
	c->value = ctx[1];
	ring_submit(&c->header, sizeof(*c), 1, 0, bpf_ktime_get_boot_ns());
	return 0;
}
"""
HEADER = """\
#include "ring.h"

struct count {
	struct record_header header;
	unsigned long long value;
};
"""


class Tool:
    """The project of a tool, with a clang that records what it compiled."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = self.write("bpf/count.bpf.c", PROGRAM)
        self.header = self.write("bpf/count.h", HEADER)
        self.write("pyproject.toml", PROJECT)
        self.write("setup.py", SETUP)
        self.write("count/__init__.py", "")
        self.out = directory / "dist"

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, *command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.directory,
            env={**os.environ, "V": "", "VMLINUX": "", **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    def pip_wheel(self, source: str | Path = ".", **environ: str) -> Path:
        """Builds a wheel with pip."""
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
        done = self.run(*command, "-w", self.out, source, **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.only("*.whl")

    def wheel(self, **environ: str) -> Path:
        """Builds a wheel without pip, which would take most of the time."""
        done = self.backend("build_wheel", **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.only("*.whl")

    def backend(self, hook: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Calls the build backend as pip does."""
        code = f"from setuptools import build_meta; build_meta.{hook}('dist')"
        return self.run(sys.executable, "-c", code, **environ)

    def only(self, pattern: str) -> Path:
        (path,) = self.out.glob(pattern)
        return path

    def fails(self, **environ: str) -> str:
        """Builds a wheel, which must fail with one sentence; returns that."""
        done = self.backend("build_wheel", **environ)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.count("pybootstrap:") == 1
        return done.stderr.splitlines()[-1]

    def compiled(self, **environ: str) -> bytes | None:
        """Builds a wheel; returns its object if that had to be compiled."""
        log = self.directory / "clang.log"
        clang = self.write("clang", f'#!/bin/sh\necho "$*" >>"{log}"\nexec clang "$@"\n')
        clang.chmod(0o755)
        log.unlink(missing_ok=True)
        wheel = self.wheel(CLANG=str(clang), **environ)
        return objects(wheel)["count/count.bpf.o"] if " -c " in read(log) else None


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def objects(wheel: Path) -> dict[str, bytes]:
    """The files in a wheel that are neither Python nor metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" not in n and not n.endswith(".py")]
        return {name: archive.read(name) for name in names}


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path / "a tool")


def test_a_wheel_runs_on_any_python_and_holds_the_object(tool: Tool) -> None:
    wheel = tool.pip_wheel()
    assert wheel.name == "count-1-py3-none-any.whl"
    assert list(objects(wheel)) == ["count/count.bpf.o"]
    header = objects(wheel)["count/count.bpf.o"][:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], sys.byteorder) == EM_BPF


def test_the_object_is_compiled_only_when_its_inputs_change(tool: Tool) -> None:
    first = tool.compiled()
    assert first is not None
    assert tool.compiled() is None
    tool.program.touch()
    assert tool.compiled() is None

    tool.program.write_text(PROGRAM.replace("ctx[1]", "ctx[0]"))
    second = tool.compiled()
    assert second not in (None, first)
    tool.header.write_text(
        HEADER.replace("struct record_header header;", "struct record_header header, more;")
    )
    assert tool.compiled() not in (None, first, second)


def test_the_object_is_compiled_when_our_headers_change(tool: Tool, installed: Path) -> None:
    first = tool.compiled(PYTHONPATH=str(installed))
    assert first is not None
    other = shutil.copytree(installed, tool.directory / "site-packages")
    assert tool.compiled(PYTHONPATH=str(other)) is None, "the same in another directory"

    ring = other / "pybootstrap/engine/include/ring.bpf.h"
    ring.write_text(
        ring.read_text().replace("enum { MAX_OVERHEAD = 15 };", "enum { MAX_OVERHEAD = 23 };")
    )
    assert tool.compiled(PYTHONPATH=str(other)) not in (None, first)


def test_the_object_does_not_depend_on_where_it_is_built(
    tool: Tool, installed: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(installed, tmp_path / "site-packages")
    first = objects(tool.wheel(PYTHONPATH=str(installed)))
    second = objects(Tool(tmp_path / "elsewhere").wheel(PYTHONPATH=str(other)))
    assert first == second
    assert str(tmp_path).encode() not in first["count/count.bpf.o"]


def test_the_tools_own_vmlinux_takes_precedence(tool: Tool) -> None:
    ours = (ROOT / "vmlinux/vmlinux.h").read_text()
    tool.write("vmlinux/vmlinux.h", ours.replace("typedef __u64 u64;", "typedef __u64 u64, own_t;"))
    tool.program.write_text(PROGRAM.replace("ctx[1]", "(own_t)ctx[1]"))
    tool.wheel()
    full = tool.write("full/vmlinux.h", "#error taken from VMLINUX\n").parent
    done = tool.backend("build_wheel", VMLINUX=str(full))
    assert done.returncode == 1
    assert "taken from VMLINUX" in done.stderr
    assert done.stderr.endswith("pybootstrap: clang failed (status 1), see above\n")


def test_a_tool_adds_members_to_types_of_the_shipped_header(tool: Tool, installed: Path) -> None:
    page = (ROOT / "docs/your-own-tool.md").read_text()
    (example,) = re.findall(r"^```c\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert "task_struct___mine" in example
    tool.header.write_text(HEADER + example)
    use = "ctx[0] + ((struct task_struct___mine *)bpf_get_current_task_btf())->prio"
    tool.program.write_text(PROGRAM.replace("ctx[1]", use))
    object_ = objects(tool.wheel(PYTHONPATH=str(installed)))["count/count.bpf.o"]
    assert b"task_struct___mine\0" in object_


def test_objects_can_be_built_in_place(tool: Tool) -> None:
    done = tool.run(sys.executable, "setup.py", "-q", "build_bpf", "--inplace")
    assert done.returncode == 0, done.stderr
    assert (tool.directory / "count/count.bpf.o").read_bytes()[:4] == b"\x7fELF"


def test_an_editable_install_has_the_object_beside_the_modules(tool: Tool) -> None:
    done = tool.backend("build_editable")
    assert done.returncode == 0, done.stderr
    assert (tool.directory / "count/count.bpf.o").read_bytes()[:4] == b"\x7fELF"


def test_an_sdist_installs_without_tools_and_with_another_pybootstrap(
    tool: Tool, installed: Path
) -> None:
    compiled = objects(tool.wheel())
    done = tool.backend("build_sdist")
    assert done.returncode == 0, done.stderr
    sdist = tool.only("*.tar.gz")
    other = shutil.copytree(installed, tool.directory / "site-packages")
    (other / "pybootstrap/engine/include/ring.bpf.h").write_text("#error another version\n")
    nothing = {"CLANG": "/none", "BPFTOOL": "/none", "PKG_CONFIG": "/none"}
    wheel = tool.pip_wheel(sdist, PYTHONPATH=str(other), **nothing)
    assert objects(wheel) == compiled


def test_an_sdist_of_changed_sources_is_compiled(tool: Tool) -> None:
    assert tool.backend("build_sdist").returncode == 0
    shutil.unpack_archive(tool.only("*.tar.gz"), tool.directory.parent)
    unpacked = tool.directory.parent / "count-1"
    (unpacked / "bpf/count.h").write_text(HEADER + "/* patched */\n")
    tool.directory, tool.out = unpacked, unpacked / "dist"
    assert tool.compiled() is not None


def test_an_sdist_with_another_vmlinux_is_refused(tool: Tool) -> None:
    done = tool.backend("build_sdist", VMLINUX=str(ROOT / "vmlinux"))
    assert done.stderr == "pybootstrap: an sdist is made without VMLINUX: unset it\n"


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"CLANG": "/none"}, "clang is needed to build this: install the package clang"),
        ({"BPFTOOL": "/none"}, "bpftool is needed to build this: install the package bpftool"),
        ({"VMLINUX": "/none"}, "VMLINUX=/none: there is no vmlinux.h in it"),
    ],
)
def test_what_is_missing_is_reported_in_one_sentence(
    tool: Tool, environ: dict[str, str], sentence: str
) -> None:
    assert tool.fails(**environ).startswith(f"pybootstrap: {sentence}")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ('"bpf/cuont.bpf.c", into="count"', "there is no bpf/cuont.bpf.c to compile"),
        (
            '"bpf/count.bpf.c", into="cuont"',
            "bpf_objects(into='cuont'): not a package of this project, which has count",
        ),
    ],
)
def test_wrong_arguments_get_one_sentence(tool: Tool, wrong: str, sentence: str) -> None:
    tool.write("setup.py", SETUP.replace('"bpf/count.bpf.c", into="count"', wrong))
    assert tool.fails().startswith(f"pybootstrap: {sentence}")


def test_importing_the_helper_needs_no_extension(installed: Path) -> None:
    code = "import sys; from pybootstrap.engine import build; print(build.__file__, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(installed))
    assert not {"cffi", "_cffi_backend", "pybootstrap.engine._native"} & set(done.stdout.split())
