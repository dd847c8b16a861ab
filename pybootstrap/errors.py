# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What can go wrong, and what to do about it.

Every error is a `BootstrapError`, and also the built-in that a caller would catch. The message is
one sentence, or two, that say what to do next.
"""

from __future__ import annotations

import os
from errno import EACCES, ENOMEM, EPERM

_BTF = "/sys/kernel/btf/vmlinux"
_OLDEST_KERNEL = (5, 10)
_CAP_PERFMON, _CAP_BPF = 38, 39  # linux/capability.h
_NEEDED_CAPABILITIES = 1 << _CAP_BPF | 1 << _CAP_PERFMON


class BootstrapError(Exception):
    """The base of all errors of this package."""


class PrivilegeError(BootstrapError, PermissionError):
    """The kernel does not let this process load or attach BPF programs."""


class UnsupportedKernelError(BootstrapError, OSError):
    """The running kernel lacks something that is needed."""


class LoadError(BootstrapError, RuntimeError):
    """The kernel refused the programs or a map although it should support them.

    `log` holds all that libbpf and the kernel's verifier said (str).
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class SettingError(BootstrapError, ValueError):
    """An argument has a value that makes no sense; nothing was loaded."""


class StateError(BootstrapError, RuntimeError):
    """The call does not fit the Tracer's state: not started, closed, or read by two threads."""


class RecordError(BootstrapError, RuntimeError):
    """Bytes that are no record of this version: a fault in this package, please report it."""


def _effective_capabilities() -> int:
    """The capability bits of this process: CapEff of proc_pid_status(5)."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapEff:"):
                return int(line.split()[1], 16)
    return 0


def _kernel_version() -> tuple[int, ...]:
    """Major and minor version of the running kernel: `release` of uname(2)."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()))


def _last_line(log: str) -> str:
    """What a log ends with: the verifier's verdict stands before its closing statistics."""
    noise = ("processed ", "verification time", "stack depth", "--", "libbpf:", "mark_precise")
    lines = [line.strip() for line in log.splitlines()]
    said = [line for line in lines if line and not line.startswith(noise)]
    return said[-1] if said else (lines[-1] if lines else "")


def start_error(code: int, step: str, log: str) -> BootstrapError:
    """The error for `-code` (errno) returned by a step of starting ("open", "load", "attach").

    The errno alone is ambiguous (EPERM and EINVAL have many causes), so the surroundings are asked.
    """
    rejected = "BEGIN PROG LOAD LOG" in log
    error: BootstrapError
    if _kernel_version() < _OLDEST_KERNEL:
        error = UnsupportedKernelError(
            f"kernel {os.uname().release} is too old: tracing needs Linux 5.10 or newer"
        )
    elif code in (EPERM, EACCES) and not rejected:
        error = PrivilegeError(_why_not_permitted())
    elif not os.path.exists(_BTF):
        error = UnsupportedKernelError(
            f"this kernel has no type information ({_BTF}): "
            "boot one that is built with CONFIG_DEBUG_INFO_BTF=y, as distributions' kernels are"
        )
    elif code == ENOMEM:
        error = LoadError("not enough memory for the BPF maps: try a smaller ring or max_processes")
    else:
        verdict = _last_line(log)
        error = LoadError(
            f"cannot {step} the BPF programs: {os.strerror(code)}"
            + (f" ({verdict})" if verdict else "")
            + "; -v shows the whole log",
            log,
        )
    if isinstance(error, OSError):
        error.errno = code
    return error


def _why_not_permitted() -> str:
    missing = _NEEDED_CAPABILITIES & ~_effective_capabilities()
    if missing:
        return (
            "tracing needs the capabilities CAP_BPF and CAP_PERFMON: "
            "run it as root, for example with sudo"
        )
    return (
        "the kernel refuses BPF even though this process has CAP_BPF and CAP_PERFMON: "
        "look at kernel lockdown, or the seccomp and security policy of its container"
    )
