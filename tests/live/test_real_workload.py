# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""A workload that nobody here wrote, stress-ng; the kernel's process accounting is the witness.

The kernel writes a record of acct(5) for each process that ends. Each must have its EXIT, with the
same status, name and user; and there must be no other EXITs. PYBOOTSTRAP_STRESS_S=60 runs it longer
(docs/exactness.md has the result).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pybootstrap import ExitEvent, Stats, Tracer
from tests.support import DEADLINE_S, collect, run, wait_until

SECONDS = int(os.environ.get("PYBOOTSTRAP_STRESS_S", "3"))
USER = 64_997  # an id that nobody else uses, which excludes other processes
STRESSORS = (
    *("fork", "vfork", "clone", "pthread", "exec"),
    *("kill", "zombie", "exit-group", "sigsegv", "daemon"),
)

# Where distributions keep it, because acct(2) cannot tell whether accounting is on.
_IN_USE = ("/var/log/account/pacct", "/var/account/pacct")

# struct acct_v3 of linux/acct.h; no padding.
_ACCT = struct.Struct("=BBHIIIIIIf8H16s")
_AFORK = 0x01  # forked and did not exec


class Ended(NamedTuple):
    """What both witnesses must agree on about the end of a process."""

    status: int
    comm: bytes
    uid: int


def accounting(path: Path | None) -> None:
    """Switches process accounting on or off: acct(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.acct(os.fsencode(path) if path else None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def in_use() -> bool:
    """Whether this machine already accounts its processes, which we would stop."""
    files = [Path(name) for name in _IN_USE if Path(name).exists()]
    before = [path.stat().st_size for path in files]
    run("/bin/true")
    return before != [path.stat().st_size for path in files]


@contextlib.contextmanager
def accounted(path: Path) -> Iterator[None]:
    if in_use():
        pytest.skip("this machine has process accounting on: switch it off first (accton off)")
    path.touch()
    try:
        accounting(path)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            pytest.skip("this kernel has no process accounting (CONFIG_BSD_PROCESS_ACCT)")
        raise
    try:
        yield
    finally:
        accounting(None)


def of_user() -> list[str]:
    """The user's remaining processes, including zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid == USER:
                found.append(path.name)
    return found


def start_stress(directory: str) -> subprocess.Popen[bytes]:
    shutil.chown(directory, USER, USER)
    stressors = [word for name in STRESSORS for word in (f"--{name}", "1")]
    return subprocess.Popen(
        [
            *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
            *("stress-ng", "--quiet", "--oom-avoid", "--timeout", str(SECONDS)),
            *("--temp-path", directory, *stressors),
        ]
    )


def end_stress(process: subprocess.Popen[bytes]) -> None:
    """Ends all remaining processes of the user, however the test went."""
    process.terminate()
    patience = time.monotonic() + DEADLINE_S / 2

    def ended() -> bool:
        for pid in (left := of_user()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL if time.monotonic() > patience else signal.SIGTERM)
        return not left and process.poll() is not None

    wait_until(ended, of_user)


def trace_stress(path: Path) -> tuple[dict[int, list[ExitEvent]], Stats]:
    """Runs stress-ng, accounted to this file; returns its EXITs by pid, and the counters."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        tracer = stack.enter_context(Tracer(users=[USER], ring_size=2**26, max_processes=2**17))
        stack.enter_context(accounted(path))
        process = start_stress(directory)
        stack.callback(end_stress, process)
        events = collect(
            tracer,
            lambda _: process.poll() is not None and not of_user(),
            within_s=SECONDS + DEADLINE_S,
        )
        tracer.stop()
        events += tracer
        stats = tracer.stats
    assert process.returncode == 0
    ended: dict[int, list[ExitEvent]] = defaultdict(list)
    for event in events:
        if isinstance(event, ExitEvent):
            ended[event.pid].append(event)
    return ended, stats


def records(path: Path) -> Iterator[tuple[int, bool, Ended]]:
    """For each process of the user: its id, whether it ever called exec, and how it ended."""
    for flag, version, _, status, uid, _, pid, *others in _ACCT.iter_unpack(path.read_bytes()):
        if version & 0x0F != 3:
            pytest.skip("this kernel writes records without pids (CONFIG_BSD_PROCESS_ACCT_V3)")
        if uid == USER:
            yield pid, not flag & _AFORK, Ended(status, others[-1].partition(b"\0")[0], uid)


def ending(event: ExitEvent) -> Ended:
    status = event.exit_code << 8 | (event.signal or 0) | event.core_dumped << 7
    return Ended(status, os.fsencode(event.comm), event.uid)


def test_each_process_of_stress_ng_ends_once(tmp_path: Path) -> None:
    seen, stats = trace_stress(tmp_path / "acct")
    assert (stats.lost, stats.missed, stats.untracked) == (0, 0, 0)
    expected: Counter[int] = Counter()
    different = []
    for pid, executed, end in records(tmp_path / "acct"):
        number = expected[pid]
        expected[pid] += 1
        if number < len(seen[pid]):
            event = seen[pid][number]
            # AFORK stays set if a thread other than the first called exec.
            if ending(event) != end or (executed and event.duration_since != "exec"):
                different.append((event, executed, end))
    exits = Counter({pid: len(events) for pid, events in seen.items()})
    missing, extra = expected - exits, exits - expected
    totals = [sum(counts.values()) for counts in (expected, exits, missing, extra)]
    print("in acct {}, EXITs {}, missing {}, extra {}".format(*totals))
    assert (missing, extra, different) == (Counter(), Counter(), [])
    assert sum(expected.values()) > 100 * SECONDS
