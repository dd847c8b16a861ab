# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Boot a kernel with an initramfs on an emulated machine, and read the results of its guest."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rows import Row, read_results


@dataclass(frozen=True)
class Machine:
    """A machine that qemu emulates."""

    qemu: str
    package: str  # Debian's, which has that program
    options: tuple[str, ...]
    # Its serial ports, as Linux names them; `options` connect the second with chardev "results".
    console: str
    results: str


AMD64 = Machine(
    "qemu-system-x86_64",
    "qemu-system-x86",
    # Without cmpxchg16b, because QEMU 7.2 emulates it badly: with it 14 of 84 boots of 6.12 ended
    # in an oops with garbage in the flags, mostly right after that instruction, without it none of
    # 60.
    ("-cpu", "max,cx16=off", "-serial", "chardev:results"),
    "ttyS0",
    "ttyS1",
)
ARM64 = Machine(
    "qemu-system-aarch64",
    "qemu-system-arm",
    ("-machine", "virt", "-cpu", "neoverse-n1", "-device", "pci-serial,chardev=results"),
    "ttyAMA0",
    "ttyS0",
)
# An oops ends the guest at once instead of letting it hang.
KERNEL_OPTIONS = "quiet oops=panic panic=-1"


def boot(
    row: Row, kernel: Path, initramfs: Path, machine: Machine, *, memory: str, timeout: float
) -> None:
    """Boot one kernel, wait at most `timeout` seconds until its guest ends, and fill in the row.

    The console is shown if something goes wrong; the other port carries only the lines of guest.py.
    Both are kept in files beside the initramfs.
    """
    console, results = (initramfs.with_name(f"{row.name}.{end}") for end in ("console", "results"))
    results.touch()
    command = [
        machine.qemu, "-accel", "tcg", "-smp", "2", "-m", memory,
        "-nodefaults", "-display", "none", "-no-reboot", "-net", "none",
        "-kernel", str(kernel), "-initrd", str(initramfs),
        "-append", f"console={machine.console} {KERNEL_OPTIONS}",
        "-serial", f"file:{console}", "-chardev", f"file,id=results,path={results}",
        *machine.options,
    ]  # fmt: skip
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
        trouble = done.stderr.strip() if done.returncode else ""
    except subprocess.TimeoutExpired:
        trouble = f"not done after {timeout:.0f} s"
    row.seconds = time.monotonic() - started
    read_results(row, results.read_text(encoding="utf-8", errors="replace"), trouble)
    if row.state != "passed" and console.exists():
        last = console.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
        print(f"--- last lines of the console of {row.name}:", *last, sep="\n", file=sys.stderr)
