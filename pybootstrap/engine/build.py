# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What a build of BPF programs needs, for a setup.py.

A step runs when the contents of its inputs, or its command, are not those it last ran with: they
are kept next to its output, in a file named *.inputs. In an unpacked archive that holds too, where
time stamps mean nothing. Tools and headers outside of the project are not counted.

Read from the environment: V=1 shows commands; VMLINUX=DIR takes vmlinux.h from another directory;
PYBOOTSTRAP_WERROR=1 makes warnings in C errors. (Not so otherwise: a compiler newer than a release
must not break its installation.) CLANG, BPFTOOL, PKG_CONFIG name other programs.

Needs only the standard library, and nothing that was built.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

BUILD = Path("build")
VMLINUX = Path(os.environ.get("VMLINUX") or "vmlinux")

PKG_CONFIG = os.environ.get("PKG_CONFIG") or "pkg-config"
VERBOSE = os.environ.get("V") == "1"
WARNINGS = ["-Wall", "-Wextra"]
if os.environ.get("PYBOOTSTRAP_WERROR") == "1":
    WARNINGS.append("-Werror")

BPF_TARGET = "bpfel" if sys.byteorder == "little" else "bpfeb"
BPF_FLAGS = ["-g", "-O2", "-target", BPF_TARGET, "-mcpu=v3"]

# What BPF programs of any tool can include: where it is in a checkout. A wheel has it in INCLUDE.
HEADERS = [Path("vmlinux/vmlinux.h"), Path("bpf/ring.bpf.h"), Path("bpf/ring.h")]
INCLUDE = Path("pybootstrap/engine/include")


# ---- Steps ----


def run(*command: str | Path, output: Path | None = None) -> None:
    """Run a command, its standard output into a file if so wanted; end the build if it fails."""
    words = [str(word) for word in command]
    if VERBOSE:
        print(shlex.join(words) + (f" > {output}" if output else ""), flush=True)
    done = subprocess.run(words, stdout=subprocess.PIPE if output else None, check=False)
    if done.returncode:
        sys.exit(f"pybootstrap: {Path(words[0]).name} failed (status {done.returncode}), see above")
    if output:
        output.write_bytes(done.stdout)


def step(
    name: str, output: Path, inputs: Iterable[Path], command: str, make: Callable[[], None]
) -> None:
    """Make output by calling make(), unless it was made from the same inputs in the same way."""
    inputs = list(inputs)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n" for path in inputs]
    wanted = f"{command}\n{''.join(sums)}"
    known = inputs_file(output)
    if output.exists() and known.exists() and known.read_text() == wanted:
        return
    print(f"  {name:<8}{inputs[0]}", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    known.unlink(missing_ok=True)
    make()
    known.write_text(wanted)


def inputs_file(output: Path) -> Path:
    """Where step() keeps what output was made from."""
    return output.with_name(f"{output.name}.inputs")


# ---- BPF programs ----


def make_object(
    source: Path, libbpf: Callable[[], list[str]], libbpf_headers: Iterable[Path] = ()
) -> Path:
    """Compile a BPF program to build/NAME.bpf.o, unless that is made.

    Its headers may be beside it, and vmlinux.h in vmlinux/. libbpf() returns the compiler options
    for libbpf's; those of them that are part of the project count as inputs.
    """
    output = object_of(source)
    headers = [*source.parent.glob("*.h"), VMLINUX / "vmlinux.h", *libbpf_headers]

    def make() -> None:
        clang, bpftool = find_clang(), find_bpftool()
        unlinked = output.with_suffix(".unlinked.o")
        includes = [f"-I{VMLINUX}", f"-I{source.parent}", *libbpf()]
        run(clang, *BPF_FLAGS, *WARNINGS, *includes, "-c", source, "-o", unlinked)
        run(bpftool, "gen", "object", output, unlinked)  # leaves out DWARF

    step("CLANG", output, [source, *sorted(headers)], shlex.join(BPF_FLAGS), make)
    return output


def object_of(source: Path) -> Path:
    """Where make_object() puts what it makes from source."""
    return BUILD / source.with_suffix(".o").name


# ---- What must be installed ----


def missing(what: str, debian: str, fedora: str = "") -> SystemExit:
    """One sentence instead of a compiler's error."""
    package = f"{debian} (Debian, Ubuntu) or {fedora} (Fedora)" if fedora else debian
    return SystemExit(f"pybootstrap: {what} is needed to build this: install the package {package}")


def works(*command: str) -> bool:
    """Does this command exist and exit with status 0?"""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def find_clang() -> str:
    """The compiler that knows the BPF target."""
    clang = os.environ.get("CLANG") or "clang"
    if not works(clang, "--version"):
        raise missing("clang", "clang")
    return clang


def find_bpftool() -> str:
    """The bpftool that makes skeletons.

    It may not be on an ordinary user's PATH. And Ubuntu's /usr/sbin/bpftool refuses to run when
    there is none for the running kernel, while any can do this.
    """
    ubuntus = map(str, sorted(Path("/usr/lib").glob("linux-tools*/*/bpftool"), reverse=True))
    wanted = os.environ.get("BPFTOOL")
    for candidate in [wanted] if wanted else ["bpftool", "/usr/sbin/bpftool", *ubuntus]:
        if works(candidate, "version"):
            return candidate
    raise missing("bpftool", "bpftool, or on Ubuntu linux-tools-generic")


def pkg_config(*words: str) -> list[str]:
    """What pkg-config answers."""
    command = [PKG_CONFIG, *words]
    return shlex.split(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def check_library(name: str, debian: str, fedora: str) -> None:
    """A library with its headers, named as pkg-config knows it."""
    if not works(PKG_CONFIG, "--version"):
        raise missing("pkg-config", "pkg-config", "pkgconf-pkg-config")
    if not works(PKG_CONFIG, name):
        raise missing(f"{name} with its headers", debian, fedora)
