# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Tools that are not linked in, here forks.bpf.c, opened from the bytes of its object file."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from errno import EMSGSIZE
from pathlib import Path
from typing import Any

import pytest

from pybootstrap import LoadError, ObjectError, SettingError, StateError, UnknownNameError
from pybootstrap.engine import tracer as engine
from pybootstrap.engine._native import ffi, lib
from pybootstrap.engine.build import BPF_FLAGS, WARNINGS, find_bpftool, find_clang
from pybootstrap.engine.decoder import LostEvent
from pybootstrap.engine.skeleton import Skeleton
from tests.live.source import ROOT
from tests.support import bpftool, held_by, wait_until_gone


def compiled(directory: Path, source: str, *options: str) -> bytes:
    """Compiles a source of this directory as a tool's build does."""
    import setup  # it knows which libbpf to use

    output = directory / "unlinked.o"
    includes = [f"-I{ROOT / place}" for place in ("vmlinux", "bpf")]
    includes += setup.find_libbpf().include
    command = [find_clang(), *BPF_FLAGS, *WARNINGS, "-Werror", *includes, *options]
    subprocess.run([*command, "-c", source, "-o", output], check=True, cwd=ROOT)
    linked = directory / "linked.o"
    subprocess.run([find_bpftool(), "gen", "object", linked, output], check=True)
    return linked.read_bytes()


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compiled(tmp_path_factory.mktemp("forks"), "tests/live/forks.bpf.c")


@pytest.fixture
def skeleton(forks: bytes) -> Iterator[Skeleton]:
    with Skeleton(forks) as skeleton:
        skeleton.maps.rb.max_entries = 65536
        yield skeleton


def fork() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


# ---- Variables, maps, programs ----


def test_names_come_from_the_object(skeleton: Skeleton) -> None:
    assert dir(skeleton.progs) == ["on_fork", "on_packet"]
    assert dir(skeleton.maps) == ["counts", "pairs", "rb"]
    assert {"only_parent", "pair", "flag", "wakeup_bytes"} <= set(dir(skeleton.rodata))
    for names, what in ((skeleton.progs, "program"), (skeleton.maps, "map")):
        with pytest.raises(UnknownNameError, match=f"no {what} 'nothing'; it has "):
            names.nothing  # noqa: B018
        assert not hasattr(names, "nothing")
    with pytest.raises(UnknownNameError, match=r"it has .*only_parent"):
        skeleton.rodata.only_child = 1
    assert [dir(copy.copy(part)) for part in (skeleton.maps, skeleton.bss)] == [
        dir(skeleton.maps),
        dir(skeleton.bss),
    ]


def test_variables_have_their_c_types(skeleton: Skeleton) -> None:
    assert (skeleton.rodata.flag, skeleton.data.level, skeleton.bss.seen) == (True, -5, 0)
    skeleton.rodata.pair = {"left": -3, "right": b"\1\2\3"}
    assert skeleton.rodata.pair == {"left": -3, "right": b"\1\2\3"}
    for value in (-1, 2**32, "7", None):
        with pytest.raises(SettingError, match="only_parent"):
            skeleton.rodata.only_parent = value
    with pytest.raises(SettingError, match="middle"):
        skeleton.rodata.pair = {"middle": 1}


def test_constants_are_set_before_load_and_others_at_any_time(skeleton: Skeleton) -> None:
    skeleton.rodata.only_parent = 1
    skeleton.data.level = 3
    skeleton.load()
    with pytest.raises(StateError, match="only_parent is constant after load"):
        skeleton.rodata.only_parent = 2
    assert skeleton.rodata.only_parent == 1
    assert skeleton.data.level == 3
    skeleton.data.level = -(2**31)
    assert skeleton.data.level == -(2**31)


def test_a_map_is_a_mapping(skeleton: Skeleton) -> None:
    with pytest.raises(StateError, match="before load"):
        skeleton.maps.pairs[1]
    skeleton.load()
    pairs = skeleton.maps.pairs
    assert (list(pairs), 1 in pairs) == ([], False)
    with pytest.raises(KeyError):
        pairs[1]
    with pytest.raises(KeyError):
        del pairs[1]
    pairs[1] = {"left": 7, "right": b"abc"}
    pairs[2] = {"left": -7}
    assert dict(pairs.items()) == {
        1: {"left": 7, "right": b"abc"},
        2: {"left": -7, "right": bytes(3)},
    }
    del pairs[1]
    assert list(pairs) == [2]
    with pytest.raises(SettingError):
        pairs["two"]
    with pytest.raises(OSError, match="pairs"):
        for key in range(9):
            pairs[key] = {}
    with pytest.raises(StateError, match="before load"):
        pairs.max_entries = 9


def test_a_per_cpu_map_gives_lists(skeleton: Skeleton) -> None:
    skeleton.load()
    counts = skeleton.maps.counts
    cpus = len(counts[0])
    assert cpus >= (os.cpu_count() or 1)
    counts[0] = range(cpus)
    assert counts[0] == list(range(cpus))
    assert counts.total(0) == sum(range(cpus))
    for wrong in ([1] * (cpus + 1), 1) if cpus > 1 else ([1, 1],):
        with pytest.raises(SettingError, match="one for each possible CPU"):
            counts[0] = wrong


def test_programs_attach_where_their_section_says(skeleton: Skeleton) -> None:
    skeleton.rodata.only_parent = os.getpid()
    skeleton.progs.on_packet.autoload = False
    with pytest.raises(StateError, match="before attach"):
        skeleton.attach()
    skeleton.load()
    skeleton.attach()
    for _ in range(10):
        fork()
    assert skeleton.bss.seen == 10
    assert skeleton.maps.counts.total(1) == 10
    assert skeleton.progs.on_fork.skipped == 0
    assert skeleton.progs.on_packet.skipped is None
    skeleton.detach()
    fork()
    assert skeleton.bss.seen == 10


def test_a_program_attaches_to_an_interface(skeleton: Skeleton) -> None:
    program = skeleton.progs.on_packet
    with pytest.raises(StateError, match="after load"):
        program.attach_xdp("lo")
    skeleton.load()
    with pytest.raises(SettingError, match="no network interface 'nothing'"):
        program.attach_xdp("nothing")
    program.attach_xdp("lo")
    with pytest.raises(StateError, match="already attached"):
        program.attach_xdp("lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(20):
                sender.sendto(b"x", receiver.getsockname())
        for _ in range(20):
            receiver.recv(1)
    assert skeleton.maps.counts.total(0) >= 20
    skeleton.close()
    assert "on_packet" not in {program.get("name") for program in bpftool("prog", "list")}


def test_only_a_cgroup_can_be_attached_to(skeleton: Skeleton, tmp_path: Path) -> None:
    skeleton.load()
    with pytest.raises(SettingError, match="cannot open the cgroup"):
        skeleton.progs.on_packet.attach_cgroup(tmp_path / "nothing")
    with pytest.raises(LoadError, match="cannot attach on_packet"):
        skeleton.progs.on_packet.attach_cgroup(tmp_path)


# ---- Steps and ends ----


def test_steps_out_of_order_are_errors(skeleton: Skeleton) -> None:
    skeleton.load()
    with pytest.raises(StateError, match="loaded before"):
        skeleton.load()
    with pytest.raises(StateError, match="before load"):
        skeleton.progs.on_packet.autoload = False
    skeleton.close()
    skeleton.close()
    uses: list[Callable[[], object]] = [
        lambda: skeleton.bss.seen,
        lambda: skeleton.maps.pairs[1],
        lambda: list(skeleton.maps.pairs),
        lambda: skeleton.maps.rb.max_entries,
        lambda: skeleton.progs.on_fork.autoload,
        skeleton.attach,
        skeleton.detach,
        skeleton.load,
    ]
    for use in uses:
        with pytest.raises(StateError):
            use()


def test_nothing_is_left_in_the_kernel(forks: bytes) -> None:
    skeleton = Skeleton(forks)
    skeleton.maps.rb.max_entries = 65536
    skeleton.load()
    skeleton.attach()
    held = held_by()
    assert {kind for kind, _ in held} == {"prog", "map", "link"}
    del skeleton  # nobody closes it
    wait_until_gone(held)


# ---- Invalid objects ----


BAD: dict[str, Callable[[bytes], bytes]] = {
    "no object": lambda _: b"\x7fELF" + bytes(9),
    "no ELF": lambda _: b"#!/bin/sh\n",
    "nothing": lambda _: b"",
    "half": lambda elf: elf[: len(elf) // 2],
    "another machine": lambda _: Path("/proc/self/exe").read_bytes(),
    "another byte order": lambda elf: elf[:5] + b"\2" + elf[6:],
    "without BTF": lambda elf: elf.replace(b"\0.BTF\0", b"\0.XTF\0"),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_objects_are_refused(forks: bytes, name: str) -> None:
    with pytest.raises(ObjectError) as raised:
        Skeleton(BAD[name](forks))
    assert "\n" not in str(raised.value)
    assert not held_by()


HEAD = """
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "Dual BSD/GPL";
const volatile int limit = 0;
"""


def test_a_program_refused_by_the_kernel_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "bad.bpf.c"
    bad = 'SEC("raw_tp/sys_enter") int bad(u64 *ctx) { return limit + *(int *)ctx[0]; }\n'
    source.write_text(HEAD + bad)
    with Skeleton(compiled(tmp_path, str(source))) as skeleton:
        skeleton.rodata.limit = 1
        with pytest.raises(LoadError) as raised:
            skeleton.load()
        assert "invalid mem access" in raised.value.log
        assert "\n" not in str(raised.value)
        with pytest.raises(StateError, match=r"load\(\) comes before"):
            skeleton.attach()
        with pytest.raises(StateError, match="limit is constant"):
            skeleton.rodata.limit = 2


def test_a_map_rb_of_another_type_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "ring.bpf.c"
    ring = """
        struct {
            __uint(type, BPF_MAP_TYPE_RINGBUF);
            __uint(max_entries, 4096);
        } rb SEC(".maps");
        SEC("raw_tp/sys_enter") int use(__attribute__((unused)) void *ctx)
        {
            return limit + bpf_ringbuf_query(&rb, 0);
        }
    """
    source.write_text(HEAD + ring)
    elf = compiled(tmp_path, str(source))
    lacks = pytest.raises(LoadError, match=r"lacks the variables of ring\.bpf\.h")
    with Skeleton(elf) as skeleton, lacks:
        skeleton.load()


# ---- Sizes, and forks ----


def test_buffers_of_other_sizes_are_refused(skeleton: Skeleton) -> None:
    skeleton.load()
    shim, buffer = skeleton._shim, ffi.new("char[]", 64)
    for key_size, value_size in ((3, 6), (5, 6), (4, 5), (4, 7), (0, 0)):
        sizes = (b"1234567", key_size, buffer, value_size)
        assert lib.shim_map_lookup(shim, b"pairs", *sizes) == -EMSGSIZE
    one_cpu = lib.shim_map_lookup(shim, b"counts", bytes(4), 4, buffer, 8)
    assert one_cpu == (-EMSGSIZE if lib.shim_possible_cpus() > 1 else 0)
    assert lib.shim_map_delete(shim, b"pairs", b"123", 3) == -EMSGSIZE
    assert lib.shim_map_next(shim, b"pairs", ffi.NULL, buffer, 64) == -EMSGSIZE


def test_maps_without_entries_have_no_items(skeleton: Skeleton) -> None:
    skeleton.load()
    for use in (lambda: list(skeleton.maps.rb), lambda: skeleton.maps.rb[b""]):
        with pytest.raises(OSError, match="map rb"):
            use()


@pytest.mark.parametrize("latency", [-1, 2**63, 2**64])
def test_an_invalid_latency_is_refused(skeleton: Skeleton, latency: int) -> None:
    with pytest.raises(SettingError, match="max_latency_ns"):
        skeleton.load(latency)


def test_a_child_does_not_keep_what_its_parent_closes(forks: bytes) -> None:
    skeleton = Skeleton(forks)
    skeleton.maps.rb.max_entries = 65536
    skeleton.load()
    skeleton.attach()
    held = held_by()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tell)
        os.read(told, 1)
        try:
            skeleton.bss.seen  # noqa: B018
        except StateError:
            os._exit(7)
        os._exit(1)
    skeleton.close()
    wait_until_gone(held)
    os.close(tell)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    os.close(told)


# ---- A Tracer of another tool ----


def test_a_tracer_of_another_tool(forks: bytes) -> None:
    class Forks(engine.Tracer):
        OBJECT = forks

        def on_open(self, skeleton: Skeleton) -> None:
            skeleton.rodata.only_parent = os.getpid()
            skeleton.progs.on_packet.autoload = False

    with Forks(ring_size=65536) as tracer:
        before = time.time_ns()
        children = [fork() for _ in range(50)]
        tracer.stop()
        events = list(tracer)
        assert [(event.parent, event.child) for event in events] == [
            (os.getpid(), child) for child in children
        ]
        times = [event.time_ns for event in events]
        assert before - 10**6 <= times[0] <= times[-1] <= time.time_ns()
        assert tracer.stats == (50, 50, 0, 0)
        assert tracer.skeleton.bss.seen == 50
    with pytest.raises(StateError):
        tracer.skeleton  # noqa: B018
    with Forks(ring_size=65536) as tracer:
        for _ in range(3000):
            fork()
        tracer.stop()
        events = list(tracer)
        stats = tracer.stats
    lost = sum(event.count for event in events if isinstance(event, LostEvent))
    assert lost > 0
    assert stats.produced == 3000 == stats.received + lost


def test_nothing_is_left_when_count_raises(forks: bytes) -> None:
    class Careless(engine.Tracer):
        OBJECT = forks

        def count(self, *_: Any) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Careless(ring_size=65536):
        held = held_by()
    assert held
    wait_until_gone(held)


def test_loading_is_tried_at_most_twice(forks: bytes) -> None:
    class Stubborn(engine.Tracer):
        OBJECT = forks
        opened = 0

        def on_open(self, skeleton: Skeleton) -> None:
            self.opened += 1
            skeleton.maps.counts.set_autocreate(False)  # the programs need it

        def on_refusal(self) -> bool:
            return True

    tracer = Stubborn(ring_size=65536)
    with pytest.raises(LoadError):
        tracer.start()
    assert tracer.opened == 2


def test_a_renderer_without_a_line_for_an_event_is_refused(forks: bytes) -> None:
    class Forks(engine.Tracer):
        OBJECT = forks

    with Forks(ring_size=65536) as tracer:  # noqa: SIM117
        with pytest.raises(SettingError, match="the renderer has no line for ForkRecord"):
            next(tracer._batches({}))


REFUSED = {
    "tp_btf/sched_process_frk": ("return 0;", "failed to find kernel BTF type ID of"),
    "tp_btf/sched_process_fork": (
        "return *(volatile int *)(u64)bpf_get_prandom_u32();",
        "the verifier refuses them.*invalid mem access.*at `.*return",
    ),
}


@pytest.mark.parametrize("section", REFUSED)
def test_what_the_kernel_refuses_is_named(section: str, tmp_path: Path) -> None:
    body, reason = REFUSED[section]
    source = tmp_path / "refused.bpf.c"
    source.write_text(f"""
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "GPL";
SEC("{section}") int on_fork(u64 *ctx) {{ {body} }}
""")
    options = ["-Wno-unused-parameter", "-Wno-int-to-pointer-cast"]
    with Skeleton(compiled(tmp_path, str(source), *options)) as skeleton:
        with pytest.raises(LoadError, match=reason) as caught:
            skeleton.load()
        assert "\n" not in str(caught.value)
