# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Install the wheels with pip in minimal Debian roots, old and new, and trace there.

    python tests/wheels/run.py --wheels dist [--quick] [--row NAME ...]

Roots of this machine's architecture run on the host's kernel, in a mount namespace that the kernel
removes with its last process; those of arm64 on an emulated machine with Debian's kernel. Prints a
table, which --write puts into docs/fleet.md. The exit status is 0 if every row passed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "tests/matrix"))

import guest_image  # noqa: E402
import roots  # noqa: E402
from kernel_packages import NotAvailableError, Suite, fetch_image, mirrors  # noqa: E402
from machines import ARM64, boot  # noqa: E402
from rows import Row, print_notes, read_results  # noqa: E402

BEHAVE = ROOT / "tests/exactness/behave.c"
IN_ROOT = "tests/wheels/in_root.py"
SUITE_FILES = (
    IN_ROOT, "tests/wheels/refused.py", "tests/matrix/checking.py", "tests/matrix/guest.py",
    "tests/matrix/exactness_checks.py", "tests/exactness/workload.py", "tests/__init__.py",
)  # fmt: skip
DOCUMENT = Path("docs/fleet.md")
TITLES = ["root", "Python", "glibc", "kernel", "architecture", "cffi", "result"]
GLIBC = "2.17"  # of the program that makes the workload: older than any root's
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # dpkg's name, and the kernel's and wheels'
# Where the host's kernel is used, /sys and /dev are the host's: the test needs to be root anyway.
ENTER = """\
set -e
busybox mount -t tmpfs -o mode=755,size=1g root "$1"
cd "$1"
busybox cpio -i -d -m <"$2" 2>/dev/null
for place in proc sys dev; do mount --rbind "/$place" "$place"; done
case $3 in refused) mount -t tmpfs none sys/kernel/btf ;; esac
exec chroot . /usr/bin/env -i PATH=/usr/bin HOME=/root LC_ALL=C.UTF-8 PYTHONPATH={suite} \
    python3 {suite}/{script} {arguments}
"""


# Held while apt works for a row, because rows share roots of apt and the cache.
PREPARING = threading.Lock()


@dataclass(frozen=True)
class Place:
    """What one row installs where."""

    name: str
    suite: str
    architecture: str
    cffi: str = ""  # a requirement of pip's; empty: the newest
    kernel: str = ""  # the suite whose kernel is booted; empty: the host's kernel
    refused: bool = False  # check what is refused here, and how
    quick: bool = False


PLACES = (
    Place("bullseye", "bullseye", "amd64"),
    Place("oldest-cffi", "bullseye", "amd64", cffi="oldest", quick=True),
    Place("bookworm", "bookworm", "amd64"),
    Place("trixie", "trixie", "amd64"),
    Place("unstable", "unstable", "amd64", quick=True),
    Place("refused", "trixie", "amd64", refused=True, quick=True),
    Place("bookworm-arm64", "bookworm", "arm64", kernel="bookworm", quick=True),
    Place("unstable-arm64", "unstable", "arm64", kernel="unstable"),
)
TOOLS = {
    "apt-get": "apt", "dpkg-deb": "dpkg", "busybox": "busybox-static", "unshare": "util-linux",
    "chroot": "coreutils", ARM64.qemu: ARM64.package,
}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Install the wheels in minimal roots, and trace.")
    parser.add_argument(
        "--wheels", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist/"
    )
    names = [place.name for place in PLACES]
    parser.add_argument(
        "--row", action="append", choices=names, metavar="NAME",
        help=f"one of {', '.join(names)}; may be repeated (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only the quickest row of each kind, and less of the workload when emulated",
    )
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "build/roots", metavar="DIR",
        help="where packages, kernels and package lists are kept (default: build/roots)",
    )  # fmt: skip
    parser.add_argument(
        "--mirror", action="append", metavar="URL",
        help="a Debian mirror (default: the repositories that apt here is configured to use)",
    )  # fmt: skip
    parser.add_argument(
        "--zig", default=f"{shlex.quote(sys.executable)} -m ziglang", metavar="COMMAND",
        help="zig, which compiles the workload for each architecture (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--details", action="store_true", help="print the detail of every check")
    document = parser.add_mutually_exclusive_group()
    document.add_argument("--write", action="store_true", help=f"write the table to {DOCUMENT}")
    document.add_argument("--compare", action="store_true", help="fail if that has another table")
    parser.add_argument(
        "--timeout", type=float, default=1200, metavar="SECONDS",
        help="how long one row may take (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-missing", action="store_true", help="rows that could not be run are no failure"
    )
    args = parser.parse_args()
    args.cache, args.wheels = args.cache.resolve(), args.wheels.resolve()
    return args


def require_tools() -> None:
    """Exit with one sentence if something required is not there."""
    if os.geteuid() != 0:
        raise SystemExit("this traces, so it needs root")
    if os.uname().machine != MACHINES["amd64"]:
        raise SystemExit(f"roots are made for x86_64 only; this is {os.uname().machine}")
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing: install the package {package}")


def our_wheel(folder: Path, architecture: str) -> Path:
    """Return the wheel for an architecture."""
    found = list(folder.glob(f"pybootstrap_bpf-*_{MACHINES[architecture]}.whl"))
    if len(found) != 1:
        raise SystemExit(f"{folder}: {len(found)} wheels for {architecture}: run `make wheels`")
    return found[0]


def oldest_cffi() -> str:
    """Return pip's requirement for the oldest cffi that pyproject.toml admits."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^dependencies = \["(cffi)>=([0-9.]+)"\]$', project, re.MULTILINE)
    assert found, "pyproject.toml does not say which cffi is the oldest"
    return "==".join(found.groups())


def python_of(packages: Sequence[roots.Package]) -> str:
    """Return the version of the Python among a root's packages."""
    (version,) = {m[1] for p in packages if (m := re.fullmatch(r"python(3\.\d+)-venv", p.name))}
    return version


def fetch_wheels(place: Place, python: str, folder: Path) -> None:
    """Put the wheels that pip needs in a root into a folder, as a fleet's owner would."""
    requirement = oldest_cffi() if place.cffi else "cffi"
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--only-binary", ":all:", "--python-version", python, "--implementation", "cp",
        "--platform", f"manylinux2014_{MACHINES[place.architecture]}",
        "--dest", str(folder), requirement,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotAvailableError(f"{requirement} for Python {python}: {done.stderr.strip()}")


def make_suite(suite: Path, architecture: str, args: argparse.Namespace) -> None:
    """Put the tests' files into one folder, with behave.c compiled for the architecture."""
    for file in SUITE_FILES:
        (suite / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, suite / file)
    target = f"{MACHINES[architecture]}-linux-gnu.{GLIBC}"
    program = suite / "tests/matrix/behave"
    command = [*shlex.split(args.zig), "cc", "-target", target, "-O2", "-pthread"]
    command += ["-o", str(program), str(BEHAVE)]
    env = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(args.cache / "zig")}
    if subprocess.run(command, env=env, check=False).returncode != 0:
        raise SystemExit(
            f"{BEHAVE.name} could not be built with {args.zig}: run `make test-wheels`"
        )


def find_suite(name: str, architecture: str, args: argparse.Namespace) -> Suite:
    """Return a suite whose index is the mirror's; the first mirror that has it is taken."""
    suite = Suite(name, args.cache, architecture)
    refusals = []
    for mirror in args.mirror or mirrors():
        try:
            suite.update(mirror)
        except (NotAvailableError, subprocess.TimeoutExpired) as error:
            refusals.append(str(error))
        else:
            return suite
    raise NotAvailableError(f"no suite {name}: {'; '.join(refusals) or 'apt has no repository'}")


def make_image(place: Place, folder: Path, args: argparse.Namespace) -> Path:
    """Write the root of a row to an archive."""
    suite = find_suite(place.suite, place.architecture, args)
    packages = roots.PACKAGES + (roots.GUEST_PACKAGES if place.kernel else ())
    chosen = roots.resolve(suite, packages)
    tests, wheels, image = (folder / f"{place.name}.{end}" for end in ("tests", "wheels", "image"))
    wheels.mkdir()
    fetch_wheels(place, python_of(chosen), wheels)
    shutil.copy(our_wheel(args.wheels, place.architecture), wheels)
    if place.refused:
        shutil.copy(our_wheel(args.wheels, "arm64"), wheels)
    make_suite(tests, place.architecture, args)
    few = "--few" if args.quick else ""
    command = f"/usr/bin/python3 {roots.SUITE}/{IN_ROOT} --emulated {few}"
    files = roots.download(suite, chosen)
    tree = roots.make_root(files, tests, wheels, command, ARM64.results)
    guest_image.write_archive(tree, image)
    return image


def run_on_host(row: Row, place: Place, image: Path, args: argparse.Namespace) -> None:
    """Run the checks of a row in a root on the host's kernel, and fill in the row.

    No pid namespace, because events carry the pids of the host.
    """
    mounted = image.with_suffix(".root")
    mounted.mkdir()
    script = ENTER.format(
        suite=roots.SUITE, script=IN_ROOT, arguments="--refused" if place.refused else ""
    )
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    command += [str(mounted), str(image), "refused" if place.refused else ""]
    started = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        trouble = ""
        try:
            output = process.communicate(timeout=args.timeout)[0]
        except subprocess.TimeoutExpired:
            output, trouble = "", f"not done after {args.timeout:.0f} s"
        finally:
            # With its last process the namespace ends, and with it the mounts.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    row.seconds = time.monotonic() - started
    read_results(row, output, trouble)


def run_row(place: Place, folder: Path, args: argparse.Namespace) -> Row:
    """Run one row."""
    row, kernel = Row(place.name), None
    try:
        with PREPARING:
            image = make_image(place, folder, args)
            if place.kernel:
                suite = find_suite(place.kernel, place.architecture, args)
                kernel = fetch_image(suite, suite.find_kernel(), args.cache)
        if kernel:
            boot(row, kernel, image, ARM64, memory="2G", timeout=args.timeout)
        else:
            run_on_host(row, place, image, args)
        image.unlink()
    except (NotAvailableError, subprocess.TimeoutExpired) as error:
        row.note = str(error)
    print(f"{row.name}: {row.state} ({row.seconds:.0f} s)", file=sys.stderr)
    return row


def detail(row: Row, check: str) -> str:
    """Return the detail of a check that passed, for the table."""
    ok, said, _ = row.checks.get(check, (None, "", 0.0))
    return said if ok else "?"


def cells(row: Row) -> list[str]:
    """Return a row's line of the table."""
    place = next(place for place in PLACES if place.name == row.name)
    kernel = detail(row, "release")
    return [
        f"Debian {place.suite}", detail(row, "python"), detail(row, "glibc"),
        f"{kernel}, emulated" if place.kernel else f"{kernel.partition('-')[0]}, the host's",
        detail(row, "architecture"),
        "-" if place.refused else detail(row, "cffi"),
        "refuses what does not fit" if place.refused and row.state == "passed" else row.state,
    ]  # fmt: skip


def print_table(rows: Sequence[Row]) -> None:
    """Print the table in columns."""
    lines = [["row", *TITLES, "seconds"]]
    lines += [[row.name, *cells(row), f"{row.seconds:.0f}"] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def document(rows: Sequence[Row], write: bool) -> bool:
    """Write the table into the document, or return whether it has this one."""
    lines = [TITLES, ["---"] * len(TITLES), *map(cells, rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path = ROOT / DOCUMENT
    text = path.read_text(encoding="utf-8")
    found = re.search(rf"(?m)^\| {TITLES[0]} \|.*\n(\|.*\n)+", text)
    if found is None:
        raise SystemExit(f"{DOCUMENT} has no table that begins with `| root |`")
    if write:
        path.write_text(text[: found.start()] + table + text[found.end() :], encoding="utf-8")
    return write or found.group() == table


def kill_children() -> None:
    """Kill what this process has started; in a session of its own, all of that."""
    for task in Path("/proc/self/task").iterdir():
        for child in map(int, (task / "children").read_text(encoding="ascii").split()):
            with contextlib.suppress(ProcessLookupError):
                leads = os.getsid(child) == child
                (os.killpg if leads else os.kill)(child, signal.SIGKILL)


def run_rows(places: Sequence[Place], folder: Path, args: argparse.Namespace) -> list[Row]:
    """Run the rows, three at a time; kill all that still runs if a signal ends this."""
    with ThreadPoolExecutor(3) as pool:
        emulated_first = sorted(places, key=lambda place: not place.kernel)  # they take longest
        rows = {place: pool.submit(run_row, place, folder, args) for place in emulated_first}
        try:
            return [rows[place].result() for place in places]
        except BaseException:
            for row in rows.values():
                row.cancel()
            while any(row.running() for row in rows.values()):
                kill_children()
                time.sleep(0.1)
            raise


def main() -> int:
    """Run the rows, print the table, and return the exit status."""
    args = parse_arguments()
    require_tools()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    wanted = [
        place for place in PLACES
        if (place.name in args.row if args.row else place.quick or not args.quick)
    ]  # fmt: skip
    args.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="roots-") as folder:
        rows = run_rows(wanted, Path(folder), args)
    print_table(rows)
    print_notes(rows, args.details)
    states = [row.state for row in rows]
    passed, failed, not_run = map(states.count, ("passed", "FAILED", "not run"))
    print(f"roots: {passed} passed, {failed} failed, {not_run} not run")
    missing = not_run and not args.allow_missing
    if (args.write or args.compare) and not document(rows, args.write):
        print(f"{DOCUMENT} has another table: see --write")
        return 1
    return 1 if failed or missing or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
