# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Event classes of any tool, declared or made from BTF. Records are packed by hand."""

from __future__ import annotations

import json
import math
import pickle
import struct
from base64 import b64decode
from functools import cache
from os import fsdecode, fsencode
from typing import Any, ClassVar, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybootstrap import ExitEvent, LostEvent, ObjectError, RecordError, SettingError
from pybootstrap.engine import Event, Tracer, event_classes, field
from pybootstrap.engine.build import system_libbpf
from pybootstrap.engine.events import make_decoder
from pybootstrap.engine.render import FieldRenderer
from pybootstrap.engine.render_json import JsonRenderer, member
from tests.unit.test_btf import ROOT, compiled

SOURCE = """
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "ring.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum color { RED = 1, DARK = 300 };
enum { ODD = 0x10 };

struct sample {
	struct record_header header;
	unsigned long long big;
	long long small;
	int number;
	enum color color;
	bool flag;
	u8 mac[6];
	char name[9];
	unsigned int list[2];
	struct { short x, y; } point;
	unsigned int record; /* a name that events have themselves */
};
struct open_ended {
	struct record_header header;
	unsigned int id;
	char rest[]; /* where the struct would be padded */
};
struct parts {
	struct record_header header;
	unsigned int sizes[3];
	unsigned int unused;
	char tail[];
};
struct other {
	struct record_header header;
};
struct odd {
	struct record_header header;
	union { unsigned int v4; u8 v6[4]; };
	unsigned int event;
	unsigned int record;
	unsigned int record_;
	unsigned int \u00b5;
	u8 mark[0];
	double real;
	struct { unsigned int low : 3; unsigned int whole; } bits;
	unsigned int _hidden;
	u16 ports[2];
};

RECORD(1, sample);
RECORD(200, open_ended);
RECORD(3, parts);
RECORD(ODD, odd);
const struct other *unused_other __attribute__((unused));
const enum color *unused_color __attribute__((unused));
"""
HEADER = struct.Struct("=IBxHQQ")
SAMPLE = struct.Struct("=QqiIB6s9s2I2hI")


@cache
def sample_object() -> bytes:
    includes = [f"-I{ROOT}/vmlinux", *system_libbpf()]
    return compiled(SOURCE, "-g", *includes, linked=True)


class Point(NamedTuple):
    x: int
    y: int


class Total(NamedTuple):
    sum: int
    known: int | None  # type: ignore[valid-type,unused-ignore]  # Python 3.9 does not evaluate it


def total(big: int, small: int) -> Total:
    return Total(big + small, None if small < 0 else small)


class Named(Event):
    """Fields that several classes share."""

    __slots__ = ()
    LIMIT: ClassVar[int] = 9
    name: str = field(doc="The name.")


class SampleEvent(Named, object=sample_object(), struct="sample"):
    __slots__ = ()
    big: int
    small: int
    number: int
    color: int
    flag: bool
    mac: bytes
    raw_name: bytes = field("name")
    list: Any
    second: int = field("list[1]")
    x: int = field("point.x")
    point: Any = field(convert=lambda point: Point(**point))
    odd: bool = field("number", convert=lambda number: bool(number & 1))
    half: float = field("number", convert=lambda number: number / 2)
    total: Total = field("big", "small", convert=total)
    words: list[str] = field("name", convert=lambda name: fsdecode(name).split("\0"))


class Rest(Event, object=sample_object(), struct="open_ended"):
    __slots__ = ()
    id: int
    rest: str = field(tail=True, convert=fsdecode)
    both: tuple[int, str] = field(
        "id", tail=True, convert=lambda number, tail: (number, tail.hex())
    )


class Parts(Event, object=sample_object(), struct="parts"):
    __slots__ = ()
    TAIL = ("sizes[0]", "sizes[1]", "sizes[2]")
    MIN_TAIL = 1
    tail: bytes = field(tail=True, convert=bytes)


u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
s16, s32, s64 = (st.integers(-(2**bits), 2**bits - 1) for bits in (15, 31, 63))
samples = st.tuples(
    u64, s64, s32, u32, st.integers(0, 1), st.binary(min_size=6, max_size=6),
    st.binary(min_size=9, max_size=9), u32, u32, s16, s16, u32,
)  # fmt: skip
DULL = (1, 2, 3, 1, 1, b"\1\2\3\4\5\6", b"name\0\0\0\0\0", 5, 6, -7, 8, 9)


def header(kind: int, size: int, time_ns: int = 10, lost: int = 0) -> bytes:
    return HEADER.pack(size, kind, 0, time_ns, lost)


def sample(values: tuple[Any, ...] = DULL) -> bytes:
    """The struct in C's layout on every 64-bit machine."""
    return header(1, HEADER.size + SAMPLE.size) + SAMPLE.pack(*values)


def decode(*records: bytes, events: Any = (SampleEvent, Rest, Parts)) -> list[Any]:
    return make_decoder(events).decode(b"".join(records))


def test_fields_have_the_values_of_the_struct() -> None:
    (event,) = decode(
        sample((2**64 - 1, -5, 7, 300, 1, b"abcdef", b"na\xffme\0xyz", 10, 2**32 - 1, -1, 2, 3))
    )
    assert event.asdict() == {
        "time_ns": 10,
        "name": "na\udcffme",
        "big": 2**64 - 1,
        "small": -5,
        "number": 7,
        "color": 300,
        "flag": True,
        "mac": b"abcdef",
        "raw_name": b"na\xffme\0xyz",
        "list": [10, 2**32 - 1],
        "second": 2**32 - 1,
        "x": -1,
        "point": {"x": -1, "y": 2},
        "odd": True,
        "half": 3.5,
        "total": {"sum": 2**64 - 6, "known": None},
        "words": ["na\udcffme", "xyz"],
    }
    assert event.flag is True
    assert event.point == Point(-1, 2)
    assert (event.KIND, event.NAME, event.LIMIT) == (1, "sample", 9)
    assert SampleEvent.name.__doc__ == "The name."
    assert pickle.loads(pickle.dumps(event)) == event
    assert repr(event).startswith(
        "SampleEvent(time_ns=10, name='na\\udcffme', big=18446744073709551615, "
    )
    with pytest.raises(AttributeError):
        event.big = 3
    with pytest.raises(AttributeError):
        event.bigger = 3


# ---- Mismatches ----


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such struct": ("nothing", {}, "no record 'nothing'; it has sample, parts, odd, open_ended"),
    "no kind": ("other", {}, r"RECORD\(1, other\);"),
    "no such member": ("sample", {"size": field()}, "no member 'size'; it has header, big"),
    "text of a number": ("sample", {"big": ("str", field())}, "big is a str, but big of struct"),
    "number of text": ("sample", {"name": ("int", field())}, r"name of struct sample is char\[9\]"),
    "number of a struct": ("sample", {"point": ("int", field())}, "change the annotation"),
    "wrong order": (
        "sample",
        {"sum": field("small", "big", convert=total)},
        "big of struct sample is out of the struct's order",
    ),
    "no plain value": (
        "sample",
        {"sum": field("big", "point", convert=total)},
        "only numbers and arrays of bytes",
    ),
    "a name that is taken": ("sample", {"record": field()}, "events already have a record"),
    "a value": ("sample", {"big": 5}, "Bad.big is not a field"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_class_that_does_not_match_its_struct_is_refused(name: str) -> None:
    struct_name, fields, message = BAD[name]
    body: dict[str, Any] = {"__annotations__": {}}
    for key, value in fields.items():
        annotation, body[key] = value if isinstance(value, tuple) else ("Any", value)
        body["__annotations__"][key] = annotation
    with pytest.raises(SettingError, match=message):
        type("Bad", (Event,), body, object=sample_object(), struct=struct_name)


def test_a_field_of_several_members_needs_a_conversion() -> None:
    with pytest.raises(SettingError, match=r"field\('big', 'small'\) needs a convert="):
        field("big", "small")
    with pytest.raises(SettingError, match="needs a convert="):
        field(tail=True)


# ---- Tails ----


def test_a_struct_without_a_tail_has_its_size() -> None:
    for size in (HEADER.size, len(sample()) - 1, len(sample()) + 8):
        wrong = header(1, size) + sample()[HEADER.size :] + bytes(8)
        with pytest.raises(RecordError):
            decode(wrong[:size])
    with pytest.raises(RecordError):
        decode(sample()[:-1])


def test_an_open_tail_has_any_length() -> None:
    records = [header(200, 28 + n) + struct.pack("=I", n) + b"x" * n for n in (0, 3, 500)]
    events = decode(*records)
    assert [(event.id, event.rest) for event in events] == [(n, "x" * n) for n in (0, 3, 500)]
    assert events[1].both == (3, "787878")
    for size in (24, 27):
        with pytest.raises(RecordError):
            decode(header(200, size) + bytes(size - 24))


def test_parts_of_a_tail_have_the_lengths_in_the_record() -> None:
    def record(size: int, *sizes: int) -> bytes:
        return header(3, size) + struct.pack("=4I", *sizes, 0) + b"abcdef"

    (event,) = decode(record(46, 1, 2, 3))
    assert event.tail == b"abcdef"
    for wrong in (record(46, 1, 2, 4), record(46, 2**32 - 1, 7, 0), record(45, 1, 2, 3)):
        with pytest.raises(RecordError):
            decode(wrong)
    with pytest.raises(RecordError):  # less than MIN_TAIL
        decode(record(40, 0, 0, 0)[:40])


def test_known_kinds_are_decoded_and_others_refused() -> None:
    rest = header(200, 28, lost=4, time_ns=20) + struct.pack("=I", 9)
    events = decode(sample(), rest)
    assert [type(event).__name__ for event in events] == ["SampleEvent", "LostEvent", "Rest"]
    assert events[1] == LostEvent(20, 10, 4)
    for kind in (0, 2, 255):
        with pytest.raises(RecordError):
            decode(header(kind, 24))


# ---- JSON ----


def as_json(value: Any) -> Any:
    """A value as a JSON parser returns it, without the second members."""
    if isinstance(value, bytes):
        return value
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(as_json, value))
    if isinstance(value, str):
        return fsencode(value).decode(errors="replace")
    return value


def without_seconds(loaded: Any) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    second = {f"{name}_{end}" for name in loaded for end in ("exact", "base64")}
    return {k: without_seconds(v) for k, v in loaded.items() if k not in second}


@given(samples)
def test_json_has_every_field_of_any_record(values: tuple[Any, ...]) -> None:
    (event,) = decode(sample(values))
    line = JSON.render([event])
    loaded = json.loads(line)
    assert (loaded.pop("event"), loaded.pop("time")) == ("sample", "1970-01-01T00:00:00.000000010Z")
    expected = event.asdict()
    del expected["time_ns"]
    assert list(without_seconds(loaded)) == list(expected)
    for name, value in expected.items():
        if isinstance(value, bytes):
            assert b64decode(loaded[name]) == value
        else:
            assert without_seconds(loaded)[name] == as_json(value)
    for name in ("big", "small"):
        large = not -(2**53) < expected[name] < 2**53
        assert loaded.get(f"{name}_exact") == (str(expected[name]) if large else None)
    # The fast path writes what member() writes.
    rest = ",".join(member(name, getattr(event, name)) for name in expected)
    assert (
        line
        == f'{{"event":"sample","time":{json.dumps("1970-01-01T00:00:00.000000010Z")},{rest}}}\n'
    )


JSON = JsonRenderer([SampleEvent, Rest, Parts])


def test_json_of_tails() -> None:
    rest = header(200, 31) + struct.pack("=I", 9) + b"a%\xff"
    loaded = json.loads(JSON.render(decode(rest)))
    assert (loaded["rest"], loaded["both"]) == ("a%\ufffd", [9, "6125ff"])
    assert b64decode(loaded["rest_base64"]) == b"a%\xff"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, '"n":null'),
        (True, '"n":true'),
        (math.inf, '"n":null'),
        (math.nan, '"n":null'),
        (0.1, '"n":0.1'),
        (-(2**53), '"n":-9007199254740992,"n_exact":"-9007199254740992"'),
        ((), '"n":[]'),
        ([2**53, 1], '"n":[9007199254740992,1],"n_exact":["9007199254740992","1"]'),
        ([[2**60, "\udcff"], True], '"n":[[1152921504606846976,"\\ufffd"],true]'),
        (["a", "\udcff"], '"n":["a","\\ufffd"],"n_base64":["YQ==","/w=="]'),
        ([{"a": 2**60}], '"n":[{"a":1152921504606846976,"a_exact":"1152921504606846976"}]'),
        ([1, [2.5, None], {"a": "b"}], '"n":[1,[2.5,null],{"a":"b"}]'),
        (
            Total(2**53, None),
            '"n":{"sum":9007199254740992,"sum_exact":"9007199254740992","known":null}',
        ),
        (Total(-1, 2), '"n":{"sum":-1,"known":2}'),
    ],
)
def test_json_of_any_value(value: object, shown: str) -> None:
    assert member("n", value) == shown
    json.loads("{" + shown + "}")


def test_json_of_values_that_it_cannot_hold() -> None:
    with pytest.raises(TypeError, match="no form in JSON: give its field"):
        member("n", object())


# ---- Classes made from BTF ----


def test_generated_classes_have_all_members() -> None:
    made, parts, odd, rest = event_classes(sample_object())
    assert [(one.__name__, one.NAME, one.KIND) for one in (made, parts, odd, rest)] == [
        ("Sample", "sample", 1),
        ("Parts", "parts", 3),
        ("Odd", "odd", 16),
        ("OpenEnded", "open_ended", 200),
    ]
    (event,) = decode(sample(), events=[made])
    assert event.asdict() == {
        "time_ns": 10,
        "big": 1,
        "small": 2,
        "number": 3,
        "color": 1,
        "flag": True,
        "mac": b"\1\2\3\4\5\6",
        "name": "name",
        "list": [5, 6],
        "point": {"x": -7, "y": 8},
        "record_": 9,
    }
    (tail,) = decode(header(200, 30) + struct.pack("=I", 7) + b"xy", events=[rest])
    assert (tail.id, tail.rest) == (7, b"xy")
    lines = JsonRenderer([made, rest]).render([event, tail]).splitlines()
    assert json.loads(lines[0])["point"] == {"x": -7, "y": 8}
    assert json.loads(lines[1])["rest"] == "eHk="


def odd_record() -> bytes:
    body = struct.pack("=IIIII4xd2II2H", 0x04030201, 5, 6, 7, 8, 0.5, 1, 9, 10, 11, 12)
    return header(16, HEADER.size + len(body)) + body


def test_members_that_collide_overlap_or_cannot_be_read() -> None:
    made = event_classes(sample_object())[2]
    (event,) = decode(odd_record(), events=[made])
    assert event.asdict() == {
        "time_ns": 10,
        "v4": 0x04030201,
        "v6": b"\1\2\3\4",
        "event_": 5,
        "record_": 6,
        "record__": 7,
        "\u00b5": 8,
        "real": 0.5,
        "bits": {"whole": 9},
        "ports": [11, 12],
    }
    line = JsonRenderer([made]).render([event])
    assert line.isascii()
    loaded = json.loads(line)
    assert (loaded["v4"], loaded["v6"], loaded["\u00b5"]) == (0x04030201, "AQIDBA==", 8)
    assert event_classes(sample_object())[2] is made


class Odd(Event, object=sample_object(), struct="odd"):
    seconds = field("header.time_ns", convert=lambda ns: ns // 10)
    ports: list[int]
    first_port: int = field("ports", convert=lambda ports: ports[0])
    labels: Any = field("v6", convert=lambda key: {f'{key.decode()}":1,"x': key, 7: "\ud800"})
    mark: Any = field("real", convert=lambda real: Mixed(real, real > 0))


class Mixed(NamedTuple):
    value: int  # wrong on purpose: the value is no int
    flag: bool


def test_json_of_hostile_conversions() -> None:
    (event,) = decode(odd_record(), events=[Odd])
    loaded = json.loads(JsonRenderer([Odd]).render([event]))
    assert (loaded["seconds"], loaded["ports"], loaded["first_port"]) == (1, [11, 12], 11)
    assert set(loaded["labels"]) == {'\1\2\3\4":1,"x', "7", "7_base64"}
    assert loaded["mark"] == {"value": 0.5, "flag": True}


def test_default_text_is_safe_for_a_terminal() -> None:
    class Loud:
        def __repr__(self) -> str:
            return "\x1b]0;x\x07\nfake=1"

    class Sly(Event, object=sample_object(), struct="sample"):
        name: Any = field(convert=lambda _: Loud())
        words: str = field("name", convert=lambda _: "a b")

    line = FieldRenderer([Sly]).render(decode(sample(), events=[Sly]))
    assert line.endswith(r"sly              name=\x1b]0;x\x07\x0afake=1 words='a b'" + "\n")


# ---- Inheritance ----


def test_fields_of_several_bases() -> None:
    class Numbered(Event):
        __slots__ = ()
        number: int

    class Plain:
        """Not an event; its annotations are not fields."""

        __slots__ = ()
        color: str

    class Both(Plain, Named, Numbered, object=sample_object(), struct="sample"):
        __slots__ = ()

    class More(Both):
        def twice(self) -> int:
            return 2 * self.number

    class Wider(Both):
        big: int

    (event,) = decode(sample(), events=[Both])
    assert (event.name, event.number) == ("name", 3)
    assert set(Both.FIELDS) == {"time_ns", "name", "number"}
    assert More(event.record).twice() == 6
    assert Wider(event.record).asdict() == {"time_ns": 10, "name": "name", "number": 3, "big": 1}
    with pytest.raises(AttributeError, match="Numbered names no struct"):
        Numbered(event.record).number  # noqa: B018


def test_a_field_cannot_be_overridden_by_something_else() -> None:
    with pytest.raises(SettingError, match="name is a field of a base"):
        type("Mine", (SampleEvent,), {"name": property(lambda _: "mine")})


def test_annotations_may_be_quoted() -> None:
    made: Any = type(
        "Quoted",
        (Event,),
        {"__annotations__": {"name": "'str'"}},
        object=sample_object(),
        struct="sample",
    )
    assert made(sample()).name == "name"


def test_bytes_behind_the_struct_are_no_member() -> None:
    with pytest.raises(SettingError, match=r"rest of struct open_ended has no size.*tail=True"):
        type("R", (Event,), {"rest": field()}, object=sample_object(), struct="open_ended")


def test_two_records_with_the_same_kind_are_refused() -> None:
    source = SOURCE.replace("RECORD(3, parts);", "RECORD(1, parts);")
    includes = [f"-I{ROOT}/vmlinux", *system_libbpf()]
    with pytest.raises(ObjectError, match="struct sample and struct parts are both of kind 1"):
        event_classes(compiled(source, "-g", *includes, linked=True))


def test_events_must_belong_to_the_object() -> None:
    class Incomplete(Tracer):
        OBJECT = sample_object()
        EVENTS = (SampleEvent, Rest)

    class Strange(Tracer):
        OBJECT = sample_object()
        EVENTS = (ExitEvent,)

    with pytest.raises(SettingError, match="must be a tuple of event classes, not <class"):
        type("Lone", (Tracer,), {"OBJECT": sample_object(), "EVENTS": SampleEvent})()
    with pytest.raises(SettingError, match="EVENTS lacks a class for struct parts, struct odd"):
        Incomplete()
    with pytest.raises(SettingError, match="EVENTS has ExitEvent, which is of another object"):
        Strange()


def test_a_tracer_does_not_take_a_name_of_the_engines() -> None:
    with pytest.raises(SettingError, match=r"Careless\.__init__ uses _pid, which belongs to"):

        class Careless(Tracer):
            def __init__(self, pid: int, **common: Any) -> None:
                super().__init__(**common)
                self._pid = pid
