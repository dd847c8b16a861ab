# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Builds BPF programs into a package.

This is the whole setup.py of a tool:

    from setuptools import setup
    from pybootstrap.engine.build import bpf_objects

    setup(cmdclass=bpf_objects("bpf/mytool.bpf.c", into="mytool"))

pyproject.toml needs setuptools and pybootstrap in [build-system] requires, and the names of the
packages under [tool.setuptools], because setuptools would otherwise take bpf/ for one, too. The
wheel contains mytool/mytool.bpf.o, so it installs without a compiler and for any Python. The sdist
contains the object, too: it is compiled again only if the tool's sources were changed. A build that
needs more can use the steps below.

A step runs if its command or the contents of its inputs have changed since it last ran. Both are
recorded next to its output, in a file named *.inputs. That also works in an unpacked archive, where
time stamps mean nothing. Tools and headers outside the project do not count, except HEADERS.

Environment: V=1 shows commands; VMLINUX=DIR takes vmlinux.h from another directory;
PYBOOTSTRAP_WERROR=1 makes C warnings errors, which is not the default because a newer compiler must
not break the installation of a release; CLANG, BPFTOOL and PKG_CONFIG name other programs.

Needs only the standard library and setuptools, and nothing that was built.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, cast

from setuptools import Command
from setuptools.command.build import build
from setuptools.command.sdist import sdist

BUILD = Path("build")
VMLINUX = Path(os.environ.get("VMLINUX") or "vmlinux")

PKG_CONFIG = os.environ.get("PKG_CONFIG") or "pkg-config"
VERBOSE = os.environ.get("V") == "1"
WARNINGS = ["-Wall", "-Wextra"]
if os.environ.get("PYBOOTSTRAP_WERROR") == "1":
    WARNINGS.append("-Werror")

BPF_TARGET = "bpfel" if sys.byteorder == "little" else "bpfeb"
BPF_FLAGS = ["-g", "-O2", "-target", BPF_TARGET, "-mcpu=v3"]

ROOT = Path(__file__).resolve().parents[2]  # a checkout of pybootstrap, or where it is installed
# Headers for the BPF programs of any tool, as they are in a checkout. A wheel has them in INCLUDE.
HEADERS = [Path("vmlinux/vmlinux.h"), Path("bpf/ring.bpf.h"), Path("bpf/ring.h")]
INCLUDE = Path("pybootstrap/engine/include")


# ---- Steps ----


def run(*command: str | Path, output: Path | None = None) -> None:
    """Run a command, with its standard output to a file if given; end the build if it fails."""
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
    """Make output by calling make(), unless it was made by this command from these inputs."""
    inputs = list(inputs)
    wanted = made_from(inputs, command)
    known = inputs_file(output)
    if output.exists() and known.exists() and known.read_text() == wanted:
        return
    print(f"  {name:<8}{inputs[0]}", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    known.unlink(missing_ok=True)
    make()
    known.write_text(wanted)


def made_from(inputs: Iterable[Path], command: str) -> str:
    """The contents of a file *.inputs: the command, and a hash of each input."""
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {label(path)}\n" for path in inputs]
    return f"{command}\n{''.join(sums)}"


def label(path: Path) -> str:
    """The name of an input in *.inputs: outside the project, without its directory.

    The reason is that pip installs pybootstrap-bpf into another directory for each build.
    """
    return path.name if path.is_absolute() else str(path)


def inputs_file(output: Path) -> Path:
    """Where step() records what output was made from."""
    return output.with_name(f"{output.name}.inputs")


# ---- BPF programs ----


def make_object(
    source: Path, libbpf: Callable[[], list[str]], libbpf_headers: Iterable[Path] = ()
) -> Path:
    """Compile a BPF program to build/NAME.bpf.o, unless that is up to date.

    The project's headers, next to the source and in vmlinux/, come before HEADERS. libbpf() returns
    the compiler options for libbpf's headers; libbpf_headers are those that count as inputs.
    """
    output = object_of(source)
    inputs, command = recipe(source, libbpf_headers, Path("PKG-INFO").exists())

    def make() -> None:
        clang, bpftool = find_clang(), find_bpftool()
        unlinked = output.with_suffix(".unlinked.o")
        directories = [VMLINUX, source.parent, *unique(path.parent for path in shipped_headers())]
        includes = [*(f"-I{path}" for path in directories), *libbpf()]
        # BTF names the source file of each line; this machine's directories are no use elsewhere.
        places = [f"-fdebug-prefix-map={path}=." for path in (Path.cwd(), ROOT)]
        run(clang, *BPF_FLAGS, *WARNINGS, *places, *includes, "-c", source, "-o", unlinked)
        run(bpftool, "gen", "object", output, unlinked)  # drops DWARF

    step("CLANG", output, inputs, command, make)
    return output


def recipe(source: Path, libbpf_headers: Iterable[Path], released: bool) -> tuple[list[Path], str]:
    """The inputs and the command of the step that makes an object.

    In a released tree (an unpacked sdist) only its own files count, because it may be built without
    clang, and with another pybootstrap and another libbpf than it was released with.
    """
    inputs = [source, *headers_of(source)]
    if released:
        return inputs, BPF_TARGET
    return [*inputs, *sorted(libbpf_headers), *shipped_headers()], shlex.join(BPF_FLAGS)


def ship_object(source: Path, tree: Path) -> None:
    """Copy the object that make_object() made into the tree of an sdist."""
    target = tree / object_of(source)
    target.parent.mkdir(exist_ok=True)
    shutil.copy2(object_of(source), target)
    inputs_file(target).write_text(made_from(*recipe(source, (), released=True)))


def forbid_vmlinux() -> None:
    """End the build if VMLINUX is set: a release is compiled with the headers that it ships."""
    if os.environ.get("VMLINUX"):
        sys.exit("pybootstrap: an sdist is made without VMLINUX: unset it")


def headers_of(source: Path) -> list[Path]:
    """The project's own headers that a BPF program can include."""
    if not source.is_file():
        sys.exit(f"pybootstrap: there is no {source} to compile")
    if os.environ.get("VMLINUX") and not (VMLINUX / "vmlinux.h").is_file():
        sys.exit(f"pybootstrap: VMLINUX={VMLINUX}: there is no vmlinux.h in it")
    return unique([*sorted(source.parent.glob("*.h")), *sorted(VMLINUX.glob("*.h"))])


def shipped_headers() -> list[Path]:
    """HEADERS as absolute paths; empty in pybootstrap itself, which has them as its own."""
    if Path.cwd() == ROOT:
        return []
    installed = (ROOT / INCLUDE).is_dir()
    return [ROOT / INCLUDE / path.name if installed else ROOT / path for path in HEADERS]


def system_libbpf() -> list[str]:
    """Compiler options for libbpf's headers: those that a checkout built, or else the system's."""
    built = ROOT / "build/libbpf/include"
    if built.is_dir():
        return [f"-I{built}"]
    check_library("libbpf >= 1.0", "libbpf-dev", "libbpf-devel")
    return pkg_config("--cflags", "libbpf")


def unique(paths: Iterable[Path]) -> list[Path]:
    """The paths without repetitions, in the order of their first appearance."""
    return list(dict.fromkeys(paths))


def object_of(source: Path) -> Path:
    """Where make_object() puts the object made from source."""
    return BUILD / source.with_suffix(".o").name


# ---- The commands of a tool ----


def bpf_objects(*sources: str, into: str) -> dict[str, type[Command]]:
    """The commands for setup(cmdclass=...) that compile these BPF programs into the package `into`.

    sources are paths such as "bpf/NAME.bpf.c", relative to setup.py; each becomes NAME.bpf.o. An
    editable install and "setup.py build_bpf --inplace" put it next to the package's modules. A
    build that fails ends with one sentence.
    """

    class BuildTool(BuildBpf):
        programs = tuple(map(Path, sources))
        package = into

    return {"build": Build, "build_bpf": BuildTool, "sdist": Sdist}


class BuildBpf(Command):
    """A step of "build" (see setuptools.command.build.SubCommand) that makes the objects."""

    description = "compile the BPF programs"
    user_options: ClassVar = [("inplace", "i", "put them next to the package's modules")]
    boolean_options: ClassVar = ["inplace"]

    programs: tuple[Path, ...]
    package: str

    def initialize_options(self) -> None:
        self.build_lib = ""
        self.inplace = self.editable_mode = False

    def finalize_options(self) -> None:
        self.build_lib = self.get_finalized_command("build").build_lib

    def run(self) -> None:
        known = self.distribution.packages or []
        if self.package not in known:
            sys.exit(
                f"pybootstrap: bpf_objects(into={self.package!r}): not a package of this project, "
                f"which has {', '.join(known) or 'none'}: see [tool.setuptools] in pyproject.toml"
            )
        self.make()
        for source in self.programs:
            installed, beside = self.places(source)
            target = beside if self.inplace or self.editable_mode else installed
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(object_of(source), target)

    def make(self) -> None:
        """Make the objects, the part that needs clang."""
        for source in self.programs:
            make_object(source, system_libbpf)

    def places(self, source: Path) -> tuple[Path, Path]:
        """Where the object goes for an installation, and where next to the modules."""
        modules: Any = self.get_finalized_command("build_py")
        name, package = object_of(source).name, self.package.replace(".", "/")
        beside = Path(modules.get_package_dir(self.package), name)
        return Path(self.build_lib, package, name), beside

    def get_source_files(self) -> list[str]:
        files = unique(path for source in self.programs for path in (source, *headers_of(source)))
        return [str(path) for path in files if not path.is_absolute()]  # VMLINUX can be

    def get_outputs(self) -> list[str]:
        return [str(self.places(source)[0]) for source in self.programs]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.editable_mode:
            return {}
        places = map(self.places, self.programs)
        return {str(installed): str(beside) for installed, beside in places}


class Build(build):
    """Makes the objects as well."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_bpf", None)]


class Sdist(sdist):
    """Ships the objects too, so that installing from it needs neither clang nor bpftool."""

    def run(self) -> None:
        forbid_vmlinux()
        self.bpf().make()
        super().run()

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        for source in self.bpf().programs:
            ship_object(source, Path(base_dir))

    def bpf(self) -> BuildBpf:
        """The command that knows the programs."""
        return cast(BuildBpf, self.get_finalized_command("build_bpf"))


# ---- What must be installed ----


def missing(what: str, debian: str, fedora: str = "") -> SystemExit:
    """One sentence instead of a compiler's error."""
    package = f"{debian} (Debian, Ubuntu) or {fedora} (Fedora)" if fedora else debian
    return SystemExit(f"pybootstrap: {what} is needed to build this: install the package {package}")


def works(*command: str) -> bool:
    """Whether this command exists and exits with status 0."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def find_clang() -> str:
    """The name of clang; ends the build if there is no clang."""
    clang = os.environ.get("CLANG") or "clang"
    if not works(clang, "--version"):
        raise missing("clang", "clang")
    return clang


def find_bpftool() -> str:
    """A bpftool that works.

    It may not be on an ordinary user's PATH. Ubuntu's /usr/sbin/bpftool refuses to run without one
    for the running kernel, although any bpftool is good enough for a build.
    """
    ubuntus = map(str, sorted(Path("/usr/lib").glob("linux-tools*/*/bpftool"), reverse=True))
    wanted = os.environ.get("BPFTOOL")
    for candidate in [wanted] if wanted else ["bpftool", "/usr/sbin/bpftool", *ubuntus]:
        if works(candidate, "version"):
            return candidate
    raise missing("bpftool", "bpftool, or on Ubuntu linux-tools-generic")


def pkg_config(*words: str) -> list[str]:
    """The words that pkg-config prints."""
    command = [PKG_CONFIG, *words]
    return shlex.split(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def check_library(name: str, debian: str, fedora: str) -> None:
    """End the build unless pkg-config finds this library."""
    if not works(PKG_CONFIG, "--version"):
        raise missing("pkg-config", "pkg-config", "pkgconf-pkg-config")
    if not works(PKG_CONFIG, name):
        raise missing(f"{name} with its headers", debian, fedora)
