# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Checks whether this machine can trace and, if not, says why and what to do.

`--check` prints these checks; when starting fails, they explain it.

An errno of the kernel does not tell its cause (EPERM and EINVAL have many), so this inspects the
system. It loads nothing.
"""

from __future__ import annotations

import os

from pybootstrap._typing import NamedTuple

BTF = "/sys/kernel/btf/vmlinux"
_OLDEST_KERNEL = (5, 10)
_NO_MEMLOCK_FROM = (5, 11)  # since then BPF memory is accounted to the cgroup

# linux/capability.h
_CAPABILITIES = {"CAP_BPF": 39, "CAP_PERFMON": 38}
_CAP_SYS_ADMIN = 21  # includes both
_CAP_SYS_RESOURCE = 24


class Check(NamedTuple):
    """The result of one check.

    `lacks` says what is missing if it failed: "kernel" or "privilege".
    """

    name: str
    ok: bool
    detail: str
    """What was found; if not ok, one sentence that says what to do."""
    lacks: str


def surroundings() -> list[Check]:
    """All checks. The first one that fails explains best why starting fails."""
    return [_kernel(), _btf(), _capabilities(), _lockdown(), _unprivileged(), _memlock()]


def kernel_version() -> tuple[int, ...]:
    """Major and minor version of the running kernel: `release` of uname(2)."""
    return version_of(os.uname().release)


def version_of(release: str) -> tuple[int, ...]:
    """Major and minor version in a release such as "6.18-rc1" or "7"; 0 for a missing one."""
    major, _, rest = release.partition(".")
    return _leading_number(major), _leading_number(rest) if major.isdecimal() else 0


def _leading_number(text: str) -> int:
    return int(text[: len(text) - len(text.lstrip("0123456789"))] or 0)


def _kernel() -> Check:
    release = os.uname().release
    if kernel_version() >= _OLDEST_KERNEL:
        return Check("kernel", True, f"Linux {release}", "kernel")
    return Check(
        "kernel", False, f"kernel {release} is too old: tracing needs Linux 5.10 or newer", "kernel"
    )


def _btf() -> Check:
    if os.path.exists(BTF):
        return Check("BTF", True, BTF, "kernel")
    return Check(
        "BTF",
        False,
        f"this kernel has no type information ({BTF}): boot one that is built with "
        "CONFIG_DEBUG_INFO_BTF=y, as the kernels of distributions are",
        "kernel",
    )


def _effective_capabilities() -> int | None:
    """The capability bits of this process: CapEff of proc_pid_status(5); None without /proc."""
    import re  # needed only for `--check`, and when something is wrong

    bits = re.search("^CapEff:\\s*(\\S+)", _read("/proc/self/status") or "", re.MULTILINE)
    return int(bits[1], 16) if bits else None


def _capabilities() -> Check:
    held = _effective_capabilities()
    if held is None:
        return Check("capabilities", True, "not known here (/proc is not mounted)", "privilege")
    missing = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if not missing or held >> _CAP_SYS_ADMIN & 1:
        return Check("capabilities", True, " and ".join(_CAPABILITIES), "privilege")
    if os.geteuid() == 0:  # of a container or service
        remedy = "root has lost them here, so have its container or service keep them"
    else:
        remedy = "run it as root, for example with sudo"
    return Check(
        "capabilities",
        False,
        f"tracing needs the capabilities {' and '.join(missing)}: {remedy}",
        "privilege",
    )


def _read(path: str) -> str | None:
    """The text of a small file; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return None


def _lockdown() -> Check:
    """In the mode "confidentiality" no BPF program may read kernel memory: kernel_lockdown(7)."""
    modes = _read("/sys/kernel/security/lockdown")
    if modes is None:
        return Check("lockdown", True, "not known here (securityfs is not mounted)", "privilege")
    if "[confidentiality]" not in modes:
        return Check("lockdown", True, modes, "privilege")
    return Check(
        "lockdown",
        False,
        "the kernel is locked down for confidentiality: boot it with lockdown=integrity",
        "privilege",
    )


def _unprivileged() -> Check:
    """For information only, because it does not restrict processes with capabilities."""
    value = _read("/proc/sys/kernel/unprivileged_bpf_disabled")
    return Check("unprivileged_bpf_disabled", True, value or "not there", "privilege")


def _memlock() -> Check:
    """Before Linux 5.11 BPF memory counts as locked; libbpf raises the limit if it may."""
    if kernel_version() >= _NO_MEMLOCK_FROM:
        return Check("memlock", True, "no limit on BPF memory in this kernel", "privilege")
    import resource  # needed only on such a kernel

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    enough = limit == resource.RLIM_INFINITY or limit >= 64 * 1024 * 1024
    held = _effective_capabilities()
    if enough or held is None or held >> _CAP_SYS_RESOURCE & 1:
        return Check("memlock", True, "can be raised as needed", "privilege")
    return Check(
        "memlock",
        False,
        f"only {limit // 1024} KiB of memory may be locked: run it as root, or raise that with "
        "`ulimit -l unlimited`",
        "privilege",
    )
