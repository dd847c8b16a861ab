# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Records as the BPF programs would send them, made through the C structs themselves."""

from __future__ import annotations

from typing import Any

from pybootstrap._native import ffi, lib


def _text(filename: bytes | None, args: tuple[bytes, ...] | None) -> tuple[bytes, bytes]:
    name = b"" if filename is None else filename + b"\0"
    return name, b"".join(arg + b"\0" for arg in args or ())


def _record(struct: str, kind: int, filename: bytes | None, args: Any, fields: Any) -> bytes:
    name, tail = _text(filename, args)
    size = ffi.sizeof(f"struct {struct}")
    record: Any = ffi.new(f"struct {struct} *")
    record.record.size = size + len(name) + len(tail)
    record.record.kind = kind
    record.text.filename_size = len(name)
    record.text.args_size = len(tail)
    for path, value in fields.items():
        *parents, last = path.split("__")
        target = record
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, last, value)
    return bytes(ffi.buffer(record, size)) + name + tail


def exec_record(
    filename: bytes = b"/usr/bin/sleep",
    args: tuple[bytes, ...] = (b"sleep", b"1"),
    **fields: Any,
) -> bytes:
    """One exec record; further members as `process__pid=1`."""
    return _record("exec_record", lib.RECORD_EXEC, filename, args, fields)


def exit_record(
    filename: bytes | None = b"/usr/bin/sleep",
    args: tuple[bytes, ...] | None = (b"sleep", b"1"),
    **fields: Any,
) -> bytes:
    """One exit record; further members as `status=256`."""
    return _record("exit_record", lib.RECORD_EXIT, filename, args, fields)
