# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The errors of this package.

Every error is a `BootstrapError`, and also the built-in that a caller would expect. Its message
says in one or two sentences what is wrong and what to do.
"""

from __future__ import annotations

import os
from errno import EACCES, EMFILE, ENFILE, ENOMEM, EPERM


class BootstrapError(Exception):
    """The base of all errors of this package."""


class PrivilegeError(BootstrapError, PermissionError):
    """The kernel does not let this process load or attach BPF programs."""


class UnsupportedKernelError(BootstrapError, OSError):
    """The running kernel lacks something that is needed."""


class LoadError(BootstrapError, RuntimeError):
    """The kernel refused the programs or a map although it should support them.

    `log` holds all messages of libbpf and the kernel's verifier (str).
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class SettingError(BootstrapError, ValueError):
    """An argument has an invalid value."""


class UnknownNameError(SettingError, AttributeError):
    """A BPF object has no variable, map or program of this name; the message lists what it has."""


class ObjectError(BootstrapError, ValueError):
    """An object file cannot be used: not a BPF object, damaged, or compiled without BTF."""


class StateError(BootstrapError, RuntimeError):
    """The call does not fit the Tracer's state: not started, closed, or read by two threads."""


class RecordError(BootstrapError, RuntimeError):
    """Bytes are not a record that the BPF source declares: a bug in the tool or in this package."""


_VERIFIER = "BEGIN PROG LOAD LOG"


def _reason(log: str) -> str:
    """The line of a log that says why: the verifier's verdict, or libbpf's first complaint."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if _VERIFIER not in log:
        words = ("fail", "missing", "unknown", "invalid")
        complaints = [line for line in lines if any(word in line for word in words)]
        return (complaints or lines or [""])[0]
    # It prints its verdict before its statistics, and the source before its instructions.
    noise = ("processed ", "verification time", "stack depth", "--", "libbpf:", "mark_precise")
    said = [line for line in lines if not line.startswith(noise)]
    source = [line for line in said if line.startswith("; ")]
    at = f" at `{source[-1][2:]}`" if source else ""
    return f"{said[-1]}{at}" if said else ""


def start_error(code: int, step: str, log: str) -> BootstrapError:
    """The error for an errno from a step of starting ("open", "load", "attach")."""
    if code in (EMFILE, ENFILE):
        return LoadError(
            f"cannot {step} the BPF programs: {os.strerror(code)}: raise the limit with `ulimit -n`"
        )
    from pybootstrap.engine.check import surroundings  # only when something is wrong

    error: BootstrapError
    failed = next((check for check in surroundings() if not check.ok), None)
    if failed is not None and failed.lacks == "kernel":
        error = UnsupportedKernelError(failed.detail)
    elif failed is not None:
        error = PrivilegeError(failed.detail)
    elif code in (EPERM, EACCES) and _VERIFIER not in log:
        error = PrivilegeError(
            "the kernel refuses BPF although this process has CAP_BPF and CAP_PERFMON: programs "
            "for the network need CAP_NET_ADMIN, too; otherwise check the seccomp and security "
            "policy of its container or service"
        )
    elif code == ENOMEM:
        error = LoadError("not enough memory for the BPF maps: make the ring or other maps smaller")
    else:
        what = "the verifier refuses them" if _VERIFIER in log else os.strerror(code)
        reason = _reason(log)
        error = LoadError(
            f"cannot {step} the BPF programs: {what}" + (f" ({reason})" if reason else ""), log
        )
    if isinstance(error, OSError):
        error.errno = code
    return error
