# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Records as the BPF programs would send them, made through the C structs themselves; and what JSON
objects made of them stand for."""

from __future__ import annotations

import calendar
import time
from base64 import b64decode
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


def exact_bytes(fields: dict[str, Any], name: str) -> Any:
    """The bytes that a text of an object of `--json` stands for, or each of a list of texts."""
    exact = fields.get(f"{name}_base64")
    if isinstance(fields[name], list):
        return list(map(b64decode, exact)) if exact else [text.encode() for text in fields[name]]
    return b64decode(exact) if exact else fields[name].encode()


def ns_of(stamp: str | None) -> int:
    """The ns since the epoch that a time of RFC 3339 stands for; 0 for none."""
    if stamp is None:
        return 0
    seconds = calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
    return seconds * 10**9 + int(stamp[20:29])
