# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What is read from an object file is what bpftool and the C compiler put there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pybootstrap import ObjectError
from pybootstrap.engine.btf import section

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
    """What clang makes of it; or then `bpftool gen object`."""
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
    """Before hypothesis looks at the clock."""
    for tool in ("clang", "bpftool"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    sample_object(False)
    sample_object(True)


@cache
def sample_object(linked: bool) -> bytes:
    return compiled(SOURCE, linked=linked)


def bpftool_dump(contents: bytes) -> list[dict[str, Any]]:
    """What bpftool reads from an object or from bare BTF, by type id less one."""
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
        (lambda: b"", "not an object file: it does not begin as ELF files do"),
        (lambda: b"#!/bin/sh\n", "not an object file: it does not begin as ELF files do"),
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
def test_what_is_no_object_is_refused(contents: Any, told: str) -> None:
    with pytest.raises(ObjectError) as caught:
        section(contents(), ".BTF")
    assert str(caught.value).startswith(told)


def test_a_section_that_is_not_there_is_named() -> None:
    with pytest.raises(ObjectError, match=r"^the object file has no section \.nope$"):
        section(sample_object(True), ".nope")
