# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The sections of a BPF object."""

from __future__ import annotations

import struct
import sys

from pybootstrap.errors import ObjectError

__all__ = ["section"]

# ---- ELF ----

_ELF_HEADER = struct.Struct("=4sBB10xHH20xQ10xHHH")
_SECTION_HEADER = struct.Struct("=II16xQQ24x")
_RELOCATABLE, _EM_BPF, _NOBITS = 1, 247, 8
_ORDERS = {1: "little", 2: "big"}


def _find_section(elf: bytes, name: str) -> bytes | None:
    """A section's contents, empty for .bss; None when there is no such section."""
    if elf[:4] != b"\x7fELF":
        raise ObjectError("not an object file: it does not begin as ELF files do")
    if len(elf) < _ELF_HEADER.size:
        raise ObjectError(f"the object file is truncated: it has {len(elf)} bytes")
    order = _ORDERS.get(elf[5], "unknown")
    if order != sys.byteorder:
        raise ObjectError(
            f"the object file is for {order}-endian machines, but this one is "
            f"{sys.byteorder}-endian: compile it here, with clang -target bpf"
        )
    _, bits, _, kind, machine, table, entry, count, names = _ELF_HEADER.unpack_from(elf)
    if (bits, kind, machine) != (2, _RELOCATABLE, _EM_BPF):
        raise ObjectError("this ELF file is not a BPF object: compile it with clang -target bpf -c")
    end = table + count * _SECTION_HEADER.size
    if entry != _SECTION_HEADER.size or names >= count or end > len(elf):
        raise ObjectError("the object file is truncated: its section table is missing")
    headers = list(_SECTION_HEADER.iter_unpack(elf[table:end]))
    strings, wanted = headers[names][2], name.encode() + b"\0"
    for at, kind, start, size in headers:
        if elf.startswith(wanted, strings + at):
            end = start if kind == _NOBITS else start + size
            if end > len(elf):
                raise ObjectError(f"the object file is truncated: section {name} is not complete")
            return elf[start:end]
    return None


def section(elf: bytes, name: str) -> bytes:
    """The contents of a section of a BPF object; empty for one that has only a size (.bss).

    Raises ObjectError when the file is not a BPF object for this machine or lacks the section.
    """
    found = _find_section(elf, name)
    if found is None:
        hint = ": compile it with clang -g" if name == ".BTF" else ""
        raise ObjectError(f"the object file has no section {name}{hint}")
    return found
