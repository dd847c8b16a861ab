# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The checks of each kernel: runs in a guest of run.py, and on the host itself.

Prints one JSON line per check when it ends (see checking.py), and a closing
{"end": N} with the number of checks: without that line the run did not finish. With --package the
checks of the package itself are made too; it is then taken from PYTHONPATH.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

from checking import Check, run_check

BTF = Path("/sys/kernel/btf/vmlinux")
EXIT_TRACEPOINT = "btf_trace_sched_process_exit"


def check_release() -> str:
    """Return the kernel's release, so that the table shows what really ran."""
    assert sys.platform == "linux", f"the platform is {sys.platform}"
    return os.uname().release


def check_btf() -> str:
    """The kernel has BTF, and its exit tracepoint has a known form."""
    assert BTF.exists(), f"{BTF} is missing"
    count = tracepoint_parameters(BTF.read_bytes(), EXIT_TRACEPOINT)
    # The first parameter is a void pointer of the tracepoint's own; the third is group_dead.
    assert count in (2, 3), f"{EXIT_TRACEPOINT} takes {count} parameters"
    return f"{EXIT_TRACEPOINT} takes {count} parameters"


def check_memory() -> str:
    """There is enough memory; with less, other checks would fail for lack of it."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            megabytes = int(line.split()[1]) // 1024
            assert megabytes >= 256, f"only {megabytes} MiB available"
            return f"{megabytes} MiB available"
    raise AssertionError("/proc/meminfo has no line MemAvailable")


def check_python() -> str:
    """The interpreter has what the package needs: threads, sockets, events, children."""
    for name in ("asyncio", "dataclasses", "selectors", "signal", "socket", "ssl", "threading"):
        importlib.import_module(name)
    done = subprocess.run(
        [sys.executable, "-c", "print(6 * 7)"], capture_output=True, check=False, timeout=60
    )
    assert done.stdout == b"42\n", f"a child printed {done.stdout!r} and {done.stderr!r}"
    return sys.version.split()[0]


GENERAL = (check_release, check_btf, check_memory, check_python)

# How many bytes follow the common twelve of a BTF type: a fixed number, and for each member.
EXTRA = {
    1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12),
    17: (4, 0), 19: (0, 12),
}  # fmt: skip
LAST_KIND = 19
TYPEDEF, FUNC_PROTO = 8, 13


def tracepoint_parameters(btf: bytes, name: str) -> int:
    """Return how many parameters a tracepoint's function type has; read from BTF, without libbpf.

    The type is a typedef of a pointer to a function prototype, and types are numbered from 1.
    """
    magic, _, _, header, types, types_length, strings, strings_length = struct.unpack_from(
        "<HBBIIIII", btf
    )
    assert magic == 0xEB9F, "the BTF has another magic number"
    text = btf[header + strings : header + strings + strings_length]
    wanted = text.find(b"\0" + name.encode() + b"\0") + 1
    assert wanted, f"no type is called {name}"
    kinds: list[tuple[int, int, int]] = [(0, 0, 0)]  # for each type: kind, members, target
    position, end = header + types, header + types + types_length
    pointer = 0
    while position < end:
        name_offset, info, target = struct.unpack_from("<III", btf, position)
        kind, members = info >> 24 & 0x1F, info & 0xFFFF
        assert kind <= LAST_KIND, f"BTF kind {kind} is not known here"
        kinds.append((kind, members, target))
        if name_offset == wanted and kind == TYPEDEF:
            pointer = target
        fixed, each = EXTRA.get(kind, (0, 0))
        position += 12 + fixed + each * members
    assert pointer, f"no typedef is called {name}"
    kind, members, _ = kinds[kinds[pointer][2]]
    assert kind == FUNC_PROTO, f"{name} is no pointer to a function"
    return members


def package_checks(emulated: bool, examples: bool) -> tuple[Check, ...]:
    """Return the checks of the package, whose modules can be imported only if it is there."""
    package = importlib.import_module("package_checks")
    exactness = importlib.import_module("exactness_checks")
    if emulated:
        exactness.allow_for_emulation()
    more = importlib.import_module("example_checks").CHECKS if examples else ()
    return (*package.CHECKS, *more, *exactness.CHECKS)


def main() -> None:
    """Run the checks and print the closing line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", action="store_true", help="check the package itself too")
    parser.add_argument("--examples", action="store_true", help="and the tools of examples/")
    parser.add_argument("--emulated", action="store_true", help="this machine is an emulated one")
    args = parser.parse_args()
    checks = GENERAL + (package_checks(args.emulated, args.examples) if args.package else ())
    for check in checks:
        run_check(check)
    print(json.dumps({"end": len(checks)}), flush=True)


if __name__ == "__main__":
    main()
