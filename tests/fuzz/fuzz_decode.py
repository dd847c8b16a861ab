# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Arbitrary bytes as records: fuzz_decode.py [--seconds S] [--seed N], or FILE... to repeat.

Whatever the bytes, `Decoder.decode` returns events or raises RecordError. Each property of an event
can be read and each rendering made without an exception: text is one printable line, and JSON
loads and preserves every byte.

Without --atheris it takes valid records apart and puts them together wrongly. With --atheris (which
must be installed) libFuzzer guides the search by coverage. It needs no privilege and loads nothing
into the kernel. Input that failed is kept as fuzz-decode-SEED-N.bin.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import sys
import time
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from pybootstrap import ExecEvent, ExitEvent, LostEvent, Tracer
from pybootstrap.engine.decoder import Decoder
from pybootstrap.engine.errors import RecordError
from pybootstrap.engine.render_json import JsonRenderer
from pybootstrap.events import TYPES, Event
from pybootstrap.render import TextRenderer
from tests.support import exact_bytes, exec_record, exit_record, new_decoder, ns_of

RENDERERS = [TextRenderer(args=args, long=long) for args in (False, True) for long in (False, True)]
render_json = JsonRenderer(Tracer.events()).render
OFFSETS = {
    name: TYPES.struct("exit_record").member(name)[0]
    for name in ("header.size", "header.kind", "text.filename_size", "text.args_size")
}
HEADS = {event.KIND: event.HEAD_SIZE for event in Tracer.events()}
INTERESTING = [0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1]
INTERESTING += [2**63 - 1, 2**63, 2**64 - 1, *HEADS.values(), 24, 4128, 8192, 12320]


# ---- What must hold ----


def check(data: bytes) -> list[Event]:
    """Decodes and uses everything; any exception from here is a finding."""
    decoder = new_decoder()
    try:
        events = decoder.decode(data)
    except RecordError:
        return []
    events.append(decoder.loss(decoder.lost + 1))
    assert sum(not isinstance(e, LostEvent) for e in events) <= len(data) // min(HEADS.values())
    for event in events:
        check_event(event)
    shown = [e for e in events if not isinstance(e, LostEvent)]
    for renderer in RENDERERS:
        lines = renderer.render(events).split("\n")
        assert lines.pop() == ""
        assert len(lines) == len(shown)
        assert all(line.isprintable() for line in lines)
    check_json(events)
    return events


def check_event(event: Event) -> None:
    assert repr(event)
    assert event == pickle.loads(pickle.dumps(event))
    assert len({event, event}) == 1
    if isinstance(event, LostEvent):
        return
    for name in dir(type(event)):
        if not name.startswith("_"):
            getattr(event, name)
    fields = event.asdict()
    assert b"\0" not in os.fsencode(event.comm)
    if event.filename is not None:
        assert "\0" not in event.filename
        assert event.args is not None
        assert not any("\0" in arg for arg in event.args)
    if isinstance(event, ExitEvent):
        assert 0 <= event.exit_code <= 255
        assert event.signal is None or 1 <= event.signal <= 127
        assert (event.signal is None) == (event.signal_name is None)
        assert sum(event.usage[:2]) >= 0
    assert set(fields) >= {"pid", "comm", "filename", "args"}


def check_json(events: list[Event]) -> None:
    text = render_json(events)
    assert text.isascii()
    lines = text.split("\n")
    assert lines.pop() == ""
    for line, event in zip(lines, events):
        loaded = json.loads(line)
        assert json.dumps(loaded, ensure_ascii=False).encode("utf-8")  # no lone surrogates
        assert loaded.pop("event") in {"exec", "exit", "lost"}
        expected = event._asdict() if isinstance(event, LostEvent) else event.asdict()
        for name in expected.keys() & {"time_ns", "since_ns"}:
            assert ns_of(loaded[name[:-3]]) == expected.pop(name)
        for name in expected.keys() & {"comm", "filename", "args"}:
            check_text(loaded, name, expected.pop(name))
        check_others(loaded, expected)


def check_text(loaded: dict[str, Any], name: str, expected: Any) -> None:
    if expected is None:
        assert loaded[name] is None
    elif isinstance(expected, str):
        assert exact_bytes(loaded, name) == os.fsencode(expected)
    else:
        assert exact_bytes(loaded, name) == list(map(os.fsencode, expected))


def check_others(loaded: dict[str, Any], expected: dict[str, Any]) -> None:
    """Only numbers from 2**53 on have a second member."""
    for name, value in expected.items():
        if isinstance(value, dict):
            check_others(loaded[name], value)
        else:
            assert loaded[name] == value
            large = type(value) is int and value >= 2**53
            assert loaded.get(f"{name}_exact") == (str(value) if large else None)


# ---- Nearly valid bytes ----


def put(data: bytearray, offset: int, size: int, value: int) -> None:
    data[offset : offset + size] = (value % 256**size).to_bytes(size, sys.byteorder)


def repair(data: bytes, filename_share: int) -> bytes:
    """The same bytes as one record with a correct header, so that its text is decoded."""
    is_exit = len(data) >= ExitEvent.HEAD_SIZE and data[-1] & 1
    kind = (ExitEvent if is_exit else ExecEvent).KIND
    record = bytearray(data.ljust(HEADS[kind], b"\0"))
    tail = len(record) - HEADS[kind]
    filename_size = tail * (filename_share % 256) // 255
    put(record, OFFSETS["header.size"], 4, len(record))
    put(record, OFFSETS["header.kind"], 1, kind)
    put(record, OFFSETS["text.filename_size"], 4, filename_size)
    put(record, OFFSETS["text.args_size"], 4, tail - filename_size)
    return bytes(record)


class Mutator:
    """Makes inputs from valid records; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> bytes:
        size = self.random.choice([0, 1, 3, 15, 16, 100, 1000, 5000])
        kind = self.random.randrange(4)
        if kind == 0:
            return self.random.randbytes(size).replace(b"\0", b"\1")
        if kind == 1:
            points = [self.random.choice([0x1B, 0x85, 0x202E, 0x2028, 0xFEFF, 0x1F600]), 0x41]
            return "".join(chr(p) for p in points).encode() * (size // 4)
        if kind == 2:
            return self.random.choice([b"\xff", b"\xed\xa0\x80", b"\xf0\x9f", b"\n", b"'"]) * size
        return b"a" * size

    def valid(self) -> bytes:
        args = tuple(self.text() for _ in range(self.random.choice([0, 1, 2, 20])))
        number = self.random.choice(INTERESTING) % 2**32
        head = {
            "process__pid": number % 2**31,
            "process__comm": self.text()[:16],
            "header__flags": self.random.getrandbits(5),
            "header__time_ns": self.random.choice(INTERESTING),
            "header__lost": self.random.choice([0, 0, 0, 1, 2**64 - 1]),
        }
        if self.random.random() < 0.5:
            return exec_record(self.text(), args, **head)
        filename = None if self.random.random() < 0.2 else self.text()
        return exit_record(filename, args if filename is not None else None, status=number, **head)

    def mutate(self, data: bytearray) -> None:
        choose = self.random.randrange
        at = choose(len(data) + 1)
        kind = choose(7)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << choose(8)
        elif kind == 1:
            size = self.random.choice([1, 2, 4, 8])
            put(data, at - at % size, size, self.random.choice(INTERESTING))
        elif kind == 2:
            del data[at : at + choose(64)]
        elif kind == 3:
            data[at:at] = self.random.randbytes(choose(64))
        elif kind == 4:
            data[at:at] = data[choose(len(data) + 1) :][: choose(300)]
        elif kind == 5:
            offset = self.random.choice([*OFFSETS.values()])
            put(data, offset, 4, len(data) + choose(5) - 2)
        else:
            del data[at:]

    def make(self) -> bytes:
        data = bytearray(b"".join(self.valid() for _ in range(self.random.choice([1, 1, 2, 5]))))
        for _ in range(self.random.choice([0, 1, 1, 2, 8])):
            self.mutate(data)
        if self.random.random() < 0.4:
            return repair(bytes(data), self.random.randrange(256))
        return bytes(data)


# ---- Runs ----


def keep(data: bytes, name: str) -> None:
    Path(name).write_bytes(data)
    print(f"this input failed, it is in {name}:", data[:200], file=sys.stderr)


def search(seconds: float, seed: int) -> int:
    """Searches until the time is over or something was found; returns the exit status."""
    mutator = Mutator(seed)
    end = time.monotonic() + seconds
    tried = accepted = events = 0
    while time.monotonic() < end:
        data = mutator.make()
        tried += 1
        try:
            seen = check(data)
        except BaseException:
            keep(data, f"fuzz-decode-{seed}-{tried}.bin")
            raise
        accepted += bool(seen)
        events += len(seen)
    print(f"seed {seed}: {tried} inputs, {accepted} taken for records, {events} events, 0 failures")
    return 0 if accepted and accepted < tried else 1


def search_with_atheris(arguments: list[str]) -> None:
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    def one(data: bytes) -> None:
        check(data)
        if data:
            check(repair(data, data[0]))

    instrumented: Callable[[Any], Any] = atheris.instrument_func
    for function in (Decoder.decode, check, check_event, check_json, one):
        instrumented(function)
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description="fuzz the decoder and the renderers")
    parser.add_argument("files", nargs="*", type=Path, help="try these inputs only")
    parser.add_argument("--seconds", type=float, default=60, metavar="S")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), metavar="N")
    parser.add_argument("--atheris", action="store_true", help="with libFuzzer, if installed")
    options, others = parser.parse_known_args()
    if options.atheris:
        search_with_atheris([f"-max_total_time={options.seconds:.0f}", "-max_len=20000", *others])
        return 0
    for path in options.files:
        print(path, len(check(path.read_bytes())), "events")
    return 0 if options.files else search(options.seconds, options.seed)


if __name__ == "__main__":
    sys.exit(main())
