# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What the benchmarks run: their own C programs, the peers, and the machine they run on."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "bench"
BUILD = ROOT / "build/bench"
PACKAGES = ("libbpf-tools", "bpftrace")  # Debian's packages of the peers
PEERS = ("execsnoop", "exitsnoop", "bpftrace")
_SYSTEM_PATH = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin:/sbin"


class BenchError(Exception):
    """Something that a benchmark needs is missing or does not work; the message is one sentence."""


def find(program: str) -> str | None:
    """The path of a program, also searched where root finds it; None if there is none."""
    return shutil.which(program, path=_SYSTEM_PATH)


def run(*command: str | Path, output: Path | None = None) -> str:
    """Runs a command to its end; returns what it printed, or writes that to `output`.

    Raises BenchError with its last output if it fails.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    except FileNotFoundError:
        raise BenchError(f"{words[0]} is not installed: 'make deps' does that") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["(it said nothing)"]
        raise BenchError(f"{shlex.join(words)} failed: {said[-1]}") from None
    if output:
        output.write_text(done.stdout)
    return done.stdout


# ---- Our programs ----


def build_storm() -> None:
    """Compiles the storm and the program that it starts into `build/bench`."""
    BUILD.mkdir(parents=True, exist_ok=True)
    compile_c = [os.environ.get("CC") or "cc", "-O2", "-Wall", "-Wextra"]
    run(*compile_c, "-o", BUILD / "storm", SOURCES / "storm.c")
    nothing = [*compile_c, "-static", "-o", str(BUILD / "nothing"), str(SOURCES / "nothing.c")]
    try:
        run(*nothing, "-nostdlib")
    except BenchError:  # nothing.c has no assembly for this machine
        run(*nothing)


def _libbpf() -> tuple[list[str], list[str]]:
    """Compiler and linker arguments for the libbpf with which the package was built."""
    own = ROOT / "build/libbpf"
    if (own / "libbpf.a").exists():
        include = [f"-I{own / 'include'}", f"-I{ROOT / 'libbpf/include/uapi'}"]
        return include, [str(own / "libbpf.a"), "-lelf", "-lz"]
    flags = [run("pkg-config", option, "libbpf").split() for option in ("--cflags", "--libs")]
    return flags[0], flags[1]


def build_synthetic() -> None:
    """Compiles the synthetic source of records, including its BPF program."""
    BUILD.mkdir(parents=True, exist_ok=True)
    include, link = _libbpf()
    own = [f"-I{ROOT / 'vmlinux'}", f"-I{ROOT / 'bpf'}"]
    unlinked, bpf = BUILD / "synthetic.o", BUILD / "synthetic.bpf.o"
    clang = [os.environ.get("CLANG") or "clang", "-g", "-O2", "-target", "bpf", "-mcpu=v3"]
    bpftool = os.environ.get("BPFTOOL") or find("bpftool") or "bpftool"
    run(*clang, *own, *include, "-c", SOURCES / "synthetic.bpf.c", "-o", unlinked)
    run(bpftool, "gen", "object", bpf, unlinked)
    run(bpftool, "gen", "skeleton", bpf, "name", "synthetic_bpf", output=BUILD / "synthetic.skel.h")
    compile_c = [os.environ.get("CC") or "cc", "-O2", f"-I{BUILD}", *include]
    run(*compile_c, "-o", BUILD / "synthetic", SOURCES / "synthetic.c", *link)


def as_users_run() -> None:
    """Drops settings that users lack; one makes every start of Python compile anew."""
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
        os.environ.pop(name, None)


def bootstrap() -> list[str]:
    """The command under test: from this interpreter's environment, else the package itself."""
    script = Path(sys.executable).with_name("bootstrap")
    return [str(script)] if script.exists() else [sys.executable, "-m", "pybootstrap"]


# ---- The peers ----


def install_peers() -> list[str]:
    """Installs missing packages of peers; returns the names still missing."""
    if all(find(peer) for peer in PEERS):
        return []
    if os.geteuid() == 0 and find("apt-get"):
        install = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq"]
        with contextlib.suppress(BenchError):
            run("apt-get", "update", "-qq")
            run(*install, *PACKAGES)
    return [peer for peer in PEERS if not find(peer)]


@contextlib.contextmanager
def tracefs() -> Iterator[None]:
    """Mounts tracefs for the block: the peers need it, this project does not."""
    place = Path("/sys/kernel/tracing")
    mounted = (place / "events").exists() or not place.exists()
    if not mounted:
        run("mount", "-t", "tracefs", "tracefs", place)
    try:
        yield
    finally:
        if not mounted:
            with contextlib.suppress(BenchError):
                run("umount", place)


# ---- The machine ----


def cpus() -> list[int]:
    """The CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine() -> dict[str, str]:
    """The machine of the figures: kernel, CPU, cores, memory, Python, versions of the tracers."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": str(len(cpus())),
        "memory": f"{pages / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "pybootstrap": run(*bootstrap(), "--version").strip(),
    }
