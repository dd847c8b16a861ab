# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The Tracer: open -> load -> attach, then events until stop, then close.

How an event reaches a callback, step by step:

1. The BPF programs put a record into the ring buffer and, at most once per latency bound, wake us.
2. `shim_read` (C, without the GIL) waits for that and copies whole records into our buffer.
3. `Decoder` makes events of the batch; they wait in a queue.
4. The queue is emptied into the callback, the iterator or the list of `read()`, all of them in
   plain Python. An exception in a callback goes to the caller of `run()` or `poll()`; the events
   after the one that raised stay in the queue.
"""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from errno import EBADF, EINTR
from typing import Any, Callable, NamedTuple

from pybootstrap._native import ffi, lib
from pybootstrap.errors import SettingError, StateError, start_error
from pybootstrap.events import Decoder, Event

__all__ = ["Stats", "Tracer"]

_BATCH_SIZE = 256 * 1024  # bytes; some thousand events
_MAX_MS = 2**63 // 10**6  # what fits into the kernel's ns
_MAX_WAIT = 86400  # seconds of one system call; longer waits are made of several


class Stats(NamedTuple):
    """What was counted since the start; `produced == received + lost` once all was read."""

    produced: int
    """Events that the kernel had to send, after all filters."""
    received: int
    """Events that were read from the ring buffer."""
    lost: int
    """Events that found the ring buffer full."""
    untracked: int
    """Execs that found the table of processes full: their exits come, with `duration_since`
    "start" and without file name and arguments."""
    truncated: int
    """Events whose file name or arguments were cut, or could not be read or kept."""
    missed: int
    """Times the kernel itself skipped a program (`recursion_misses` of `bpf_prog_info`)."""


def _milliseconds(name: str, value: float) -> int:
    """A time in milliseconds as ns; SettingError unless it is a number from 0 to 2**63 ns."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingError(f"{name} must be a number of milliseconds, not {value!r}")
    if not (0 <= value <= _MAX_MS) or math.isnan(value):
        raise SettingError(f"{name} must be from 0 to {_MAX_MS} milliseconds, not {value!r}")
    return int(value * 10**6)


def _whole(name: str, value: int, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    return value


def _user_id(user: int | str) -> int:
    if isinstance(user, int):
        return _whole("users", user, 0, 2**32 - 2)
    import pwd  # few need it

    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise SettingError(f"there is no user {user!r} on this machine") from None


def _comm(comm: str) -> bytes:
    name = os.fsencode(comm)
    if len(name) >= lib.COMM_SIZE:
        raise SettingError(
            f"the kernel cuts command names to 15 bytes: use {os.fsdecode(name[:15])!r}, "
            f"not {comm!r}"
        )
    return name


def _new(ctype: str, values: dict[str, Any]) -> Any:
    return ffi.new(ctype, values)


def _open_cgroup(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SettingError(f"cannot open the cgroup {path!r}: {error.strerror}") from None


def _check_count(name: str, values: Sized) -> None:
    if len(values) > lib.FILTER_SIZE:
        raise SettingError(f"{name} takes at most {lib.FILTER_SIZE} values, not {len(values)}")


def _fill(filters: Any, name: str, values: Sequence[int | bytes]) -> None:
    """Puts values into the array and the counter that struct filters has for them."""
    _check_count(name + "s", values)
    setattr(filters, name + "s", len(values))
    setattr(filters, name, values)


_tracers: weakref.WeakSet[Tracer] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for tracer in list(_tracers):
        tracer._leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parent)


class Tracer:
    """Sees every process of the machine start a program and end.

    Args:
        on_event: called with each event by `run()` and `poll()`. Leave it out to iterate.
        min_duration_ms: send only exits of processes that ran at least this long, and no execs;
            the kernel filters. 0: send everything.
        args: carry arguments on exec events, file name and arguments on exit events. Without, the
            kernel has less to copy.
        max_latency_ms: no event waits longer in the kernel while this program can run. Larger
            values wake it less often; 0 wakes it for each event.
        pids, ppids: only processes with one of these ids; whose parent has one of these ids.
        users: only processes of these users (real user id); numbers or names.
        comms: only processes with one of these command names, at most 15 bytes each.
        cgroups: only processes in these cgroups or below; paths of directories of cgroup v2.
        failed: only exits with a status other than 0 or by a signal, and no execs.
        ring_size: bytes of the ring buffer; a power of two from 64 KiB to 1 GiB.
        max_processes: how many running processes are remembered for their exit. Each takes about
            100 bytes of kernel memory at once, and its text (with `args`) while it lives.
        verbose: libbpf's debug messages go to stderr.

    Use it in a `with` or `async with` statement, or call `start()` and `close()`.
    Only `stop()` may be called by another thread while one reads.

    All filters work in the kernel; one that is not used costs nothing. A process is reported when
    it matches one value of each filter that is used. Up to 64 values each.

    Raises SettingError (a ValueError) for values that make no sense.
    """

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
        self._shim = ffi.NULL
        if on_event is not None and not callable(on_event):
            raise SettingError(f"on_event must be callable, not {on_event!r}")
        _whole("ring_size", ring_size, lib.SHIM_MIN_RING, lib.SHIM_MAX_RING)
        if ring_size & (ring_size - 1):
            raise SettingError(f"ring_size must be a power of two, not {ring_size}")
        self._on_event = on_event
        self._pid = 0  # who started it
        self._settings = _new(
            "struct shim_settings *",
            {
                "min_duration_ns": _milliseconds("min_duration_ms", min_duration_ms),
                "max_latency_ns": _milliseconds("max_latency_ms", max_latency_ms),
                "ring_size": ring_size,
                "max_processes": _whole("max_processes", max_processes, 1, 2**24),
                "capture_args": bool(args),
                "verbose": bool(verbose),
            },
        )
        filters = self._settings.filters
        filters.failed = bool(failed)
        _fill(filters, "pid", [_whole("pids", pid, 1, 2**31 - 1) for pid in pids])
        _fill(filters, "ppid", [_whole("ppids", pid, 0, 2**31 - 1) for pid in ppids])
        _fill(filters, "uid", [_user_id(user) for user in users])
        _fill(filters, "comm", [_comm(comm) for comm in comms])
        self._cgroups = [os.fspath(path) for path in cgroups]
        _check_count("cgroups", self._cgroups)
        self._queue: deque[Event] = deque()
        self._decoder = Decoder()
        self._buffer = ffi.NULL
        self._reading = False
        self._stopping = False  # stop() was called
        self._detached = False  # so the programs were detached
        self._ended = False  # and everything from before it was read
        self._closing = False
        self._final_stats: Stats | None = None
        # Reentrant, because a signal handler may call stop(), close() or stats at any moment.
        self._read_lock = threading.RLock()  # held while reading
        self._handle_lock = threading.RLock()  # held while another thread may use the handle
        _tracers.add(self)

    # ---- Life: start, stop, close ----

    def start(self) -> Tracer:
        """Loads and attaches the BPF programs; from here on events are recorded. Returns self.

        Raises PrivilegeError (a PermissionError), UnsupportedKernelError (an OSError), LoadError (a
        RuntimeError), or StateError when it was started before.
        """
        if self._shim or self._final_stats or self._pid:
            raise StateError("a Tracer can be started only once: make a new one")
        descriptors: list[int] = []
        try:
            descriptors.extend(map(_open_cgroup, self._cgroups))
            self._settings.filters.cgroups = len(descriptors)
            self._settings.cgroup = descriptors
            self._load()
        except BaseException:
            self._free()
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._buffer = ffi.new("char[]", _BATCH_SIZE)
        if self._stopping:  # by a signal handler, meanwhile
            self.stop()
        return self

    def _load(self) -> None:
        self._pid = os.getpid()
        handle = ffi.new("struct shim **")
        code = lib.shim_open(handle, self._settings)
        self._shim = handle[0]
        if not self._shim:
            raise MemoryError
        self._check(code, "open")
        code = lib.shim_load(self._shim)
        if code == -EBADF:
            raise SettingError(f"not all of these are directories of cgroup v2: {self._cgroups}")
        self._check(code, "load")
        self._check(lib.shim_attach(self._shim), "attach")

    def _check(self, code: int, step: str) -> None:
        if code < 0:
            raise start_error(-code, step, ffi.string(lib.shim_log(self._shim)).decode())

    def stop(self) -> None:
        """Ends tracing; may be called at any time, by any thread or signal handler.

        A blocked read returns at once. The reader then detaches the programs and gives out what
        was recorded until then; after that `run()` and iteration end, and `read()` returns [].
        """
        self._stopping = True
        with self._handle_lock:
            # A forked child must not wake its parent, which has the same descriptors.
            if self._shim and self._pid == os.getpid():
                lib.shim_wake(self._shim)

    def close(self) -> None:
        """Detaches and frees everything; events not read are gone. May be called again.

        Another thread's blocked read ends first. In a signal handler that interrupts a read, the
        closing happens when that read returns.
        """
        self._closing = True
        self.stop()
        with self._read_lock:
            if not self._reading and self._shim:
                self._final_stats = self.stats
                self._free()

    def _free(self) -> None:
        with self._handle_lock:
            shim, self._shim = self._shim, ffi.NULL
            lib.shim_close(shim)
        self._buffer = ffi.NULL
        self._ended = True

    def _leave_to_parent(self) -> None:
        """In a child of fork(2), which has the parent's descriptors: closes them, wakes nobody.

        The threads that may have held the locks are not in this process.
        """
        self._read_lock, self._handle_lock = threading.RLock(), threading.RLock()
        self._reading = False
        if self._shim:
            self._queue.clear()
            self._free()
            self._ended = False

    def __enter__(self) -> Tracer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Tracer:
        return self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_shim", None):
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    # ---- Events ----

    def read(self, timeout: float | None = None) -> list[Event]:
        """The events that are there, in order; waits up to `timeout` seconds for the first.

        None waits without limit. An empty list means that none came in time, or that tracing ended.
        Raises StateError when not started, closed, inherited through fork(2), or while another
        thread reads.
        """
        if not self._queue:
            self._fetch(timeout)
        events = list(self._queue)
        self._queue.clear()
        return events

    def poll(self, timeout: float | None = None) -> int:
        """Hands the events that are there to the callback; returns how many. Waits as `read()`.

        An exception of the callback comes out here; the events after that one stay for the next
        call.
        """
        if self._on_event is None:
            raise StateError("poll() and run() need a callback: Tracer(on_event=...)")
        if not self._queue:
            self._fetch(timeout)
        count = 0
        while self._queue:
            count += 1
            self._on_event(self._queue.popleft())
        return count

    def run(self) -> None:
        """Hands every event to the callback until `stop()`. Exceptions as with `poll()`."""
        while not self._ended:
            self.poll()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while not self._queue:
            if self._ended:
                raise StopIteration
            self._fetch(None)
        return self._queue.popleft()

    def __aiter__(self) -> Tracer:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            await self._readable()
            self._fetch(0)
        return self._queue.popleft()

    async def _readable(self) -> None:
        import asyncio  # slow to import, and most have no use for it

        ready = asyncio.Event()
        loop, fd = asyncio.get_running_loop(), self.fileno()
        loop.add_reader(fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)

    def fileno(self) -> int:
        """A descriptor for select(2), poll(2) or epoll(7): readable when `read(0)` is worth it.

        It belongs to the Tracer. It may be readable although nothing has come.
        """
        self._check_usable()
        fd: int = lib.shim_fd(self._shim)
        return fd

    @property
    def stats(self) -> Stats:
        """What was counted since the start; after `close()`, until then.

        Raises StateError before the start.
        """
        with self._handle_lock:
            if self._final_stats is not None:
                return self._final_stats
            self._check_usable()
            counted = ffi.new("struct shim_stats *")
            code = lib.shim_stats(self._shim, counted)
            if code < 0:
                raise OSError(-code, os.strerror(-code))
            return Stats(*(getattr(counted, name) for name in Stats._fields))

    def _check_usable(self) -> None:
        if self._pid not in (0, os.getpid()):
            raise StateError("this Tracer belongs to the parent process: make a new one after fork")
        if not self._shim:
            state = "was closed" if self._final_stats else "was not started"
            raise StateError(f"this Tracer {state}: make a new one in a with statement")

    def _fetch(self, timeout: float | None) -> None:
        """Fills the queue from the ring; leaves it empty on timeout, and when tracing has ended."""
        if timeout is not None and not timeout >= 0:
            raise SettingError(f"timeout must be None or seconds from 0 on, not {timeout!r}")
        if not self._read_lock.acquire(blocking=False):
            raise StateError("another thread is reading from this Tracer")
        nested, self._reading = self._reading, True
        try:
            self._check_usable()
            self._fill_queue(timeout)
        finally:
            self._reading = nested
            self._read_lock.release()
            if self._closing:  # a signal handler called close() during the read
                self.close()

    def _fill_queue(self, timeout: float | None) -> None:
        end = math.inf if timeout is None else time.monotonic() + timeout
        wait_ms = None
        while not self._queue and not self._ended and wait_ms != 0:
            if self._stopping and not self._detached:
                lib.shim_detach(self._shim)
                self._detached = True
            left = end - time.monotonic()
            wait_ms = -1 if left == math.inf else max(0, math.ceil(min(left, _MAX_WAIT) * 1000))
            size = lib.shim_read(self._shim, self._buffer, _BATCH_SIZE, wait_ms)
            if size == -EINTR:
                continue  # Python ran its signal handlers; they may have called stop()
            if size < 0:
                raise OSError(-size, f"cannot read the ring buffer: {os.strerror(-size)}")
            self._queue.extend(self._decoder.decode(ffi.buffer(self._buffer, size)[:]))
            self._queue.extend(self._decoder.losses(lib.shim_lost(self._shim), time.time_ns()))
            self._ended = self._detached and size == 0
