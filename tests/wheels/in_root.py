# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The checks of a row: runs in a root of run.py, with its Python, on this kernel or in a guest.

Installs the wheel with pip into a virtual environment, without any index; then starts again in that
environment and checks what was installed. Prints a JSON line for each check (see checking.py) and a
closing {"end": N}.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/matrix"))

from checking import Check, run_check  # noqa: E402
from guest import check_btf, check_python, check_release  # noqa: E402

WHEELS = Path("/wheels")
VENV = Path("/venv")
# Debian's own pip, which venv would install; on an emulated machine that would take minutes.
PIP_WHEELS = Path("/usr/share/python-wheels")
COMMAND = VENV / "bin/bootstrap"
NOT_INSTALLED = ("cc", "gcc", "clang", "tcc", "zig", "ld", "as", "make", "bpftool", "llc")
NO_LIBRARIES = ("libbpf.so*", "libelf.so*", "libelf*.so*")
LIMIT_S, PIP_LIMIT_S = 120, 600  # an emulated machine takes a tenth of it


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emulated", action="store_true", help="on an emulated machine")
    parser.add_argument("--few", action="store_true", help="only the first workloads")
    parser.add_argument("--refused", action="store_true", help="check what is refused, and how")
    parser.add_argument("--installed", type=int, metavar="N", help="N checks ran before")
    return parser.parse_args()


ARGS = arguments()


def run(*command: str | Path, limit: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
    """Run a command; its output and errors are one text."""
    return subprocess.run(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, timeout=limit, cwd="/",
    )  # fmt: skip


def pip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run pip for the environment."""
    if (VENV / "bin/pip").exists():
        command = [VENV / "bin/pip"]
    else:
        command = [VENV / "bin/python", next(PIP_WHEELS.glob("pip-*.whl")) / "pip"]
    options = ("--isolated", "--disable-pip-version-check")
    return run(*command, *options, *arguments, limit=PIP_LIMIT_S)


def check_architecture() -> str:
    return platform.machine()


def check_glibc() -> str:
    name, _, version = os.confstr("CS_GNU_LIBC_VERSION").partition(" ")  # type: ignore[union-attr]
    assert name == "glibc", name
    return version


def check_bare() -> str:
    """Nothing here compiles, and neither libbpf nor libelf is installed."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    programs = [name for name in NOT_INSTALLED if shutil.which(name, path=path)]
    libraries = [str(f) for name in NO_LIBRARIES for f in Path("/usr").rglob(name)]
    assert not programs + libraries, f"there are {programs + libraries}"
    return "no compiler, libbpf or libelf"


def check_venv() -> str:
    """There is a virtual environment; without a pip of its own on an emulated machine."""
    options = ["--without-pip"] if ARGS.emulated else []
    done = run(sys.executable, "-m", "venv", *options, VENV, limit=PIP_LIMIT_S)
    assert done.returncode == 0, done.stdout
    return str(VENV)


def check_install() -> str:
    """Pip, which knows only a folder, installs our wheel and what it depends on."""
    options = ["--no-compile"] if ARGS.emulated else []
    done = pip("install", *options, "--no-index", "--find-links", WHEELS, "--only-binary", ":all:",
               "pybootstrap-bpf")  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()[-1]


IN_ROOT: tuple[Check, ...] = (
    check_release, check_architecture, check_btf, check_python, check_glibc, check_bare,
    check_venv, check_install,
)  # fmt: skip


def check_cffi() -> str:
    version: str = importlib.import_module("cffi").__version__
    return version


def check_version() -> str:
    done = run(COMMAND, "--version")
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def check_check() -> str:
    """The machine can trace, says `bootstrap --check`."""
    done = run(COMMAND, "--check")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert lines, "it printed nothing"
    assert all(line.startswith("ok ") for line in lines), done.stdout
    return lines[-1].partition(" ")[2].strip()


def check_trace() -> str:
    """The command reports processes that end, with the status that wait4 returns."""
    command = [str(COMMAND), "--json", "--ppid", str(os.getpid()), "-c", "dash", "-x", "-n", "5"]
    statuses: dict[int, int] = {}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as bootstrap:
        code = 0
        while bootstrap.poll() is None:  # it ends after the fifth, whenever it has started
            code = code % 255 + 1
            argv = ["dash", "-c", f"exit {code}"]
            pid = os.posix_spawnp("dash", argv, os.environ)
            statuses[pid] = os.waitstatus_to_exitcode(os.wait4(pid, 0)[1])
        output, errors = bootstrap.communicate(timeout=LIMIT_S)
    assert bootstrap.returncode == 0, errors
    records = [json.loads(line) for line in output.splitlines()]
    reported = {one["pid"]: one["exit_code"] for one in records if one["event"] == "exit"}
    assert len(reported) == 5, output
    assert reported.items() <= statuses.items(), (reported, statuses)
    return f"{len(reported)} processes of {len(statuses)}"


def installed_checks() -> tuple[Check, ...]:
    """The checks of what is installed, with the exactness workload."""
    exactness = importlib.import_module("exactness_checks")
    if ARGS.emulated:
        exactness.allow_for_emulation()
    workloads = exactness.CHECKS[:2] if ARGS.few else exactness.CHECKS
    return (check_cffi, check_version, check_check, check_trace, *workloads)


def main() -> None:
    """Run the checks that this interpreter can run, then the others in the environment."""
    if ARGS.installed is not None:
        checks = installed_checks()
    elif ARGS.refused:
        before = [check for check in IN_ROOT if check not in (check_btf, check_install)]
        checks = (*before, *importlib.import_module("refused").CHECKS)
    else:
        checks = IN_ROOT
    for check in checks:
        run_check(check)
    if checks is IN_ROOT:
        python = str(VENV / "bin/python")
        os.execv(python, [python, *sys.argv, "--installed", str(len(checks))])
    print(json.dumps({"end": (ARGS.installed or 0) + len(checks)}), flush=True)


if __name__ == "__main__":
    main()
