# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Types and variables read from BTF are those that bpftool, the C compiler and ctypes see."""

from __future__ import annotations

import ctypes
import json
import re
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cffi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybootstrap import ObjectError, RecordError, SettingError
from pybootstrap.engine.btf import Btf, Type, layout, section

ROOT = Path(__file__).parents[2]

SOURCE = """
#include "bootstrap.h"
#define SEC(name) __attribute__((section(name), used))
#define __user __attribute__((btf_type_tag("user")))

typedef unsigned char u8;
typedef const volatile unsigned long long counter;
enum color { RED, GREEN = 7 };
union address { unsigned int v4; u8 v6[16]; };

struct sample {
	signed char s8;
	u8 u8;
	short s16;
	unsigned short u16;
	int s32;
	unsigned int u32;
	long long s64;
	counter u64;
	_Bool yes;
	enum color color;
	const void *pointer;
	int __user *restrict tagged;
	char text[5];
	u8 bytes[6];
	signed char steps[2];
	int grid[3][2];
	char words[2][4];
	_Bool flags[3];
	double real;
	float small;
	union address address;
	struct { unsigned short port; struct { u8 low, high; }; };
	struct { int x, y; } point[2];
};

struct odd {
	unsigned int plain;
	unsigned int three : 3;
	unsigned int five : 5;
	__int128 wide;
	char tail[];
};

typedef struct { int value; } named_by_typedef;
struct dropped { int never_used; };

struct sample sample;
const struct odd *unused_odd __attribute__((unused));
struct exec_record unused_exec_record __attribute__((unused));
const struct exit_record *unused_exit_record __attribute__((unused));
named_by_typedef unused_named_by_typedef;

const volatile u8 first;
const volatile long long second = 2;
static const volatile unsigned short third = 3;
const volatile struct filters filters;
int data = 1;
static volatile int hidden = 2;
SEC(".data.x") u8 x1 = 1;
SEC(".data.x") long long x2 = 2;

SEC("tp/one") int one(void *context)
{
	static unsigned int calls;
	return calls++ + hidden++ + third + second + first + data;
}

SEC("tp/two") int two(void *context)
{
	static unsigned long long calls;
	return calls++ + hidden++;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
"""


def compiled(source: str, *options: str, linked: bool = False) -> bytes:
    """The object that clang makes of it or, if linked, then `bpftool gen object`."""
    with TemporaryDirectory() as directory:
        code, plain, final = (Path(directory, name) for name in ("a.bpf.c", "a.o", "a.bpf.o"))
        code.write_text(source)
        clang = ["clang", "-target", "bpf", "-O2", *(options or ["-g"]), f"-I{ROOT}/bpf"]
        subprocess.run([*clang, "-c", code, "-o", plain], check=True)
        if linked:
            subprocess.run(["bpftool", "gen", "object", final, plain], check=True)
        return (final if linked else plain).read_bytes()


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> None:
    """Compiles before hypothesis starts to measure time."""
    sample_object(False)
    sample_object(True)


@cache
def sample_object(linked: bool) -> bytes:
    return compiled(SOURCE, linked=linked)


def bpftool_dump(contents: bytes) -> list[dict[str, Any]]:
    """The types that bpftool reads from an object or from bare BTF; type N is at index N - 1."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "a.o")
        path.write_bytes(contents)
        command = ["bpftool", "-j", "btf", "dump", "file", str(path), "format", "raw"]
        done = subprocess.run(command, capture_output=True, check=True)
    types: list[dict[str, Any]] = json.loads(done.stdout)["types"]
    return types


# ---- Object files ----


def test_sections_have_the_contents_of_the_file() -> None:
    contents = sample_object(True)
    assert section(contents, "license") == b"Dual BSD/GPL\0"
    assert section(contents, ".bss") == b""
    assert bpftool_dump(section(contents, ".BTF")) == bpftool_dump(contents)


OTHER_ORDER = "bpfeb" if sys.byteorder == "little" else "bpfel"


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        (lambda: b"", "not an object file: it is not in ELF format"),
        (lambda: b"#!/bin/sh\n", "not an object file: it is not in ELF format"),
        (lambda: sample_object(True)[:63], "the object file is truncated: it has 63 bytes"),
        (lambda: sample_object(True)[:-1], "the object file is truncated: its section table"),
        (lambda: Path(sys.executable).read_bytes(), "this ELF file is not a BPF object: compile"),
        (
            lambda: compiled("int x;", "-c"),
            "the object file has no section .BTF: compile it with clang -g",
        ),
        (lambda: compiled("int x;", "-target", OTHER_ORDER, "-g"), "the object file is for "),
    ],
)
def test_invalid_objects_are_refused(contents: Any, told: str) -> None:
    with pytest.raises(ObjectError) as caught:
        section(contents(), ".BTF")
    assert str(caught.value).startswith(told)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(ObjectError, match=r"^the object file has no section \.nope$"):
        section(sample_object(True), ".nope")


@pytest.fixture(params=[False, True], ids=["clang", "bpftool"])
def types(request: pytest.FixtureRequest) -> Btf:
    return Btf.of_object(sample_object(request.param))


def project_object() -> bytes:
    return (ROOT / "build/bootstrap.bpf.o").read_bytes()


# ---- Against bpftool ----


@pytest.mark.parametrize("object_file", [project_object, lambda: sample_object(True)])
def test_variables_are_where_bpftool_puts_them(object_file: Any) -> None:
    dump = bpftool_dump(object_file())
    types = Btf.of_object(object_file())
    sections = [entry for entry in dump if entry["kind"] == "DATASEC"]
    assert types.sections() == sorted(entry["name"] for entry in sections)
    seen = 0
    for entry in sections:
        theirs = {
            dump[var["type_id"] - 1]["name"]: (var["offset"], var["size"])
            for var in entry["vars"]
            if dump[var["type_id"] - 1]["kind"] == "VAR"
        }
        ours = types.variables(entry["name"])
        assert {name: (at, found.size) for name, (at, found) in ours.items()} == theirs
        seen += len(theirs)
    assert seen >= 15


def test_an_unlinked_object_has_the_same_variables() -> None:
    plain, final = Btf.of_object(sample_object(False)), Btf.of_object(sample_object(True))
    assert plain.sections() == final.sections()
    for name in final.sections():
        ours = {key: (at, str(found)) for key, (at, found) in plain.variables(name).items()}
        assert ours == {key: (at, str(found)) for key, (at, found) in final.variables(name).items()}
    assert {"one.calls", "two.calls", "sample"} <= plain.variables(".bss").keys()
    assert [at for at, _ in plain.variables(".data.x").values()] == [0, 8]


@pytest.mark.parametrize("object_file", [project_object, lambda: sample_object(True)])
def test_members_are_where_bpftool_sees_them(object_file: Any) -> None:
    types, checked = Btf.of_object(object_file()), 0
    for entry in bpftool_dump(object_file()):
        if entry["kind"] not in ("STRUCT", "UNION") or entry["name"] == "(anon)":
            continue
        found = types.struct(entry["name"])
        assert (found.kind, found.size) == (entry["kind"].lower(), entry["size"])
        for member in entry["members"]:
            if member["name"] != "(anon)":
                offset, kind = found.members[member["name"]]
                assert offset == member["bits_offset"] // 8
                assert ("bitfield" in kind.name) == bool(member.get("bitfield_size"))
                checked += 1
    assert checked > 40


# ---- Against the C compiler's layout ----


HEADERS = cffi.FFI()
for header in ("ring.h", "bootstrap.h"):
    text = (ROOT / "bpf" / header).read_text()
    HEADERS.cdef(re.sub(r"^[ \t]*#.*$", "", text, flags=re.MULTILINE))


def check_like_cffi(found: Type, ctype: Any) -> None:
    if ctype.kind != "array" or ctype.length is not None:  # cffi knows no size of a flexible array
        assert found.size == HEADERS.sizeof(ctype)
    if ctype.kind == "struct":
        assert list(found.members) == [name for name, _ in ctype.fields]
        for name, field in ctype.fields:
            offset, member = found.member(name)
            assert offset == field.offset
            check_like_cffi(member, field.type)
    elif ctype.kind == "array":
        assert found.element is not None
        assert found.count == (ctype.length or 0)
        check_like_cffi(found.element, ctype.item)
    else:
        assert found.name == ctype.cname


@pytest.mark.parametrize("name", ["exec_record", "exit_record", "filters", "usage", "process"])
def test_records_have_the_layout_of_the_header(types: Btf, name: str) -> None:
    check_like_cffi(types.struct(name), HEADERS.typeof(f"struct {name}"))


def test_layouts_read_what_the_c_struct_holds(types: Btf) -> None:
    record: Any = HEADERS.new("struct exit_record *")
    record.header.kind, record.process.pid, record.process.comm = 2, 4242, b"name"
    record.usage.minor_faults, record.status = 2**63, 9
    paths = ("header.kind", "process.pid", "process.comm", "usage.minor_faults", "status")
    precompiled = layout(types.struct("exit_record"), *paths)
    assert precompiled.unpack_from(bytes(HEADERS.buffer(record))) == (
        2,
        4242,
        b"name".ljust(16, b"\0"),
        2**63,
        9,
    )


# ---- Paths and kinds, against ctypes ----


class Address(ctypes.Union):
    _fields_ = [("v4", ctypes.c_uint32), ("v6", ctypes.c_uint8 * 16)]


class Inner(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint8), ("high", ctypes.c_uint8)]


class Outer(ctypes.Structure):
    _anonymous_ = ("inner",)
    _fields_ = [("port", ctypes.c_uint16), ("inner", Inner)]


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int32), ("y", ctypes.c_int32)]


class Sample(ctypes.Structure):
    _anonymous_ = ("outer",)
    _fields_ = [
        ("s8", ctypes.c_int8),
        ("u8", ctypes.c_uint8),
        ("s16", ctypes.c_int16),
        ("u16", ctypes.c_uint16),
        ("s32", ctypes.c_int32),
        ("u32", ctypes.c_uint32),
        ("s64", ctypes.c_int64),
        ("u64", ctypes.c_uint64),
        ("yes", ctypes.c_bool),
        ("color", ctypes.c_uint32),
        ("pointer", ctypes.c_uint64),
        ("tagged", ctypes.c_uint64),
        ("text", ctypes.c_char * 5),
        ("bytes", ctypes.c_uint8 * 6),
        ("steps", ctypes.c_int8 * 2),
        ("grid", ctypes.c_int32 * 2 * 3),
        ("words", ctypes.c_char * 4 * 2),
        ("flags", ctypes.c_bool * 3),
        ("real", ctypes.c_double),
        ("small", ctypes.c_float),
        ("address", Address),
        ("outer", Outer),
        ("point", Point * 2),
    ]


@pytest.mark.parametrize(
    ("path", "offset", "name", "code"),
    [
        ("s8", Sample.s8.offset, "signed char", "b"),
        ("u64", Sample.u64.offset, "unsigned long long", "Q"),
        ("yes", Sample.yes.offset, "_Bool", "?"),
        ("color", Sample.color.offset, "enum color", "I"),
        ("tagged", Sample.tagged.offset, "a pointer", "Q"),
        ("text", Sample.text.offset, "char[5]", "5s"),
        ("text[4]", Sample.text.offset + 4, "char", "b"),
        ("bytes", Sample.bytes.offset, "unsigned char[6]", "6s"),
        ("steps", Sample.steps.offset, "signed char[2]", ""),
        ("grid", Sample.grid.offset, "int[3][2]", ""),
        ("grid[2]", Sample.grid.offset + 16, "int[2]", ""),
        ("grid[2][1]", Sample.grid.offset + 20, "int", "i"),
        ("words[1]", Sample.words.offset + 4, "char[4]", "4s"),
        ("real", Sample.real.offset, "double", "d"),
        ("small", Sample.small.offset, "float", "f"),
        ("address", Sample.address.offset, "union address", ""),
        ("address.v6", Sample.address.offset, "unsigned char[16]", "16s"),
        ("high", Sample.outer.offset + 3, "unsigned char", "B"),
        ("point[1].y", Sample.point.offset + 12, "int", "i"),
    ],
)
def test_paths_lead_to_members(types: Btf, path: str, offset: int, name: str, code: str) -> None:
    at, found = types.struct("sample").member(path)
    assert (at, found.name, found.code) == (offset, name, code)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("nope", "struct sample has no member 'nope'; it has s8, u8, s16,"),
        ("address.nope", "union address has no member 'nope'; it has v4, v6"),
        ("grid[3]", "int[3][2] has no member '[3]'; it has 3 elements"),
        ("grid[-1]", "int[3][2] has no member '[-1]'; it has 3 elements"),
        (f"grid[{'9' * 5000}]", "int[3][2] has no member '[999"),
        ("grid.x", "int[3][2] has no member 'x'"),
        ("u8.x", "unsigned char has no member 'x'; it has none"),
        ("", "struct sample has no member ''"),
    ],
)
def test_the_error_for_a_wrong_path_lists_the_members(types: Btf, path: str, told: str) -> None:
    with pytest.raises(SettingError) as caught:
        types.struct("sample").member(path)
    assert str(caught.value).startswith(told)


def test_types_without_a_layout_are_refused(types: Btf) -> None:
    sample = types.struct("sample")
    with pytest.raises(SettingError, match=r"grid of struct sample is int\[3\]\[2\], not a single"):
        layout(sample, "grid")
    with pytest.raises(SettingError, match="s16 of struct sample is out of the struct's order"):
        layout(sample, "u16", "s16")


def test_a_struct_with_unsupported_members_is_readable_without_them(types: Btf) -> None:
    odd = types.struct("odd")
    assert odd.member("plain") == (0, odd.members["plain"][1])
    assert odd.member("tail")[1].name == "char[0]"
    assert odd.encode({"plain": 7, "tail": b""}) == (7).to_bytes(4, sys.byteorder) + bytes(28)
    for name, told in {
        "three": "struct odd's bitfield three cannot be read or set: use whole integers",
        "five": "struct odd's bitfield five cannot be read or set: use whole integers",
        "wide": "__int128 cannot be read or set: use whole integers of 1 to 8 bytes",
    }.items():
        with pytest.raises(SettingError, match=told):
            odd.member(name)
        with pytest.raises(SettingError, match=told):
            odd.encode({name: 0})
    assert not {"three", "five", "wide"} & set(odd.decode(bytes(odd.size)))


def test_the_error_for_a_missing_struct_says_how_to_keep_it(types: Btf) -> None:
    with pytest.raises(SettingError) as caught:
        types.struct("dropped")
    told = str(caught.value)
    assert told.startswith("the object has no struct 'dropped'; it has exec_record, ")
    line = told.partition("`")[2].partition("`")[0]
    kept = Btf.of_object(compiled(f"struct dropped {{ int kept; }};\n{line}\n"))
    assert list(kept.struct("dropped").members) == ["kept"]


def test_a_typedef_names_its_struct(types: Btf) -> None:
    assert list(types.struct("named_by_typedef").members) == ["value"]
    with pytest.raises(SettingError):
        types.struct("counter")


def test_a_missing_section_has_no_variables(types: Btf) -> None:
    assert types.variables(".data.nope") == {}


# ---- Values, against ctypes ----

NUMBERS = {
    "s8": (-(2**7), 2**7 - 1),
    "u8": (0, 2**8 - 1),
    "s16": (-(2**15), 2**15 - 1),
    "u16": (0, 2**16 - 1),
    "s32": (-(2**31), 2**31 - 1),
    "u32": (0, 2**32 - 1),
    "s64": (-(2**63), 2**63 - 1),
    "u64": (0, 2**64 - 1),
    "color": (0, 2**32 - 1),
    "pointer": (0, 2**64 - 1),
    "tagged": (0, 2**64 - 1),
    "port": (0, 2**16 - 1),
    "low": (0, 2**8 - 1),
    "high": (0, 2**8 - 1),
}
s32 = st.integers(-(2**31), 2**31 - 1)
samples = st.fixed_dictionaries(
    {name: st.integers(*limits) for name, limits in NUMBERS.items()}
    | {
        "yes": st.booleans(),
        "text": st.binary(min_size=5, max_size=5),
        "bytes": st.binary(min_size=6, max_size=6),
        "steps": st.lists(st.integers(-128, 127), min_size=2, max_size=2),
        "grid": st.lists(st.lists(s32, min_size=2, max_size=2), min_size=3, max_size=3),
        "words": st.lists(st.binary(min_size=4, max_size=4), min_size=2, max_size=2),
        "flags": st.lists(st.booleans(), min_size=3, max_size=3),
        "real": st.floats(allow_nan=False),
        "small": st.floats(width=32, allow_nan=False),
        "point": st.lists(st.fixed_dictionaries({"x": s32, "y": s32}), min_size=2, max_size=2),
    }
)


def in_c(value: dict[str, Any]) -> bytes:
    """The value as ctypes lays it out."""
    sample = Sample()
    for name, item in value.items():
        if name in ("bytes", "steps", "grid", "words", "flags", "point"):
            array = getattr(sample, name)
            for place, element in enumerate(item):
                if name == "grid":
                    array[place][:] = element
                elif name == "words":
                    ctypes.memmove(ctypes.addressof(array) + 4 * place, element, 4)
                elif name == "point":
                    array[place].x, array[place].y = element["x"], element["y"]
                else:
                    array[place] = element
        elif name == "text":
            ctypes.memmove(ctypes.addressof(sample) + Sample.text.offset, item, 5)
        else:
            setattr(sample, name, item)
    return bytes(sample)


@given(samples)
def test_values_are_laid_out_as_in_c(value: dict[str, Any]) -> None:
    found = Btf.of_object(sample_object(True)).struct("sample")
    assert found.size == ctypes.sizeof(Sample)
    assert found.encode(value) == in_c(value)
    decoded = found.decode(in_c(value))
    assert decoded.pop("address") == {"v4": 0, "v6": bytes(16)}
    assert decoded == value
    assert [type(decoded[name]) for name in value] == [type(item) for item in value.values()]


def test_values_of_unions_and_bytes_like_texts(types: Btf) -> None:
    sample = types.struct("sample")
    in_c = Sample()
    in_c.address.v4, in_c.text, in_c.point[0].y = 0x7F000001, b"abc", -1
    encoded = sample.encode({"address": {"v4": 0x7F000001}, "text": "abc", "point": [{"y": -1}]})
    assert encoded == bytes(in_c)
    assert sample.member("text")[1].encode("\udcff\xe9") == b"\xff\xc3\xa9\0\0"
    assert sample.member("text")[1].encode(b"12345") == b"12345"
    assert sample.member("text")[1].encode([-128, 127]) == b"\x80\x7f\0\0\0"
    assert sample.member("bytes")[1].encode(bytearray(b"\xff")) == b"\xff" + bytes(5)
    assert sample.member("grid")[1].encode(([1], range(2))) == struct.pack("6i", 1, 0, 0, 1, 0, 0)
    assert sample.member("yes")[1].encode(1) == b"\1"
    assert sample.member("s8")[1].encode(True) == b"\1"
    assert sample.encode({}) == bytes(Sample())


# ---- Values that do not fit ----


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("u8", 256, "x: unsigned char takes 0 to 255, not 256"),
        ("u8", -1, "x: unsigned char takes 0 to 255, not -1"),
        ("s8", 128, "x: signed char takes -128 to 127, not 128"),
        ("s64", 2**63, f"x: long long takes {-(2**63)} to {2**63 - 1}, not {2**63}"),
        ("s64", -(2**63) - 1, f"x: long long takes {-(2**63)} to"),
        ("u32", 1.0, f"x: unsigned int takes 0 to {2**32 - 1}, not 1.0"),
        ("u32", "1", f"x: unsigned int takes 0 to {2**32 - 1}, not '1'"),
        ("u32", None, f"x: unsigned int takes 0 to {2**32 - 1}, not None"),
        ("yes", 2, "x: _Bool takes 0 to 1, not 2"),
        ("yes", "no", "x: _Bool takes 0 to 1, not 'no'"),
        ("color", -1, f"x: enum color takes 0 to {2**32 - 1}, not -1"),
        ("small", 1e300, "x: float cannot hold 1e+300"),
        ("real", 10**400, "x: double cannot hold 1000"),
        ("real", "1", "x: double cannot hold '1'"),
        ("text", b"123456", "x: char[5] has no room for 6 elements"),
        ("text", "\u20ac\u20ac", "x: char[5] has no room for 6 elements"),
        ("text", 5, "x: char[5] takes text, bytes or a sequence, not 5"),
        ("text", [128], "x[0]: char takes -128 to 127, not 128"),
        ("grid", b"123", "x: int[3][2] takes a sequence, not b'123'"),
        ("grid", "12", "x: int[3][2] takes a sequence, not '12'"),
        ("grid", {1: 2}, "x: int[3][2] takes a sequence, not {1: 2}"),
        ("grid", [[]] * 4, "x: int[3][2] has no room for 4 elements"),
        ("grid", [[], [1, 2, 3]], "x[1]: int[2] has no room for 3 elements"),
        ("grid", [[], [0, 2**31]], f"x[1][1]: int takes {-(2**31)} to {2**31 - 1}, not {2**31}"),
        ("address", 1, "x: union address takes a mapping, not 1"),
        ("address", {"v5": 1}, "x: union address has no member 'v5'; it has v4, v6"),
        ("address", {4: 1}, "x: union address has no member 4; it has v4, v6"),
        ("address", {"v4": -1}, f"x.v4: unsigned int takes 0 to {2**32 - 1}, not -1"),
        ("u32", "long" * 1000, f"x: unsigned int takes 0 to {2**32 - 1}, not '{'long' * 19}lon"),
    ],
)
def test_values_that_do_not_fit_are_refused(types: Btf, path: str, value: Any, told: str) -> None:
    with pytest.raises(SettingError) as caught:
        types.struct("sample").member(path)[1].encode(value, "x")
    assert str(caught.value).startswith(told)
    assert len(str(caught.value)) < 300


def test_a_number_of_thousands_of_digits_is_refused(types: Btf) -> None:
    with pytest.raises(SettingError, match="x: unsigned int takes 0 to 4294967295, not"):
        types.struct("sample").member("u32")[1].encode(10**5000, "x")


@pytest.mark.parametrize("size", [0, 1, Sample.point.offset, ctypes.sizeof(Sample) - 1])
def test_too_few_bytes_are_refused(types: Btf, size: int) -> None:
    with pytest.raises(RecordError, match=f"struct sample has .* bytes, but only {size} are there"):
        types.struct("sample").decode(bytes(size))


# ---- BTF that clang 14 does not make, and damaged BTF ----

INT, ARRAY, STRUCT, UNION, ENUM, VAR, DATASEC, ENUM64 = 1, 3, 4, 5, 6, 14, 15, 19
TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG = 8, 9, 10, 11, 18
NAMES = ["", "a", "b", "int", "s"]


def word(kind: int, count: int = 0, flag: int = 0) -> int:
    return flag << 31 | kind << 24 | count


def bare_btf(*types: tuple[int, ...]) -> bytes:
    """BTF of these types; their names are offsets into NAMES."""
    strings = b"".join(name.encode() + b"\0" for name in NAMES)
    places = [strings.find(b"\0" + name.encode() + b"\0") + 1 for name in NAMES]
    words = b""
    for name, *rest in types:
        words += struct.pack(f"={1 + len(rest)}I", places[name], *rest)
    sizes = (24, 0, len(words), len(words), len(strings))
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, *sizes) + words + strings


INT32: tuple[int, ...] = (3, word(INT), 4, 1 << 24 | 32)


def a_struct(*members: tuple[int, int], size: int = 4, kind: int = STRUCT) -> tuple[int, ...]:
    """The struct or union `s`, with the type and bit offset of each member."""
    flat = [item for place, member in enumerate(members) for item in (a_name(place), *member)]
    return (4, word(kind, len(members)), size, *flat)


def a_name(place: int) -> int:
    return (1, 3)[place]  # the offsets of "a" and "b" in the strings


@pytest.mark.parametrize("flag", [0, 1])
def test_enums_have_the_sign_and_size_that_bpftool_sees(flag: int) -> None:
    raw = bare_btf(
        (1, word(ENUM64, 1, flag), 8, 0, 1, 2),
        (2, word(ENUM, 1, flag), 1, 0, 1),
        (4, word(STRUCT, 2), 16, 1, 1, 0, 3, 2, 64),
    )
    wide, narrow, _ = bpftool_dump(raw)
    assert (wide["kind"], wide["size"], narrow["size"]) == ("ENUM64", 8, 1)
    assert wide["encoding"] == narrow["encoding"] == ("SIGNED" if flag else "UNSIGNED")
    value = {"a": -2 if flag else 2**64 - 2, "b": -3 if flag else 253}
    in_c = struct.pack("=QB7x", 2**64 - 2, 253)
    found = Btf(raw).struct("s")
    assert (found.encode(value), found.decode(in_c)) == (in_c, value)


def test_bitfields_of_older_compilers_are_refused() -> None:
    raw = bare_btf((3, word(INT), 4, 1 << 24 | 3), INT32, a_struct((1, 0), (2, 3), size=8))
    assert bpftool_dump(raw)[0]["nr_bits"] == 3
    for path in ("a", "b"):
        with pytest.raises(SettingError, match="cannot be read or set"):
            Btf(raw).struct("s").member(path)


@pytest.mark.parametrize("kind", [TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG])
def test_type_modifiers_are_skipped(kind: int) -> None:
    found = Btf(bare_btf(INT32, (1, word(kind), 1), a_struct((2, 0)))).struct("s")
    assert found.member("a")[1].name == "int"


def test_many_types_can_be_looked_up() -> None:
    members = [item for at in range(200) for item in (at + 201, 4 * at, 4)]
    variables = ((1, word(VAR), n, 0) for n in range(1, 201))
    types = (*([INT32] * 200), *variables, (2, word(DATASEC, 200), 800, *members))
    assert Btf(bare_btf(*types)).variables("b")["a"][0] == 796


def test_members_at_large_offsets() -> None:
    raw = bare_btf(
        INT32, (0, word(ARRAY), 0, 1, 1, 2**20), a_struct((2, 0), (1, 2**25), size=2**23)
    )
    assert bpftool_dump(raw)[2]["members"][1] == {"name": "b", "type_id": 1, "bits_offset": 2**25}
    assert Btf(raw).struct("s").member("b")[0] == 2**22


def doubled(levels: int) -> list[tuple[int, ...]]:
    """Nested unions, each with the next one twice: few bytes that describe very many members."""
    return [*(a_struct((n, 0), (n, 0), kind=UNION) for n in range(2, levels)), INT32]


@pytest.mark.parametrize(
    ("types", "told"),
    [
        ([a_struct((1, 0))], "nested without end"),
        ([a_struct((2, 0)), (0, word(CONST), 1)], "nested without end"),
        ([a_struct((2, 0)), (1, word(TYPEDEF), 2)], "nested without end"),
        ([a_struct((2, 0)), (0, word(ARRAY), 0, 2, 2, 1)], "nested without end"),
        (
            [a_struct((2, 0)), *((0, word(CONST), n) for n in range(3, 5000)), INT32],
            "nested without end",
        ),
        ([INT32, (0, word(ARRAY), 0, 1, 1, 2**32 - 1), a_struct((2, 0))], "too big"),
        ([INT32, a_struct((1, 0), size=2**32 - 1)], "too big"),
        ([INT32, a_struct((1, 8))], "no room for 'a'"),
        ([INT32, (4, word(STRUCT, 2), 8, 1, 1, 0, 1, 1, 32)], "two members 'a'"),
        ([INT32, (4, word(STRUCT, 1), 8, 2**31, 1, 0)], "a name is not among its strings"),
        ([a_struct((9, 0))], "there is no type 9"),
        (doubled(60), "no room for"),
        ([INT32, (0, word(20), 0)], "the BTF is damaged: type 2 is of an unknown kind"),
        ([INT32, (0, word(STRUCT, 2**16 - 1), 4)], "the BTF is truncated in type 2"),
    ],
)
def test_damaged_types_are_refused(types: list[tuple[int, ...]], told: str) -> None:
    with pytest.raises(ObjectError, match=told):
        Btf(bare_btf(*types)).struct("s")


def test_arrays_of_empty_elements_take_no_time() -> None:
    types = [(4, word(STRUCT), 0), (0, word(ARRAY), 0, 1, 1, 2**32 - 1), (1, word(TYPEDEF), 2)]
    raw = bare_btf(*types, (1, word(VAR), 2, 0), (2, word(DATASEC, 1), 0, 4, 0, 0))
    _, found = Btf(raw).variables("b")["a"]
    assert found.decode(b"") == []


@pytest.mark.parametrize("offset", [5, 2**32 - 1])
def test_a_variable_outside_of_its_section_is_refused(offset: int) -> None:
    variable, place = (1, word(VAR), 1, 0), (2, word(DATASEC, 1), 8)
    inside = Btf(bare_btf(INT32, variable, (*place, 2, 4, 4))).variables("b")
    assert inside["a"][0] == 4
    with pytest.raises(ObjectError, match="a variable is outside of b"):
        Btf(bare_btf(INT32, variable, (*place, 2, offset, 4))).variables("b")


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "the BTF is truncated: it has 0 bytes"),
        (b"\0" * 24, "not BTF"),
        (bare_btf(INT32)[:-1], "the BTF is truncated"),
        (bare_btf(INT32)[:12] + struct.pack("=I", 15) + bare_btf(INT32)[16:], "the BTF is trunc"),
        (bare_btf(INT32)[1::-1] + bare_btf(INT32)[2:], "the BTF is not for .*-endian machines"),
    ],
)
def test_invalid_btf_is_refused(raw: bytes, told: str) -> None:
    with pytest.raises(ObjectError, match=told):
        Btf(raw)


def read_everything(make: Any, contents: bytes) -> None:
    """Reads everything; arbitrary bytes may only raise errors of this package."""
    try:
        types = make(contents)
        names = [name for section in types.sections() for name in types.variables(section)]
    except ObjectError:
        return
    for name in (*names, "sample", "odd", "filters", "exit_record", "address", "color"):
        try:
            found = types.struct(name)
            if found.size < 2**16:
                found.encode(found.decode(bytes(found.size)))
        except (ObjectError, SettingError):
            pass


damage = st.lists(
    st.tuples(st.integers(0, 2**14), st.binary(min_size=1, max_size=4)), min_size=1, max_size=8
)


@given(damage, st.booleans())
def test_damaged_btf_raises_only_our_errors(changes: list[tuple[int, bytes]], cut: bool) -> None:
    raw = bytearray(section(sample_object(True), ".BTF"))
    for at, new in changes:
        place = at % len(raw)
        raw[place : place + len(new)] = new
    read_everything(Btf, bytes(raw[: changes[0][0] % len(raw)] if cut else raw))


@given(damage, st.booleans(), st.booleans())
def test_damaged_objects_raise_only_our_errors(
    changes: list[tuple[int, bytes]], linked: bool, cut: bool
) -> None:
    elf = bytearray(sample_object(linked))
    table = int.from_bytes(elf[40:48], sys.byteorder)
    for at, new in changes:  # in the header or the section table, where they matter
        place = at % 64 if at % 2 else table + at % (len(elf) - table)
        elf[place : place + len(new)] = new
    read_everything(Btf.of_object, bytes(elf[: changes[0][0] % len(elf)] if cut else elf))


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_our_errors(tail: bytes) -> None:
    read_everything(Btf, tail)
    read_everything(Btf, bare_btf(INT32)[:24] + tail)
    read_everything(Btf.of_object, b"\x7fELF" + tail)
