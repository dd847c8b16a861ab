# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What must hold for an sdist and a wheel that are released; what does not ends the program."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path
from typing import cast

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerSymSection
from elftools.elf.sections import SymbolTableSection
from sources import LIBBPF

MAX_SIZE = 350_000  # bytes of a wheel
# Not needed to build, install or test.
NOT_SHIPPED = (".ci/*", ".gitignore", ".gitmodules", ".github/*")


def fail(file: Path, why: str) -> None:
    """End the program."""
    sys.exit(f"wheels: {file.name}: {why}")


def check_sdist(sdist: Path, tracked: list[str]) -> None:
    """It has every file of the checkout, and the generated ones that spare clang and bpftool."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {x for x in tracked if not any(fnmatch(x, pattern) for pattern in NOT_SHIPPED)}
    wanted |= {"build/bootstrap.skel.h", "build/bootstrap.1", "PKG-INFO"}
    if missing := sorted(wanted - names):
        fail(sdist, f"lacks {', '.join(missing)}: see MANIFEST.in")
    generated = re.compile(r"build/|[^/]*\.egg-info|PKG-INFO$|setup\.cfg$")
    if extra := sorted(x for x in names - wanted if x and not generated.match(x) and "." in x):
        fail(sdist, f"has {', '.join(extra)}, which git does not know: see MANIFEST.in")


def check_wheel(wheel: Path, architecture: str, glibc: str) -> None:
    """Size, stable ABI, symbols, glibc; and that it can be imported, if it is for this machine."""
    if wheel.stat().st_size > MAX_SIZE:
        fail(wheel, f"{wheel.stat().st_size} bytes; the limit is {MAX_SIZE}")
    _tool("abi3audit", "--strict", wheel)
    shown = " ".join(_tool("auditwheel", "show", wheel).split())
    if f'"manylinux_{glibc.replace(".", "_")}_{architecture}"' not in shown:
        fail(wheel, f"auditwheel does not find it consistent with glibc {glibc}: {shown}")
    _check_symbols(wheel)
    if architecture == platform.machine():
        _check_import(wheel)


def _tool(name: str, *arguments: str | Path) -> str:
    """The output of a program that is installed beside this Python."""
    command = [str(Path(sys.executable).parent / name), *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"wheels: {name} failed:\n{done.stdout}")
    return done.stdout


def _check_symbols(wheel: Path) -> None:
    """Only the module's entry is exported, and only Python and libc are asked for symbols.

    The linker does not notice that a library is missing, because it leaves Python's symbols open.
    """
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".so"))
        elf = ELFFile(BytesIO(archive.read(name)))
    symbols = cast(SymbolTableSection, elf.get_section_by_name(".dynsym"))
    versions = cast(GNUVerSymSection, elf.get_section_by_name(".gnu.version"))
    exported, foreign = [], []
    for number, symbol in enumerate(symbols.iter_symbols()):
        if symbol["st_shndx"] != "SHN_UNDEF":
            exported.append(symbol.name)
        elif isinstance(versions.get_symbol(number)["ndx"], str) and not re.match(
            "_?Py|_ITM_|__gmon_start__|$", symbol.name
        ):  # a symbol of libc has a version, and with it a number
            foreign.append(symbol.name)
    if exported != ["PyInit__native"]:
        fail(wheel, f"exports {', '.join(exported)}")
    if foreign:
        fail(wheel, f"asks for what neither Python nor libc has: {', '.join(foreign)}")


def _check_import(wheel: Path) -> None:
    """It can be loaded: `--version` asks libbpf for its own."""
    with tempfile.TemporaryDirectory() as place:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)  # noqa: S202 - we have just built it
        done = subprocess.run(
            [sys.executable, "-m", "pybootstrap", "--version"], cwd=place,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
    if done.returncode != 0 or f"(libbpf v{LIBBPF.version.removesuffix('.0')})" not in done.stdout:
        fail(wheel, f"bootstrap --version ends with {done.returncode}: {done.stdout}")
