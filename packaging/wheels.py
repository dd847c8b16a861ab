# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Builds what is released: `make wheels` runs it in an environment with packaging/requirements.txt.

    this checkout -> sdist            clang, bpftool
    sources.py    -> libelf.a, libz.a    zig, for each architecture
    sdist, libbpf -> a wheel             zig, for each architecture

zig carries glibc's symbols of every version and compiles for any architecture. So the tag of the
wheels is decided here, not by the machine that builds them, and a compiler that pip installs is as
easy to get in some years as today. Everything but libc is linked statically.

What is built depends on the files of the checkout and on the versions of the tools; not on its
place, the time, the user or the umask.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import checks
import sbom
import zopfli
from sources import ELFUTILS, LIBBPF, ROOT, ZLIB, Source, unpack

ARCHITECTURES = ("x86_64", "aarch64")
GLIBC = "2.17"  # the oldest that any supported distribution has, and the oldest for aarch64
POLICY = "manylinux2014"  # the tag that means this glibc, known to pip since 19.3

# -Os saves 20 KB in each wheel. Our own C is compiled with -O2: see setup.py.
CFLAGS = "-Os -g0 -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables"
LDFLAGS = "-s -Wl,--gc-sections"

# What elfutils' configure would find out for libelf with this glibc.
ELFUTILS_FLAGS = [
    "-std=gnu99", "-D_GNU_SOURCE", "-DHAVE_CONFIG_H", "-DHAVE_VISIBILITY", "-DHAVE_ERR_H",
    *(f"-DHAVE_DECL_{name}" for name in ("MEMPCPY", "MEMRCHR", "POWEROF2", "RAWMEMCHR")),
]  # fmt: skip


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] = os.environ) -> None:
    """Run a command, quietly; if it fails, show what it printed and end."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        sys.exit(f"wheels: this failed: {shlex.join(map(str, command))}")


def say(what: str, target: object) -> None:
    """Print a step as the other builds do."""
    print(f"  {what:<7} {target}", flush=True)


# ---- The tree that everything is built from ----


def git(*arguments: str) -> str:
    """The output of a git command in this checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or error
        sys.exit(f"wheels: this needs git, and a checkout made by it: {why}".strip())
    return done.stdout


def copy_checkout(tree: Path) -> list[str]:
    """Copy what git knows or could know to `tree`, with plain modes; returns the names."""
    shutil.rmtree(tree, ignore_errors=True)
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    files = sorted(name for name in names if (ROOT / name).is_file())
    for name in files:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
        target.chmod(0o755 if os.access(ROOT / name, os.X_OK) else 0o644)
    return files


def make_sdist(tree: Path, sources: Path, out: Path) -> Path:
    """The sdist, compiled against the headers of the libbpf that is bundled."""
    unpack(LIBBPF, sources, tree / "libbpf")
    say("SDIST", out.name)
    command = ["-m", "build", "--no-isolation", "--sdist", "--outdir", str(out), "."]
    run(sys.executable, *command, cwd=tree)
    (sdist,) = out.glob("*.tar.gz")
    return sdist


# ---- Libraries ----


def zig(architecture: str) -> list[str]:
    """The C compiler for an architecture."""
    return [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-gnu.{GLIBC}"]


def make_archive(
    source: Path, names: list[Path], flags: list[str], architecture: str, archive: Path
) -> None:
    """Compile C files of a library into a static archive."""
    say("CC", f"{archive.name} {architecture}")
    objects = archive.with_suffix("")
    shutil.rmtree(objects, ignore_errors=True)
    objects.mkdir(parents=True)
    # A relative path, because assert() puts it into the object.
    files = [os.path.relpath(source / name, objects) for name in names]
    command = [*zig(architecture), *shlex.split(CFLAGS), "-fPIC", "-w", *flags, "-c", *files]
    run(*command, cwd=objects)
    archive.unlink(missing_ok=True)
    run(sys.executable, "-m", "ziglang", "ar", "rcs", archive, *sorted(objects.glob("*.o")))


def make_libraries(architecture: str, work: Path, prefix: Path) -> None:
    """Build libelf and zlib; pkg-config finds them below `prefix`."""
    elfutils, zlib = work / ELFUTILS.name, work / ZLIB.name
    # Instead of what configure writes.
    (elfutils / "config.h").write_text("#include <eu-config.h>\n", encoding="utf-8")
    includes = [f"-I{os.path.relpath(path, prefix / 'libelf')}" for path in (
        elfutils, elfutils / "lib", elfutils / "libelf", zlib
    )]  # fmt: skip
    names = [Path("lib/eu-search.c"), *sorted_names(elfutils, "libelf/*.c")]
    make_archive(elfutils, names, [*ELFUTILS_FLAGS, *includes], architecture, prefix / "libelf.a")
    names = sorted_names(zlib, "*.c")
    make_archive(zlib, names, ["-DHAVE_UNISTD_H"], architecture, prefix / "libz.a")
    # As paths, because setuptools' -L for the directory of a shared libpython comes first.
    libz = str(prefix / "libz.a")
    write_pc(prefix / "libelf.pc", ELFUTILS, elfutils / "libelf", f"{prefix / 'libelf.a'} {libz}")
    write_pc(prefix / "zlib.pc", ZLIB, zlib, libz)


def sorted_names(directory: Path, pattern: str) -> list[Path]:
    """The files that match, relative to `directory`."""
    return sorted(path.relative_to(directory) for path in directory.glob(pattern))


def python_headers(architecture: str, prefix: Path) -> str:
    """The compiler option for what Python.h includes in Debian's multiarch directory; else nothing.

    The one of this machine serves for both architectures: the limited API depends on sizes only.
    """
    own = Path(f"{platform.machine()}-linux-gnu", Path(sysconfig.get_path("include")).name)
    if not (Path("/usr/include") / own).is_dir():
        return ""
    other = prefix / "include" / f"{architecture}-linux-gnu" / own.name
    shutil.copytree(Path("/usr/include") / own, other, dirs_exist_ok=True)
    return f" -I{prefix / 'include'}"


def write_pc(path: Path, source: Source, include: Path, libs: str) -> None:
    """What pkg-config says of a library."""
    path.write_text(
        f"Name: {path.stem}\nDescription: of {source.name}, static\nVersion: {source.version}\n"
        f"Cflags: -I{include}\nLibs: {libs}\n",
        encoding="utf-8",
    )


# ---- Wheels ----


def make_wheel(sdist: Path, architecture: str, work: Path, out: Path) -> Path:
    """The wheel for an architecture, from the sdist and the libraries."""
    prefix, tree = work / architecture / "lib", work / architecture / "tree"
    prefix.mkdir(parents=True, exist_ok=True)
    make_libraries(architecture, work, prefix)
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    run("tar", "-x", "-f", sdist, "-C", tree, "--strip-components=1")
    shutil.copytree(work / LIBBPF.name, tree / "libbpf")
    tag = f"{POLICY}_{architecture}"
    say("WHEEL", tag)
    env = {
        **os.environ,
        "CC": shlex.join(zig(architecture)),
        "AR": f"{shlex.quote(sys.executable)} -m ziglang ar",
        "CFLAGS": CFLAGS + python_headers(architecture, prefix),
        "LDSHARED": f"{shlex.join(zig(architecture))} -shared {LDFLAGS}",  # not with this Python's
        "PKG_CONFIG_LIBDIR": str(prefix),
        "_PYTHON_HOST_PLATFORM": f"linux-{architecture}",  # sysconfig.get_platform() obeys
    }
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    settings = f"--config-settings=--build-option=--plat-name={tag}"
    run(*pip, settings, "-w", out, ".", cwd=tree, env=env)
    (wheel,) = out.glob(f"*{tag}.whl")
    repack(wheel)
    return wheel


def repack(wheel: Path) -> None:
    """Compress a wheel with zopfli: 5 % smaller, and independent of the zlib of this Python."""
    packed = wheel.with_suffix(".packed")
    with (
        zipfile.ZipFile(wheel) as loose,
        zopfli.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as tight,
    ):
        for member in loose.infolist():
            tight.writestr(member, loose.read(member))
    packed.replace(wheel)


def forget_environment() -> None:
    """Remove variables that compilers, setuptools or pkg-config could obey, whatever they are."""
    kept = re.compile("PATH|HOME|TMPDIR|LANG|CLANG|BPFTOOL|PIP_.*|SSL_.*|.*_(PROXY|proxy)")
    for name in [name for name in os.environ if not kept.fullmatch(name)]:
        del os.environ[name]


def write_sums(out: Path) -> None:
    """The checksums of all files, as sha256sum(1) checks them."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(out.iterdir())
    ]
    (out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Build everything into dist/, and check it."""
    out, work = ROOT / "dist", ROOT / "build/wheels"
    if any(character.isspace() for character in str(ROOT)):
        sys.exit(f"wheels: {ROOT} has a space in it, which compilers misunderstand: move it")
    os.umask(0o022)
    forget_environment()
    os.environ["SOURCE_DATE_EPOCH"] = git("log", "-1", "--format=%ct").strip()
    os.environ["TZ"] = "UTC"  # the man page's date is a local one
    os.environ["ZIG_GLOBAL_CACHE_DIR"] = str(work / "zig")

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    sources = work / "sources"
    for source in (LIBBPF, ELFUTILS, ZLIB):
        unpack(source, sources, work / source.name)
    tracked = copy_checkout(work / "checkout")
    sdist = make_sdist(work / "checkout", sources, out)
    checks.check_sdist(sdist, tracked)
    for architecture in ARCHITECTURES:
        wheel = make_wheel(sdist, architecture, work, out)
        checks.check_wheel(wheel, architecture, GLIBC)
    sbom.write(out)
    write_sums(out)
    run("sha256sum", "--strict", "--check", "SHA256SUMS", cwd=out)


if __name__ == "__main__":
    main()
