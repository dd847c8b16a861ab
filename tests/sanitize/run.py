# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The shim under AddressSanitizer and UndefinedBehaviorSanitizer: run.py [PYTEST ARGUMENT]...

Copies the tree to build/sanitize and builds there with the sanitizers (gcc's), then runs
  - the kernel tests of the Tracer and its events, with libasan loaded into Python;
  - leaks.c, which opens and closes handles without Python, under LeakSanitizer.
Needs root, and a tree that was built.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TREE = ROOT / "build/sanitize"
CC = shlex.split(os.environ.get("CC", "gcc"))
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = [*SANITIZE, "-fno-omit-frame-pointer", "-g", "-O1"]
TESTS = ["tests/live/test_tracer.py", "tests/live/test_events.py"]
# This test would mistake the memory that ASan keeps after free() for a leak; leaks.c finds leaks.
NOT_HERE = "not leak_nothing"
ERRORS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error:")

ENVIRON = {
    **os.environ,
    "PYBOOTSTRAP_REQUIRE_KERNEL": "1",
    "PYTHONPATH": str(TREE),
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONMALLOC": "malloc",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
WITHOUT_LEAKS = "detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1"


def copy_tree() -> None:
    """Copies what a build needs, including the generated skeleton if there is one."""
    shutil.rmtree(TREE, ignore_errors=True)
    leave_out = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("bpf", "docs", "pybootstrap", "tests", "vmlinux", "LICENSES"):
        shutil.copytree(ROOT / name, TREE / name, ignore=leave_out)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, TREE)
    (TREE / "libbpf").symlink_to(ROOT / "libbpf")
    (TREE / "build").mkdir()
    for path in (ROOT / "build").glob("bootstrap.*"):
        shutil.copy2(path, TREE / "build")


def build() -> None:
    """Builds the extension in place, and leaks.c with the shim."""
    flags = shlex.join(FLAGS)
    environ = {**os.environ, "CC": shlex.join(CC), "CFLAGS": flags, "LDFLAGS": shlex.join(SANITIZE)}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=TREE, env=environ, check=True)

    os.chdir(TREE)
    sys.path.insert(0, str(TREE))
    import setup  # it knows how to use libbpf

    libbpf = setup.find_libbpf()
    includes = ["-Ibpf", "-Ibuild", "-Ipybootstrap/engine/native", *libbpf.include]
    ours = ["pybootstrap/engine/native/shim.c", "pybootstrap/linked.c"]
    sources = ["tests/sanitize/leaks.c", *ours, *map(str, libbpf.files)]
    command = [*CC, "-std=gnu11", *FLAGS, *includes, *sources, "-o", "build/leaks", *libbpf.link]
    subprocess.run(command, cwd=TREE, check=True)


def library(name: str) -> str:
    """The path of the compiler's library of this name."""
    command = [*CC, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def run(what: str, *command: str, **environ: str) -> bool:
    """Runs a command and shows its output; whether it passed without any sanitizer report."""
    print(f"== {what}", flush=True)
    process = subprocess.Popen(
        command,
        cwd=TREE,
        env={**ENVIRON, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    clean = True
    for line in process.stdout:
        print(line, end="", flush=True)
        clean &= not any(error in line for error in ERRORS)
    return process.wait() == 0 and clean


def main() -> int:
    copy_tree()
    build()
    python = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"]
    passed = run(
        "the Tracer under AddressSanitizer and UndefinedBehaviorSanitizer",
        *[*python, "-k", NOT_HERE, *TESTS, *sys.argv[1:]],
        LD_PRELOAD=library("libasan.so"),
        ASAN_OPTIONS=WITHOUT_LEAKS,
    )
    passed &= run(
        "the shim under LeakSanitizer",
        "build/leaks",
        "20",
        "build/bootstrap.bpf.o",
        ASAN_OPTIONS="detect_leaks=1",
    )
    print("sanitizers: nothing found" if passed else "sanitizers: FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
