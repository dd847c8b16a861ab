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
    """Bytes are not a record of this version: a bug in this package, please report it."""


def _last_line(log: str) -> str:
    """The last line with a reason: the verifier prints its verdict before its statistics."""
    noise = ("processed ", "verification time", "stack depth", "--", "libbpf:", "mark_precise")
    lines = [line.strip() for line in log.splitlines()]
    said = [line for line in lines if line and not line.startswith(noise)]
    return said[-1] if said else (lines[-1] if lines else "")


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
    elif code in (EPERM, EACCES) and "BEGIN PROG LOAD LOG" not in log:
        error = PrivilegeError(
            "the kernel refuses BPF although this process has CAP_BPF and CAP_PERFMON: programs "
            "for the network need CAP_NET_ADMIN, too; otherwise check the seccomp and security "
            "policy of its container or service"
        )
    elif code == ENOMEM:
        error = LoadError("not enough memory for the BPF maps: make the ring or other maps smaller")
    else:
        verdict = _last_line(log)
        error = LoadError(
            f"cannot {step} the BPF programs: {os.strerror(code)}"
            + (f" ({verdict})" if verdict else ""),
            log,
        )
    if isinstance(error, OSError):
        error.errno = code
    return error
