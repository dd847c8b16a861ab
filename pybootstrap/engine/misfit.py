# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Explains why the extension module cannot be imported, as after unpacking another machine's wheel.

The loader's own words mislead: a module for another architecture is "No such file or directory".
"""

from __future__ import annotations

import sys
import sysconfig

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}  # elf.h


def explain(error: ImportError) -> str:
    """One sentence that says what does not fit and what to do; "" if it is about another module."""
    module = (error.name or "").rpartition(".")[2]
    if module == "_cffi_backend":
        return f"the package cffi is missing: `{sys.executable} -m pip install 'cffi>=1.15'`"
    if module != "_native":
        return ""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "free-threaded Python is not supported: use the ordinary build of the same version"
    if isinstance(error, ModuleNotFoundError):
        return (
            "its extension module is missing, or is not for this Python: install the wheel with "
            "pip, or run `make` in a checkout"
        )
    theirs, ours = _architecture(error.path), _architecture("/proc/self/exe")
    if theirs != ours:
        cause = f"the wheel is for {theirs} and this Python for {ours}"
    else:
        cause = f"the wheel does not fit this machine ({error})"
    return f"{cause}: install it with pip, which takes a wheel only where it fits"


def _architecture(path: str | None) -> str:
    """What an ELF file was compiled for."""
    try:
        with open(path or "", "rb") as file:
            header = file.read(20)
    except OSError:
        return "unknown"
    machine = int.from_bytes(header[18:20], "little")
    return _ELF_MACHINES.get(machine, f"ELF machine {machine}")
