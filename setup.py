# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What pyproject.toml cannot declare: the native part, and what is generated.

    bpf/*, vmlinux/*   -> build/bootstrap.bpf.o    clang, bpftool gen object
                       -> build/bootstrap.skel.h   bpftool gen skeleton
    shim.c             -> build/shim.o             C compiler
    their headers      -> build/_native.c          cffi
                       -> build/_native.abi3.so    C compiler and linker

libbpf/ is built first when the submodule is checked out; else the system's libbpf is used.

pybootstrap/engine/build.py describes steps and the environment; here CC names another C compiler as
well. The sdist ships the skeleton and what it was made from, so no step before it runs there. The
version of libbpf that the C code is compiled with counts as an input.
"""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import sys
import sysconfig
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from build_manpages import build_manpages, get_build_py_cmd
from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

sys.path.insert(0, str(Path(__file__).parent))  # pip runs this without it
from pybootstrap.cli import make_parser
from pybootstrap.engine import completions
from pybootstrap.engine.build import (
    BUILD,
    HEADERS,
    INCLUDE,
    VERBOSE,
    WARNINGS,
    check_library,
    find_bpftool,
    forbid_vmlinux,
    inputs_file,
    make_object,
    missing,
    pkg_config,
    run,
    ship_object,
    step,
    works,
)

BPF_SOURCE = Path("bpf/bootstrap.bpf.c")
SKELETON = BUILD / "bootstrap.skel.h"
BINDING = BUILD / "_native.c"
MAN_PAGE = BUILD / "bootstrap.1"  # made by argparse-manpage: see pyproject.toml
COMPLETIONS = {shell: BUILD / name.format("bootstrap") for shell, name in completions.FILES.items()}

SUBMODULE = Path("libbpf")
NATIVE = Path("pybootstrap/engine/native")
EXPORTS = NATIVE / "exports.map"
LINKED = Path("pybootstrap/linked.c")
RING = Path("bpf/ring.h")
RECORDS = [RING, Path("bpf/bootstrap.h")]

SHIM_FLAGS = ["-std=gnu11", "-O2", "-fvisibility=hidden"]
ABI3 = ("Py_LIMITED_API", "0x03090000")  # with "cp39" below and requires-python in pyproject.toml


# ---- What must be installed ----


def check_python() -> None:
    """End the build for free-threaded Python: the limited API and the Tracer rely on the GIL."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        sys.exit(
            "pybootstrap: free-threaded Python (3.13t, 3.14t) is not supported: use the ordinary "
            "build of the same version"
        )


def check_c_toolchain() -> None:
    """End the build without what every build needs; of libbpf, only its own dependencies."""
    cc = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if not works(cc, "--version"):
        raise missing(f"a C compiler ({cc})", "gcc")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise missing("Python's C header Python.h", "python3-dev", "python3-devel")
    check_library("libelf", "libelf-dev", "elfutils-libelf-devel")
    check_library("zlib", "zlib1g-dev", "zlib-devel")


# ---- libbpf ----


class Libbpf(NamedTuple):
    """How to use libbpf."""

    include: list[str]  # compiler options
    link: list[str]  # linker options
    files: list[Path]  # archives that are linked into the extension
    version: str


def is_checked_out() -> bool:
    """Whether the submodule was fetched."""
    return (SUBMODULE / "src/Makefile").exists()


@cache
def find_libbpf() -> Libbpf:
    """The submodule's libbpf, built here, if it is checked out; else the system's."""
    if is_checked_out():
        return make_libbpf()
    check_library("libbpf >= 1.0", "libbpf-dev", "libbpf-devel")
    return Libbpf(
        include=pkg_config("--cflags", "libbpf"),
        link=pkg_config("--libs", "libbpf"),
        files=[],
        version=f"libbpf {pkg_config('--modversion', 'libbpf')[0]}",
    )


def bpf_headers() -> Iterable[Path]:
    """The submodule's headers that BPF programs include."""
    return (SUBMODULE / "src").glob("bpf_*.h")


def make_libbpf() -> Libbpf:
    """Build it static and position-independent."""
    prefix = BUILD / "libbpf"
    # A relative path, because its Makefile fails if our own path contains spaces.
    place = os.path.relpath(prefix.resolve(), (SUBMODULE / "src").resolve())
    archive = BUILD / "libbpf/libbpf.a"
    # CFLAGS=-fPIC would replace libbpf's own -O2.
    command = ["make", "-C", str(SUBMODULE / "src"), "BUILD_STATIC_ONLY=1"]
    command += ["EXTRA_CFLAGS=-fPIC", "PREFIX=", "INCLUDEDIR=/include", "LIBDIR=/lib"]
    command += [f"OBJDIR={place}", f"DESTDIR={place}"]

    def make() -> None:
        if not works("make", "--version"):
            raise missing("make", "make")
        shutil.rmtree(prefix, ignore_errors=True)
        jobs, log = f"-j{os.cpu_count()}", None if VERBOSE else BUILD / "libbpf.log"
        run("env", "-u", "MAKEFLAGS", *command, jobs, "install", output=log)

    sources = sorted(path for path in SUBMODULE.glob("**/*.[ch]") if path.is_file())
    step("MAKE", archive, [SUBMODULE / "src/Makefile", *sources], shlex.join(command), make)
    return Libbpf(
        include=[f"-I{BUILD / 'libbpf/include'}", f"-I{SUBMODULE / 'include/uapi'}"],
        link=pkg_config("--libs", "libelf", "zlib"),
        files=[archive],
        version="",
    )


# ---- From BPF sources to the skeleton ----


def make_skeleton() -> None:
    """Make the BPF object and, from it, the C header that contains it."""
    bpf_object = make_object(BPF_SOURCE, lambda: find_libbpf().include, bpf_headers())

    def generate() -> None:
        name = "bootstrap_bpf"
        run(find_bpftool(), "gen", "skeleton", bpf_object, "name", name, output=SKELETON)

    step("SKEL", SKELETON, [bpf_object], "bpftool gen skeleton", generate)


# ---- The extension ----


def make_binding() -> None:
    """Make the C source that passes calls from Python to the shim."""
    script = NATIVE / "build.py"
    headers = [RING, NATIVE / "shim.h"]

    def make() -> None:
        run(sys.executable, script, BINDING, *headers)

    step("CFFI", BINDING, [*headers, script], "cffi", make)


def compile_shim(compiler: list[str]) -> list[Path]:
    """Compile our own C apart, because our warnings are not meant for the code that cffi makes."""
    return [compile_c(compiler, NATIVE / "shim.c"), compile_c(compiler, LINKED)]


def compile_c(compiler: list[str], source: Path) -> Path:
    """Compile one source."""
    output, libbpf = BUILD / f"{source.stem}.o", find_libbpf()
    command = [*compiler, *SHIM_FLAGS]
    includes = ["-Ibpf", f"-I{BUILD}", f"-I{NATIVE}", *libbpf.include]

    def make() -> None:
        run(*command, *WARNINGS, *includes, "-c", source, "-o", output)

    inputs = [source, *sorted(NATIVE.glob("*.h")), *RECORDS, SKELETON, *libbpf.files]
    step("CC", output, inputs, shlex.join([*command, libbpf.version]), make)
    return output


class BuildExt(build_ext):
    """Runs every step up to pybootstrap/engine/_native.abi3.so."""

    def run(self) -> None:
        check_python()
        check_c_toolchain()
        find_libbpf()
        make_skeleton()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Build into BUILD and copy from there: setuptools uses a new directory each time."""
        make_binding()
        shim = compile_shim(self.compiler.compiler_so)
        libbpf = find_libbpf()
        ext.include_dirs = ["bpf", str(NATIVE)]
        ext.extra_objects = [*map(str, shim), *map(str, libbpf.files)]
        # Nothing but the module's entry is visible: not to the libbpf of another extension either.
        ext.extra_link_args = [*libbpf.link, f"-Wl,--version-script={EXPORTS}"]
        target = Path(self.get_ext_fullpath(ext.name))
        built = BUILD / target.name

        def make() -> None:
            self.force = True
            super(BuildExt, self).build_extension(ext)
            shutil.copy2(target, built)

        command = [*self.compiler.compiler_so, *self.compiler.linker_so, *libbpf.link]
        inputs = [BINDING, RING, NATIVE / "shim.h", EXPORTS, *shim, *libbpf.files]
        step("CC", built, inputs, shlex.join([*command, *ABI3]), make)
        if not target.exists() or target.read_bytes() != built.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # not overwritten, because it may be in use
            shutil.copy2(built, target)


# ---- The wheel and the sdist ----


def make_completion(shell: str) -> None:
    """Make the script that completes the command's options in this shell."""
    script = COMPLETIONS[shell]
    sources = ["pybootstrap/cli.py", "pybootstrap/engine/options.py"]
    inputs = [Path(name) for name in (*sources, "pybootstrap/engine/completions.py")]

    def make() -> None:
        script.write_text(completions.make(make_parser(), shell))

    step("SHTAB", script, inputs, shell, make)


class BuildCompletions(Command):
    """Makes the shell completions; the sdist ships them, so that installing it needs no shtab."""

    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        for shell in COMPLETIONS:
            make_completion(shell)


class BuildPy(build_py):
    """Adds the headers that other tools need; in an editable install they stay where they are."""

    def headers(self) -> dict[str, str]:
        """Maps each header to the place that it is copied to."""
        if self.editable_mode:
            return {}
        return {str(path): str(self.build_lib / INCLUDE / path.name) for path in HEADERS}

    def run(self) -> None:
        self.run_command("build_completions")
        super().run()
        for source, target in self.headers().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self.headers().values()]


class Sdist(sdist):
    """Ships generated files, too, so that installing from it needs neither clang nor bpftool."""

    def run(self) -> None:
        forbid_vmlinux()
        make_skeleton()
        self.run_command("build_manpages")
        self.run_command("build_completions")
        super().run()

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        ship_object(BPF_SOURCE, Path(base_dir))
        stepped = [SKELETON, *COMPLETIONS.values()]
        for path in (*stepped, *map(inputs_file, stepped), MAN_PAGE):
            (base_dir / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, base_dir / path)

    def make_archive(  # noqa: PLR0917 - setuptools' arguments
        self, base_name: Any, format: str, root_dir: Any = None, base_dir: Any = None,  # noqa: A002
        owner: str | None = None, group: str | None = None,
    ) -> str:  # fmt: skip
        time = os.environ.get("SOURCE_DATE_EPOCH")
        if time is None or format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)
        return make_plain_archive(Path(f"{base_name}.tar.gz"), base_dir, int(time))


def make_plain_archive(target: Path, directory: str, time: int) -> str:
    """Pack a directory so that the same files make the same archive, whoever packs it, and when."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.mode = time, 0o755 if member.mode & 0o100 else 0o644
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with (
        target.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, time) as stream,
        tarfile.open(mode="w", fileobj=stream) as archive,
    ):
        archive.add(directory, filter=plain)  # in the order of names
    return str(target)


if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension(
                "pybootstrap.engine._native",
                sources=[str(BINDING)],
                define_macros=[ABI3],
                py_limited_api=True,
            )
        ],
        cmdclass={
            "build_completions": BuildCompletions,
            "build_ext": BuildExt,
            "build_manpages": build_manpages,
            "build_py": get_build_py_cmd(BuildPy),
            "sdist": Sdist,
        },
        options={"bdist_wheel": {"py_limited_api": "cp39"}},
    )
