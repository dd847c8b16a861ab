# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Machines that are not like this one, as far as that can be brought about here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TRACE = """
import ctypes, json, os, sys, time
from pybootstrap import ExitEvent, Tracer

NEWTIME = 0x80
if sys.argv[1:]:  # how far ahead CLOCK_BOOTTIME of children is
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(NEWTIME) == 0, os.strerror(ctypes.get_errno())
    with open("/proc/self/timens_offsets", "w") as offsets:
        offsets.write(f"boottime {sys.argv[1]} 0")
with Tracer() as tracer:
    before = time.time_ns()
    pid = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitpid(pid, 0)
    after = time.time_ns()
    ended = next(e for e in tracer if isinstance(e, ExitEvent) and e.pid == pid)
print(json.dumps([before, after, ended.asdict()]))
"""
# Refuses programs with a callback, as a kernel without JIT does.
NO_JIT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/bpf.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/syscall.h>

long syscall(long number, ...)
{
	static long (*real)(long, ...);
	long a[6];
	va_list ap;

	va_start(ap, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (!real)
		real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	if (number == __NR_bpf && a[0] == BPF_PROG_LOAD) {
		const union bpf_attr *attr = (const void *)a[1];
		const struct bpf_insn *insns = (const void *)(unsigned long)attr->insns;

		for (unsigned int i = 0; i < attr->insn_cnt; i++) {
			bool wide = insns[i].code == (BPF_LD | BPF_IMM | BPF_DW);

			if (wide && insns[i].src_reg == BPF_PSEUDO_FUNC) {
				errno = EINVAL;
				return -1;
			}
		}
	}
	return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""


def traced(*arguments: str, **environ: str) -> tuple[int, int, dict[str, Any]]:
    """Times before and after a process, and its EXIT, by a script in surroundings of its own."""
    done = subprocess.run(
        [sys.executable, "-c", TRACE, *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        check=True,
    )
    before, after, event = json.loads(done.stdout)
    return before, after, event


def preload(directory: Path, source: str) -> str:
    """A library of this C source."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    (directory / "preload.c").write_text(source)
    library = directory / "preload.so"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        str(directory / "preload.c"),
        "-o",
        str(library),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return str(library)


def test_a_kernel_without_jit(tmp_path: Path) -> None:
    _, _, ended = traced(LD_PRELOAD=preload(tmp_path, NO_JIT))
    assert (ended["filename"], ended["exit_code"]) == ("/bin/true", 0)


@pytest.mark.parametrize("ahead_s", [0, 1_000_000, -1])
def test_children_get_another_time_namespace(ahead_s: int) -> None:
    before, after, ended = traced(str(ahead_s))
    slack_ns = 10**6  # the offset of our own is measured then
    assert before - slack_ns < ended["time_ns"] < after + slack_ns
