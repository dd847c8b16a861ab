# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Machines unlike this one, as far as they can be simulated here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import preload

TRACE = """
import ctypes, json, os, re, signal, sys, time
from pybootstrap import ExitEvent, Tracer

NEWTIME = 0x80
if "AHEAD_S" in os.environ:  # is CLOCK_BOOTTIME of children
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(NEWTIME) == 0, os.strerror(ctypes.get_errno())
    with open("/proc/self/timens_offsets", "w") as offsets:
        offsets.write(f"boottime {os.environ['AHEAD_S']} 0")
def held():
    ids = []
    for number in os.listdir("/proc/self/fdinfo"):
        try:
            with open(f"/proc/self/fdinfo/{number}") as info:
                ids += re.findall(r"^prog_id:\\t(\\d+)", info.read(), re.MULTILINE)
        except OSError:
            pass
    programs = json.loads(os.popen("bpftool -j prog list").read())
    return sorted(p["name"] for p in programs if str(p["id"]) in ids)

if "ALARM_US" in os.environ:
    signal.signal(signal.SIGALRM, lambda *_: None)
    every = int(os.environ["ALARM_US"]) / 1e6
    signal.setitimer(signal.ITIMER_REAL, every, every)
with Tracer() as tracer:
    signal.setitimer(signal.ITIMER_REAL, 0)
    before = time.time_ns()
    pids = {os.posix_spawn("/bin/true", ["true"], os.environ) for _ in range(20)}
    for pid in pids:
        os.waitpid(pid, 0)
    after = time.time_ns()
    names = held() if os.path.exists("/proc/self") else []
    tracer.stop()
    ended = [e.asdict() for e in tracer if isinstance(e, ExitEvent) and e.pid in pids]
    stats = tracer.stats._asdict()
print(json.dumps({
    "before": before, "after": after, "ended": ended, "stats": stats, "programs": names
}))
"""
# Sits between libbpf and the kernel. NO_JIT: refuses programs with a callback, as a kernel without
# JIT does. FULL: the map "claims" has no room, and the kernel claims to be 7.0, which uses it.
BETWEEN = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/bpf.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

long syscall(long number, ...);

#ifdef FULL
int uname(struct utsname *name)
{
	int err = syscall(__NR_uname, name);

	strcpy(name->release, "7.0.0");
	return err;
}
#endif

__attribute__((unused)) static bool has_callback(const union bpf_attr *attr)
{
	const struct bpf_insn *insns = (const void *)(unsigned long)attr->insns;

	const unsigned char load = BPF_LD | BPF_IMM | BPF_DW;

	for (unsigned int i = 0; i < attr->insn_cnt; i++)
		if (insns[i].code == load && insns[i].src_reg == BPF_PSEUDO_FUNC)
			return true;
	return false;
}

long syscall(long number, ...)
{
	static long (*real)(long, ...);
	union bpf_attr *attr;
	long a[6];
	va_list ap;

	va_start(ap, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (!real)
		real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	attr = (void *)a[1];
#ifdef NO_JIT
	if (number == __NR_bpf && a[0] == BPF_PROG_LOAD && has_callback(attr)) {
		errno = EINVAL;
		return -1;
	}
#endif
#ifdef FULL
	if (number == __NR_bpf && a[0] == BPF_MAP_CREATE && !strcmp(attr->map_name, "claims")) {
		attr->map_type = BPF_MAP_TYPE_HASH;
		attr->max_entries = 1;
	}
#endif
	return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""


def traced(*command: str, **environ: str) -> dict[str, Any]:
    """The output of a script that traces 20 processes in an environment of its own."""
    done = subprocess.run(
        [*command, sys.executable, "-c", TRACE],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        check=True,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_a_kernel_without_jit(tmp_path: Path) -> None:
    environ = {"LD_PRELOAD": preload(tmp_path, BETWEEN, "NO_JIT")}
    said = traced(**environ)
    assert said["programs"] == ["handle_exec_old", "handle_exit_old"]
    check = [sys.executable, "-m", "pybootstrap", "--check"]
    checked = subprocess.run(
        check, env={**os.environ, **environ}, capture_output=True, text=True, check=True
    )
    assert checked.stdout.endswith("; without bpf_loop()\n")
    assert [(e["filename"], e["exit_code"]) for e in said["ended"]] == [("/bin/true", 0)] * 20


def test_an_event_whose_claim_fails_is_counted_as_missed(tmp_path: Path) -> None:
    said = traced(LD_PRELOAD=preload(tmp_path, BETWEEN, "FULL"))
    assert said["programs"] == ["exec_again", "exit_again", "handle_exec", "handle_exit"]
    assert len(said["ended"]) < 20
    stats = said["stats"]
    assert (stats["lost"], stats["produced"]) == (0, stats["received"])
    assert stats["missed"] >= 2 * 20 - stats["received"]


def dated_right(said: dict[str, Any]) -> bool:
    slack_ns = 10**6  # for measuring the offset of our own time namespace
    times = [event["time_ns"] for event in said["ended"]]
    first, last = said["before"] - slack_ns, said["after"] + slack_ns
    return len(times) == 20 and all(first < ns < last for ns in times)


@pytest.mark.parametrize("ahead_s", [0, 1_000_000, -1])
def test_children_get_another_time_namespace(ahead_s: int) -> None:
    assert dated_right(traced(AHEAD_S=str(ahead_s)))


@pytest.mark.parametrize("pause_us", [20, 50, 200])
def test_signals_while_it_starts_in_another_time_namespace(pause_us: int) -> None:
    assert dated_right(traced(AHEAD_S="1000000", ALARM_US=str(pause_us)))


def test_a_time_namespace_without_proc() -> None:
    command = 'umount -l /proc && exec "$@"'
    unshare = ["unshare", "--mount", "--time", "--boottime", "1000000", "--fork"]
    assert dated_right(traced(*unshare, "sh", "-c", command, "sh"))
