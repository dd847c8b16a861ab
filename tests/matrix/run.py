# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Run guest.py on Debian's kernels, each booted under qemu, and on the host's own kernel.

    python tests/matrix/run.py --wheel dist/NAME.whl [--kernel oldest --kernel newest ...]

Prints a table of kernels and checks. The exit status is 0 if every row passed, and 1 if a check
failed, a guest did not finish, or (unless --allow-missing) a row could not be run at all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import guest_image
from kernel_packages import (
    SUITES,
    KernelPackage,
    NotAvailableError,
    Suite,
    fetch_image,
    find_kernel,
)
from kernel_packages import mirrors as configured_mirrors
from machines import AMD64, boot
from rows import MARKS, Row, print_notes, read_results

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BEHAVE = ROOT / "tests/exactness/behave.c"
# The files that run in a guest and on the host, at the same paths as here; behave is added.
GUEST = "tests/matrix/guest.py"
SUITE_FILES = (
    GUEST, "tests/matrix/checking.py", "tests/matrix/package_checks.py",
    "tests/matrix/exactness_checks.py", "tests/matrix/example_checks.py",
    "tests/exactness/workload.py",
    "tests/__init__.py", "tests/cases.py", "tests/support.py",
)  # fmt: skip
NAMES = {"oldest": SUITES[0], "newest": SUITES[-1]}
HOST = "host"
# The Debian packages of the tools that are needed.
TOOLS = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "ldd": "libc-bin",
    "busybox": "busybox-static",
    AMD64.qemu: AMD64.package,
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    parser = argparse.ArgumentParser(description="Run the checks of guest.py on several kernels.")
    parser.add_argument(
        "--kernel", action="append", metavar="NAME",
        help="a version (5.10), a suite (bookworm), oldest, newest or host; may be repeated "
             "(default: all suites, and the host)",
    )  # fmt: skip
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE",
        help="the package to check, installed with what it depends on; without it only the "
             "general checks are made",
    )  # fmt: skip
    parser.add_argument(
        "--example", type=Path, metavar="FILE", action="append", default=[],
        help="the wheel of a tool of examples/; all of them, or none",
    )  # fmt: skip
    parser.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="SRC:DEST",
        help="put a file or folder into the guests, with the libraries it needs",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(cache_home, "pybootstrap-kernels"),
        metavar="DIR",
        help="where kernels and package lists are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--mirror",
        action="append",
        metavar="URL",
        help="a Debian mirror (default: the repositories that apt here is configured to use)",
    )
    parser.add_argument("--details", action="store_true", help="print the detail of every check")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument(
        "--timeout",
        type=float,
        default=300,
        metavar="SECONDS",
        help="how long one kernel may take (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="how many guests run at once (default here: %(default)s)",
    )
    parser.add_argument(
        "--memory", default="1G", metavar="SIZE", help="memory of a guest (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="rows that could not be run are no failure"
    )
    args = parser.parse_args()
    args.cache = args.cache.resolve()
    for addition in args.add:
        source, _, place = addition.partition(":")
        if not Path(source).exists() or not place.startswith("/"):
            parser.error(f"--add {addition}: not an existing path, a colon and an absolute path")
    for wheel in filter(None, [args.wheel, *args.example]):
        if not wheel.is_file():
            parser.error(f"{wheel}: there is no such file")
    return args


def require_tools(guests: bool) -> None:
    """Exit with one sentence if a required tool is not installed."""
    if guests and platform.machine() != "x86_64":
        raise SystemExit(f"guests are built for x86_64 only; this machine is {platform.machine()}")
    for tool, package in TOOLS.items():
        if guests and shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing: install the package {package}")


def make_suite(suite: Path, package: bool) -> None:
    """Put the files for guests and host into one folder, with behave.c linked statically."""
    for file in SUITE_FILES:
        (suite / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, suite / file)
    if package:
        compiler = os.environ.get("CC", "cc")
        program = (suite / GUEST).with_name("behave")
        command = [compiler, "-static", "-O2", "-pthread", "-o", str(program), str(BEHAVE)]
        if subprocess.run(command, check=False).returncode != 0:
            raise SystemExit(f"{BEHAVE.name} could not be built: install the package gcc")


def install_package(wheel: Path | None, examples: list[Path], site: Path) -> None:
    """Install the wheels and their dependencies into the folder `site`, for guests and host."""
    site.mkdir()
    if wheel is None:
        print("no --wheel: only the general checks are made", file=sys.stderr)
        return
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--root-user-action=ignore", "--no-warn-script-location",
        "--target", str(site), *map(str, [wheel, *examples]),
    ]  # fmt: skip
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit(f"{wheel} could not be installed")


def choose_kernels(
    wanted: Sequence[str], cache: Path, mirrors: Sequence[str]
) -> Iterator[tuple[Row, Path | None]]:
    """Yield a row for each wanted kernel, with its image, or None if that is not available."""
    names = [NAMES.get(name, name) for name in wanted]
    versions = [name for name in names if name not in (*SUITES, HOST)]
    for name in SUITES:
        if name not in names and not versions:
            continue
        suite, row = Suite(name, cache), Row(name)
        is_wanted = name in names
        try:
            package = find_kernel(suite, mirrors)
            hits = [version for version in versions if package.matches(version)]
            versions = [version for version in versions if version not in hits]
            is_wanted = is_wanted or bool(hits)
            row.kernel = describe(package)
            image = fetch_image(suite, package, cache) if is_wanted else None
        except (NotAvailableError, subprocess.TimeoutExpired) as error:
            row.note, image = str(error), None
            if not is_wanted:
                print(f"suite {name} could not be searched: {error}", file=sys.stderr)
        if is_wanted:
            yield row, image
    for version in versions:
        yield Row(version, note="no suite that could be searched has this kernel"), None


def describe(package: KernelPackage) -> str:
    """Return what the table shows for a kernel that has not reported its release yet."""
    return f"{package.name.split('-', 2)[2]} ({package.version})"


def run_on_host(row: Row, site: Path, suite: Path, args: argparse.Namespace) -> None:
    """Run guest.py on this machine, with the package that the guests have, and fill in the row.

    Not in the repository, whose own pybootstrap/ would be found before the wheel's.
    """
    # It runs as root, and must leave no file in the temporary folder that only root can remove.
    command = ["env", f"PYTHONPATH={site}:{suite}", "PYTHONDONTWRITEBYTECODE=1"]
    command += [sys.executable, str(suite / GUEST), *guest_arguments(args)]
    if os.geteuid() != 0:
        command.insert(0, "sudo")
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=args.timeout, check=False,
            cwd=site,
        )  # fmt: skip
        output, trouble = done.stdout, ""
    except subprocess.TimeoutExpired:
        output, trouble = "", f"not done after {args.timeout:.0f} s"
    row.seconds = time.monotonic() - started
    read_results(row, output, trouble)


def guest_arguments(args: argparse.Namespace) -> list[str]:
    """Return the arguments for guest.py, wherever it runs."""
    given = [args.wheel and "--package", args.example and "--examples"]
    return [argument for argument in given if argument]


def guest_additions(args: argparse.Namespace) -> list[str]:
    """Return what else goes into the guests: what --add names, and bpftool if installed."""
    bpftool = shutil.which("bpftool")
    return [*args.add, *([f"{bpftool}:/usr/sbin/bpftool"] if bpftool else [])]


def run_rows(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Run everything that was requested, and return the rows in the table's order."""
    wanted = args.kernel or [*SUITES, HOST]
    guests = any(name != HOST for name in wanted)
    require_tools(guests)
    site, suite, initramfs = folder / "site", folder / "suite", folder / "initramfs"
    folder.chmod(0o755)  # one check runs the package as another user
    install_package(args.wheel, args.example, site)
    make_suite(suite, package=args.wheel is not None)
    rows = []
    if guests:
        args.cache.mkdir(parents=True, exist_ok=True)
        command = " ".join([GUEST, "--emulated", *guest_arguments(args)])
        guest_image.build(initramfs, site, suite, command, guest_additions(args))
        limits = {"memory": args.memory, "timeout": args.timeout}
        mirrors = args.mirror or configured_mirrors()
        with ThreadPoolExecutor(args.jobs) as pool:
            boots = []
            for row, kernel in choose_kernels(wanted, args.cache, mirrors):
                rows.append(row)
                if kernel is None:
                    print(f"NOT RUN: {row.name}: {row.note}", file=sys.stderr)
                else:
                    boots.append(pool.submit(boot, row, kernel, initramfs, AMD64, **limits))
            for booted in boots:
                booted.result()  # raises the runner's own errors
    if HOST in wanted:
        rows.append(Row(HOST))
        run_on_host(rows[-1], site, suite, args)
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """Print a table with a column for each kernel and a line for each check."""
    names = list(dict.fromkeys(name for row in rows for name in row.checks))
    table = [["check", *(row.name for row in rows)]]
    table.append(["kernel", *(short_release(row.kernel) for row in rows)])
    for name in names:
        cells = [MARKS[row.checks[name][0]] if name in row.checks else "-" for row in rows]
        table.append([name, *cells])
    table.append(["seconds", *(f"{row.seconds:.1f}" for row in rows)])
    table.append(["whole", *(row.state for row in rows)])
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def short_release(kernel: str) -> str:
    """Return only the version of a release, to keep the table narrow."""
    return kernel.partition("-")[0].partition("+")[0] or "?"


def main() -> int:
    """Run the rows, print the table, and return the exit status."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="kernels-") as folder:
        rows = run_rows(args, Path(folder))
    print_table(rows)
    print_notes(rows, args.details)
    if args.json:
        text = json.dumps([asdict(row) for row in rows], indent=2)
        args.json.write_text(text + "\n", encoding="utf-8")
    states = [row.state for row in rows]
    passed, failed, not_run = map(states.count, ("passed", "FAILED", "not run"))
    print(f"kernels: {passed} passed, {failed} failed, {not_run} not run")
    missing = not_run and not args.allow_missing
    return 1 if failed or missing or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
