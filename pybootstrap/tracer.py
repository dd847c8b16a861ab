# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""bootstrap's Tracer: its settings, and how it passes them to the BPF programs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from errno import EBADF

from pybootstrap._typing import TYPE_CHECKING, NamedTuple
from pybootstrap.engine import tracer as engine
from pybootstrap.engine._native import lib
from pybootstrap.engine.check import kernel_version
from pybootstrap.engine.errors import SettingError, start_error
from pybootstrap.events import TYPES, ExecEvent, ExitEvent

if TYPE_CHECKING:
    from typing import Any, Callable

    from pybootstrap.engine.skeleton import Names, Skeleton
    from pybootstrap.events import Event

__all__ = ["Stats", "Tracer"]


class Stats(NamedTuple):
    """Counters since the start; `produced == received + lost` once everything was read."""

    produced: int
    """Events that passed all filters, so that the kernel had to send them."""
    received: int
    """Events that were read from the ring buffer."""
    lost: int
    """Events that found the ring buffer full."""
    untracked: int
    """Execs that found the process table full: their exits are reported, with `duration_since`
    "start" and without file name and arguments."""
    truncated: int
    """Events whose file name or arguments were cut, or could not be read or kept."""
    missed: int
    """At most how many events are missing because the kernel skipped a program that was already
    running on that CPU (`recursion_misses` in `bpf_prog_info`; where two programs see each event,
    the smaller number counts), or because the claim of an event failed."""


# ---- Values ----

_FILTERS = TYPES.struct("filters")
_COMM = _FILTERS.member("comm[0]")[1]


def _values(name: str, values: Iterable[Any]) -> list[Any]:
    """The values of a filter. A single str is refused: it would be taken letter by letter."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise SettingError(f"{name} takes a list of values, such as [{values!r}], not {values!r}")
    listed = list(values)
    most = _FILTERS.members["pid"][1].count
    if len(listed) > most:
        raise SettingError(f"{name} takes at most {most} values, not {len(listed)}")
    return listed


def _pids(name: str, low: int, pids: Iterable[int]) -> list[int]:
    return [engine.whole_number(name, pid, low, 2**31 - 1) for pid in _values(name, pids)]


def _user_id(user: int | str) -> int:
    if not isinstance(user, str):
        return engine.whole_number("users", user, 0, 2**32 - 2)
    import pwd  # few programs need it

    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise SettingError(f"there is no user {user!r} on this machine") from None


def _comm(comm: str) -> bytes:
    if not isinstance(comm, str) or "\0" in comm:
        raise SettingError(f"comms must be names of commands, not {comm!r}")
    name = os.fsencode(comm)
    if len(name) >= _COMM.size:
        raise SettingError(
            f"the kernel cuts command names to 15 bytes: use {os.fsdecode(name[:15])!r}, "
            f"not {comm!r}"
        )
    return name


def _open_cgroup(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingError(f"cannot open the cgroup {path!r}: {reason}") from None


def _cgroup(path: str | os.PathLike[str]) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise SettingError(f"cgroups must be paths of directories, not {path!r}") from None


def _filters(**values: list[Any]) -> dict[str, Any]:
    """The members of struct filters: values under a name, and their number under its plural."""
    counts = {f"{name}s": len(listed) for name, listed in values.items()}
    return {**counts, **values}


# ---- Sizes of maps ----


def _count_slots(max_processes: int, args: bool) -> int:
    """How many processes have a slot in the array of the process table; a power of two.

    At most half of max_processes, or an eighth with their text, which takes 448 bytes each.
    """
    return 1 << (max(1, max_processes // (8 if args else 2)).bit_length() - 1)


def _count_claims(kernel: tuple[int, ...], twice: bool) -> int:
    """The size of `claims`, where an entry must outlive the exit of its process.

    Each CPU takes 128 free entries at a time, and before Linux 6.16 the kernel recycled fresh ones
    if too few were left. Since then the tracepoint says which thread is the last, so nothing is
    claimed unless the programs run twice.
    """
    if kernel >= (6, 16) and not twice:
        return 1
    return max(16384, 512 * lib.shim_possible_cpus())


class Tracer(engine.Tracer):
    """Sees every process of the machine start a program and end.

    Args:
        on_event: called with each event by `run()` and `poll()`. Leave it out to iterate.
        min_duration_ms: send only exits of processes that ran at least this long, and no execs;
            the kernel filters. 0: send everything.
        args: carry arguments on exec events, file name and arguments on exit events. Without them
            the kernel has less to copy.
        max_latency_ms: how long an event may wait for others, in ms, so that one wake-up and one
            batch serve all of them. At 50 processes a second 100 ms take a fifth of the CPU time
            that 10 ms take; 0 wakes this program for each event. If this program is busy, an event
            waits longer, until it is read.
        pids: only processes with one of these ids.
        ppids: only processes whose parent has one of these ids.
        users: only processes of these users (real user id); numbers or names.
        comms: only processes with one of these command names, at most 15 bytes each.
        cgroups: only processes in these cgroups or below; paths of directories of cgroup v2.
        failed: only exits with a status other than 0 or by a signal, and no execs.
        ring_size: bytes of the ring buffer; a power of two from 64 KiB to 1 GiB.
        max_processes: how many running processes are remembered for their exit. Each takes about
            100 bytes of kernel memory at once, 150 with `args`, and then its text while it lives.
        verbose: print libbpf's messages to stderr, with those for debugging.

    A process that has the capabilities to trace but is not root should call
    `prctl(PR_SET_DUMPABLE, 0)` when it drops them, as the command does. Otherwise any process of
    the same user can take its descriptors (pidfd_getfd(2)) and read every event.

    Use it in a `with` or `async with` statement, or call `start()` and `close()`. Only one thread
    or task may read at a time. Any other, and signal handlers, may use `stop()`, `close()`, `stats`
    and `fileno()` meanwhile.

    All filters work in the kernel; an unused one costs nothing. A process is reported if it matches
    one value of each filter that is used. A filter takes up to 64 values.

    Raises SettingError (a ValueError) for invalid values.
    """

    EVENTS = (ExecEvent, ExitEvent)

    def __init__(
        self,
        on_event: Callable[[Event], Any] | None = None,
        *,
        min_duration_ms: float = 0,
        args: bool = True,
        pids: Iterable[int] = (),
        ppids: Iterable[int] = (),
        users: Iterable[int | str] = (),
        comms: Iterable[str] = (),
        cgroups: Iterable[str | os.PathLike[str]] = (),
        failed: bool = False,
        max_latency_ms: float = 10,
        ring_size: int = 2 * 1024 * 1024,
        max_processes: int = 32768,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            on_event, max_latency_ms=max_latency_ms, ring_size=ring_size, verbose=verbose
        )
        self._max_processes = engine.whole_number("max_processes", max_processes, 1, 2**24)
        self._args = bool(args)
        self._min_duration_ns = engine.milliseconds("min_duration_ms", min_duration_ms)
        self._filters = _filters(
            pid=_pids("pids", 1, pids),
            ppid=_pids("ppids", 0, ppids),
            uid=[_user_id(user) for user in _values("users", users)],
            comm=[_comm(comm) for comm in _values("comms", comms)],
        )
        self._cgroups = [_cgroup(path) for path in _values("cgroups", cgroups)]
        self._filters.update(failed=bool(failed), cgroups=len(self._cgroups))
        self._old = False  # handle_exec_old and handle_exit_old run

    def start(self) -> Any:
        """Like the engine's; raises SettingError for a path that is not a cgroup, too."""
        descriptors: list[int] = []
        try:
            descriptors.extend(map(_open_cgroup, self._cgroups))
            self._descriptors = descriptors
            return super().start()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    # ---- What the engine calls ----

    def on_open(self, skeleton: Skeleton) -> None:
        """Sets everything; before Linux 5.17, which has no bpf_loop(), uses the old programs."""
        kernel = kernel_version()
        self._old = old = self._old or kernel < (5, 17)
        twice = kernel >= (7, 0) and not old
        slots = _count_slots(self._max_processes, self._args)

        rodata = skeleton.rodata
        rodata.min_duration_ns = self._min_duration_ns
        rodata.capture_args = self._args
        rodata.filters = self._filters
        rodata.preemptible = twice
        rodata.slots = slots
        self._size_maps(skeleton.maps, slots)
        skeleton.maps.captured.max_entries = 2 if twice else 1
        skeleton.maps.claims.max_entries = _count_claims(kernel, twice)
        progs = skeleton.progs
        progs.handle_exec.autoload = progs.handle_exit.autoload = not old
        progs.handle_exec_old.autoload = progs.handle_exit_old.autoload = old
        progs.exec_again.autoload = progs.exit_again.autoload = twice

    def on_refusal(self) -> bool:
        """Retries with the old programs: a kernel without JIT refuses bpf_loop()'s callback."""
        refused, self._old = not self._old, True
        return refused

    def _size_maps(self, maps: Names, slots: int) -> None:
        maps.exec_start.max_entries = slots
        maps.exec_start_more.max_entries = self._max_processes
        # Kernels without cgroups do not have this type of map.
        maps.cgroups.set_autocreate(bool(self._cgroups))
        if self._args:
            maps.exec_text.max_entries = slots
            # Linux 5.10 has no map larger than 4 GiB, even of entries that are not there yet.
            maps.exec_text_more.max_entries = min(self._max_processes, 2**22)
            # Users who run programs with long arguments can fill at most 64 MiB.
            maps.exec_text_long.max_entries = min(self._max_processes, 4096)

    def on_load(self, skeleton: Skeleton) -> None:
        """Fills the cgroups map; raises SettingError for a path that is not a cgroup."""
        try:
            for index, descriptor in enumerate(self._descriptors):
                skeleton.maps.cgroups[index] = descriptor
        except OSError as error:
            if error.errno != EBADF:
                raise start_error(error.errno or 0, "load", skeleton.log) from None
            raise SettingError(
                f"not all of these are directories of cgroup v2: {self._cgroups}"
            ) from None

    def count(self, skeleton: Skeleton, produced: int, received: int, lost: int) -> Stats:
        """Like the engine's, with bootstrap's own counters."""
        progs, bss = skeleton.progs, skeleton.bss
        execs = [progs.handle_exec, progs.handle_exec_old, progs.exec_again]
        exits = [progs.handle_exit, progs.handle_exit_old, progs.exit_again]
        # After dropping privileges the query may fail; then the last known number stands.
        self._missed = max(self._missed, _left_out(execs) + _left_out(exits))
        missed = bss.unclaimed + self._missed
        return Stats(produced, received, lost, bss.untracked, bss.truncated, missed)

    def closing_remarks(self, stats: Stats) -> list[str]:
        """Reports how many programs found the process table full."""
        if not stats.untracked:
            return []
        untracked = (
            f"{stats.untracked} programs could not be remembered (see --max-processes): "
            "their exits count from the start of the process"
        )
        return [untracked]

    def check_remark(self) -> str:
        """Says which form the exit tracepoint has, and whether the old programs run."""
        dead = lib.shim_kernel_has_struct(b"trace_event_raw_sched_process_exit")
        form = "says which thread is the last" if dead else "does not say which thread is the last"
        return f"the exit tracepoint {form}{'; without bpf_loop()' if self._old else ''}"

    if TYPE_CHECKING:

        @property
        def stats(self) -> Stats: ...  # noqa: D102
        def read(self, timeout: float | None = None) -> list[Event]: ...  # noqa: D102
        def __next__(self) -> Event: ...
        async def __anext__(self) -> Event: ...


def _left_out(programs: list[Any]) -> int:
    """At most how many events are missing: those for which all of the programs were skipped."""
    counts = [program.skipped for program in programs]
    return min((count for count in counts if count is not None), default=0)
