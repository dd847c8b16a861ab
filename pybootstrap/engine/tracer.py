# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The base class of every tool's Tracer: open -> load -> attach, events until stop, close.

How an event reaches a callback, step by step:

1. A BPF program puts a record into the ring buffer. The first one after we emptied it wakes us.
2. `shim_read` (C, without the GIL) waits for that, lets more records gather for most of the latency
   bound, and copies all of them into our buffer.
3. `Decoder` turns the batch into events.
4. `read()` returns them. The callback and the iterator take them from a queue, one by one. So an
   exception in a callback goes to the caller of `run()` or `poll()`, and the events after it stay
   in the queue.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from errno import EBADMSG, EINTR, EINVAL, EPIPE, ESHUTDOWN

from pybootstrap._typing import TYPE_CHECKING, NamedTuple
from pybootstrap.engine._native import ffi, lib
from pybootstrap.engine.errors import (
    RecordError,
    SettingError,
    StateError,
    start_error,
)
from pybootstrap.engine.events import event_classes, make_decoder
from pybootstrap.engine.skeleton import Skeleton, types_of

if TYPE_CHECKING:
    import asyncio
    from typing import Any, Callable, ClassVar

    from pybootstrap.engine.events import Event

__all__ = ["Stats", "Tracer", "milliseconds", "whole_number"]

_BATCH_SIZE = 256 * 1024  # bytes; a few thousand events
_MAX_MS = 2**63 // 10**6  # so that ns fit into 63 bits
_NOT_SUPPORTED = 524  # the kernel's ENOTSUPP, which errno.h lacks
_FOREVER = 1e9  # seconds; an int timeout may be too large for a float
_MAX_WAIT = 86400  # seconds per system call; longer waits take several
_LOSS = lib.SHIM_LOSS  # looked up once, like the next line, because each batch needs them
_read = lib.shim_read


def _closed() -> StateError:
    return StateError("this Tracer was closed: make a new one in a with statement")


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Calls the function in the loop's thread, unless the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)


def _check_timeout(timeout: float | None) -> None:
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise SettingError(f"timeout must be None or seconds, 0 or more, not {timeout!r}")


def _milliseconds_until(end: float) -> int:
    """Milliseconds until a time of the monotonic clock, rounded up; at most one day."""
    return max(0, math.ceil(min(end - time.monotonic(), _MAX_WAIT) * 1000))


class Stats(NamedTuple):
    """Counters since the start; `produced == received + lost` once everything was read."""

    produced: int
    """Events that passed all filters, so that the kernel had to send them."""
    received: int
    """Events that were read from the ring buffer."""
    lost: int
    """Events that found the ring buffer full."""
    missed: int
    """How often the kernel skipped a program because it was already running on that CPU: at most
    that many events are missing. The sum of `recursion_misses` in `bpf_prog_info` of all
    programs."""


def milliseconds(name: str, value: float) -> int:
    """Converts milliseconds to ns; SettingError unless it is a number from 0 to 2**63 ns."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingError(f"{name} must be a number of milliseconds, not {value!r}")
    if not (0 <= value <= _MAX_MS) or math.isnan(value):
        raise SettingError(f"{name} must be from 0 to {_MAX_MS} milliseconds, not {value!r}")
    return int(value * 10**6)


def whole_number(name: str, value: int, low: int, high: int) -> int:
    """Returns the value; SettingError unless it is a whole number from low to high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    return value


_tracers: weakref.WeakSet[Tracer] = weakref.WeakSet()
_main_thread = threading.main_thread().ident  # where Python runs signal handlers


def _leave_to_parent() -> None:
    global _main_thread  # noqa: PLW0603
    _main_thread = threading.main_thread().ident
    for tracer in list(_tracers):
        tracer._leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parent)  # after skeletons have closed


class Tracer:
    """Loads a tool's programs and delivers the events that they send.

    A tool derives its own Tracer, which defines the object (`OBJECT`), the event classes
    (`EVENTS`), what to set (`on_open`, `on_load`), where to attach (`attach`) and what else to
    count (`count`).

    Args:
        on_event: called with each event by `run()` and `poll()`. Leave it out to iterate.
        max_latency_ms: how long an event may wait for others, in ms, so that one wake-up and one
            batch serve all of them. 0 wakes this program for each event. If this program is busy,
            an event waits longer, until it is read.
        ring_size: bytes of the ring buffer; a power of two from 64 KiB to 1 GiB.
        verbose: print libbpf's messages to stderr, with those for debugging.

    Use it in a `with` or `async with` statement, or call `start()` and `close()`. Only one thread
    or task may read at a time. Any other, and signal handlers, may use `stop()`, `close()`, `stats`
    and `fileno()` meanwhile.

    Raises SettingError (a ValueError) for invalid values.
    """

    OBJECT: ClassVar[bytes | None] = None
    """Contents of the object file; None: the object that is linked into the extension."""
    EVENTS: ClassVar[tuple[type[Event], ...]] = ()
    """The event classes, one for each kind of record. If empty, they are made from the object's
    BTF: see `event_classes`."""

    def __init__(
        self,
        on_event: Callable[[Any], Any] | None = None,
        *,
        max_latency_ms: float = 10,
        ring_size: int = 2 * 1024 * 1024,
        verbose: bool = False,
    ) -> None:
        self._shim = ffi.NULL
        self._skeleton: Skeleton | None = None
        if on_event is not None and not callable(on_event):
            raise SettingError(f"on_event must be callable, not {on_event!r}")
        whole_number("ring_size", ring_size, lib.SHIM_MIN_RING, lib.SHIM_MAX_RING)
        if ring_size & (ring_size - 1):
            raise SettingError(f"ring_size must be a power of two, not {ring_size}")
        self._on_event = on_event
        self._max_latency_ns = milliseconds("max_latency_ms", max_latency_ms)
        self._ring_size = ring_size
        self._verbose = bool(verbose)
        self._pid = 0  # the process that started it
        self._started = False  # start() has succeeded
        self._missed = 0  # the last value that could be read
        self._queue: deque[Any] = deque()
        self._decoder = make_decoder(self.events())
        self._buffer = ffi.NULL
        self._bytes: Any = b""  # the same buffer, for slicing
        # The number of batches decoded, and the events of the last one that were not delivered yet.
        # One tuple, because a signal handler may raise between any two steps.
        self._fetched: tuple[int, list[Any]] = 0, []
        self._signal_pipe = -1
        self._polled = False  # fileno() was called, so a caller may wait on it
        self._stopping = False  # stop() was called
        self._detached_ns = 0  # then, at this wall-clock time, the programs were detached
        self._ended = False  # and all earlier events were read
        self._closing = False  # close() was called
        self._closed = False  # close() is done
        self._hooked = False  # our pipe is Python's wakeup fd
        self._final_stats: Any = None
        # Held while reading. Reentrant, because a signal handler may interrupt the read and call
        # close(), which must not wait for it.
        self._read_lock = threading.RLock()
        self._reading = False
        self._wake_task: Callable[[], object] | None = None  # wakes the waiting asyncio task
        _tracers.add(self)

    def __init_subclass__(cls) -> None:
        """Refuses an `__init__` that uses a private name of ours: a tool would set it unawares."""
        super().__init_subclass__()
        init = getattr(vars(cls).get("__init__"), "__code__", None)
        taken = _OWN_NAMES.intersection(init.co_names) if init else None
        if taken:
            raise SettingError(
                f"{cls.__name__}.__init__ uses {', '.join(sorted(taken))}, which belongs to the "
                "engine's Tracer: use another name"
            )

    # ---- What a tool overrides ----

    def on_open(self, skeleton: Skeleton) -> None:
        """Sets variables, sizes of maps and which programs to load. The default does nothing."""

    def on_refusal(self) -> bool:
        """Called if the kernel refuses to load (EINVAL, ENOTSUPP); returns whether to try again.

        A tool with programs that some kernels refuse notes the refusal and returns True. Then
        `on_open` is called once more, with a new skeleton, and has to leave these programs out. The
        default returns False.
        """
        return False

    def on_load(self, skeleton: Skeleton) -> None:
        """Fills maps, before the programs are attached. The default does nothing."""

    def attach(self, skeleton: Skeleton) -> None:
        """Attaches the programs; the default attaches each where its section says."""
        skeleton.attach()

    def count(self, skeleton: Skeleton, produced: int, received: int, lost: int) -> Any:
        """Makes the value of `stats`; the default is a `Stats`."""
        self._missed = max(self._missed, sum(program.skipped or 0 for program in skeleton.progs))
        return Stats(produced, received, lost, self._missed)

    def closing_remarks(self, stats: Any) -> list[str]:  # noqa: ARG002
        """What a command prints about `stats` when it ends, besides losses: one sentence each."""
        return []

    def check_remark(self) -> str:
        """What `--check` adds if tracing works, or "". Called while the programs are attached."""
        return ""

    @classmethod
    def events(cls) -> tuple[type[Event], ...]:
        """The event classes. Raises SettingError if EVENTS does not fit OBJECT."""
        if not isinstance(cls.EVENTS, tuple):
            raise SettingError(f"EVENTS must be a tuple of event classes, not {cls.EVENTS!r}")
        if not cls.EVENTS:
            return event_classes(cls.OBJECT)
        kinds = dict(types_of(cls.OBJECT).records())
        for event in cls.EVENTS:
            if event._source is None or event._source[0] != cls.OBJECT:
                raise SettingError(f"EVENTS has {event.__name__}, which is of another object")
            kinds.pop(event.KIND, None)
        if kinds:
            names = ", ".join(kind.name for kind in kinds.values())
            raise SettingError(f"EVENTS lacks a class for {names}")
        return cls.EVENTS

    # ---- Start, stop, close ----

    def start(self) -> Any:
        """Loads and attaches the BPF programs; from here on events are recorded. Returns self.

        Raises PrivilegeError (a PermissionError), UnsupportedKernelError (an OSError), LoadError (a
        RuntimeError), SettingError for what only the kernel can check, or StateError if it was
        started before.
        """
        if self._shim or self._final_stats or self._pid:
            raise StateError("a Tracer can be started only once: make a new one")
        try:
            self._load()
            self._started = True
        except BaseException as error:
            self._free()
            if self._closing and isinstance(error, StateError):  # closed by a signal handler
                raise _closed() from None
            raise
        if self._stopping:  # a signal handler called stop() meanwhile
            self.stop()
        return self

    def _load(self) -> None:
        self._pid = os.getpid()
        buffer = ffi.new("char[]", _BATCH_SIZE)
        self._buffer, self._bytes = buffer, ffi.buffer(buffer)
        skeleton = self._load_skeleton()
        self.on_load(skeleton)
        self.attach(skeleton)
        self._signal_pipe = lib.shim_signal_fd(self._shim)
        if self._closing:
            raise _closed()

    def _load_skeleton(self) -> Skeleton:
        log, tries = "", 0
        while True:
            tries += 1
            skeleton = Skeleton(self.OBJECT, verbose=self._verbose)
            # From here on every method may use the shim.
            self._skeleton, self._shim = skeleton, skeleton._shim
            skeleton.maps.rb.max_entries = self._ring_size
            skeleton.rodata.wakeup_bytes = self._ring_size // 4
            self.on_open(skeleton)
            code = skeleton._try_to_load(self._max_latency_ns)
            if code == 0:
                return skeleton
            log += skeleton.log
            may_retry = code in (-EINVAL, -_NOT_SUPPORTED) and tries == 1
            if not (may_retry and self.on_refusal()):
                skeleton._handle.check(code)
                raise start_error(-code, "load", log)
            skeleton.close()

    def stop(self) -> None:
        """Ends tracing; may be called at any time, by any thread or signal handler.

        A blocked read returns at once. The reader then detaches the programs and delivers what was
        recorded until then; after that `run()` and iteration end, and `read()` returns [].
        """
        self._stopping = True
        # A forked child must not wake its parent, which has the same descriptors.
        if self._pid == os.getpid():
            lib.shim_wake(self._shim)

    def close(self) -> None:
        """Detaches and frees everything; unread events are discarded. May be called again.

        A blocked read of another thread, or a waiting asyncio task, ends first. If a signal handler
        calls this during a read, the Tracer is closed when that read returns.
        """
        self._closing = True
        self.stop()
        with self._read_lock:
            if self._reading:
                return
            try:
                if self._shim and self._final_stats is None:
                    with contextlib.suppress(StateError):  # closed by a signal handler
                        self._final_stats = self.stats
            finally:  # even if a tool's count() raises
                self._free()

    def _free(self) -> None:
        self._closed = self._ended = True
        if self._hooked and threading.get_ident() == _main_thread:
            signal.set_wakeup_fd(-1)
            self._hooked = False
        lib.shim_close(self._shim)
        self._buffer, self._bytes = ffi.NULL, b""
        self._take()
        wake_task = self._wake_task
        if wake_task is not None:
            wake_task()

    def _leave_to_parent(self) -> None:
        """Resets a child of fork(2), where the skeleton is closed.

        The lock is a new one, because the thread that held it may not exist here.
        """
        self._read_lock = threading.RLock()
        self._reading = False
        self._wake_task = None
        self._queue.clear()
        self._take()
        if self._hooked:
            signal.set_wakeup_fd(-1)
            self._hooked = False

    def __enter__(self) -> Any:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Any:
        return self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_shim", None) and not self._closed and self._pid == os.getpid():
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    # ---- Events ----

    def read(self, timeout: float | None = None) -> list[Any]:
        """Returns the available events, in order; waits up to `timeout` seconds for the first.

        None waits without limit. An empty list means that none came in time, or that tracing ended.
        After the first event it lets more gather, for at most `max_latency_ms` and within
        `timeout`. In the main thread it runs signal handlers while it waits.

        Raises StateError if the Tracer is not started, closed or inherited through fork(2), and
        while another thread, or the code that a signal handler interrupted, is reading.
        """
        if self._queue:
            events = list(self._queue)
            self._queue.clear()
            return events
        self._fetch(timeout)
        return self._take()

    def poll(self, timeout: float | None = None) -> int:
        """Passes the available events to the callback; returns how many. Waits like `read()`.

        An exception of the callback ends the call; the events after that one stay for the next.
        """
        if self._on_event is None:
            raise StateError("poll() and run() need a callback: Tracer(on_event=...)")
        if not self._queue:
            self._fetch(timeout)
            self._queue.extend(self._take())
        count = 0
        while self._queue:
            count += 1
            self._on_event(self._next_queued())
        return count

    def run(self) -> None:
        """Passes every event to the callback until `stop()`. Exceptions as in `poll()`."""
        while not self._ended:
            self.poll()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while not self._queue:
            if self._ended:
                raise StopIteration
            self._fetch(None)
            self._queue.extend(self._take())
        return self._next_queued()

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        while not self._queue:
            if self._ended or self._closing:  # another thread may be closing it
                raise StopAsyncIteration
            await self._readable()
            if not self._closing:
                self._fetch(0)
                self._queue.extend(self._take())
        return self._next_queued()

    async def _readable(self) -> None:
        import asyncio  # slow to import, and most programs do not need it

        if self._wake_task is not None:
            raise StateError("another task waits for the events of this Tracer")
        loop = asyncio.get_running_loop()
        # A duplicate, because close() may close the original while the loop still watches it.
        fd = os.dup(self.fileno())
        ready = asyncio.Event()
        self._wake_task = lambda: _call_soon(loop, ready.set)
        try:
            loop.add_reader(fd, ready.set)
            if not self._ended:  # else close() was too early to wake this task
                await ready.wait()
        finally:
            self._wake_task = None
            try:
                loop.remove_reader(fd)
            finally:
                os.close(fd)

    @property
    def skeleton(self) -> Skeleton:
        """The loaded object's variables, maps and programs. Raises StateError like `read()`."""
        self._check_usable()
        if self._skeleton is None:
            raise _closed()
        return self._skeleton

    def fileno(self) -> int:
        """A descriptor for select(2), poll(2) or epoll(7): when it is readable, call `read(0)`.

        The Tracer owns it. It may be readable while there is nothing to read yet: from the first
        call of `fileno()` on, `read(0)` lets events gather, and the descriptor becomes readable
        again in time to keep `max_latency_ms`. Raises StateError like `read()`.
        """
        self._check_usable()
        self._polled = True
        fd: int = lib.shim_fd(self._shim)
        if fd < 0:
            raise _closed()
        return fd

    @property
    def stats(self) -> Any:
        """Counters since the start; after `close()` their final values.

        Raises StateError before the start.
        """
        if self._final_stats is not None:
            return self._final_stats
        self._check_usable()
        counted: Any = ffi.new("struct shim_stats *")
        code = lib.shim_stats(self._shim, counted)
        if code < 0 or self._skeleton is None:
            raise _closed()
        try:
            return self.count(self._skeleton, counted.produced, counted.received, counted.lost)
        except StateError:
            if self._closing:
                raise _closed() from None
            raise

    def _check_usable(self) -> None:
        if self._pid not in (0, os.getpid()):
            raise StateError("this Tracer belongs to the parent process: make a new one after fork")
        if self._closed:
            raise _closed()
        if not self._started:
            raise StateError("this Tracer was not started: use it in a with statement")

    def _next_queued(self) -> Any:
        """Takes the first event of the queue.

        It makes no call: a signal handler could run then and raise, and the event would be gone.
        """
        event = self._queue[0]
        del self._queue[0]
        return event

    def _take(self) -> list[Any]:
        """Takes what was fetched; makes no call either."""
        number, events = self._fetched
        self._fetched = number, []
        return events

    def _fetch(self, timeout: float | None) -> None:
        """Fetches the next events from the ring; none on timeout, and when tracing has ended.

        If a signal handler raises after that, they stay for the next call.
        """
        _check_timeout(timeout)
        lock = self._read_lock  # a fork gives the child a new one
        if not lock.acquire(blocking=False):
            if self._closing:
                raise _closed()
            raise StateError("another thread is reading from this Tracer")
        try:
            if self._reading:
                raise StateError("a signal handler cannot read while the code it interrupted reads")
            if self._wake_task is not None:
                raise StateError("a task waits for the events of this Tracer")
            self._reading = True
            try:
                self._check_usable()
                if self._fetched[1]:
                    return
                if self._hooked or timeout == 0 or threading.get_ident() != _main_thread:
                    self._next_batch(timeout)
                else:
                    self._next_batch_or_signal(timeout)
            finally:
                self._reading = False
        finally:
            lock.release()
            if self._closing:  # a signal handler called close() during the read
                self.close()

    def _next_batch_or_signal(self, timeout: float | None) -> None:
        """`_next_batch` for the main thread: interrupts its wait to run signal handlers."""
        before = -1
        try:
            try:
                before = self._hook_signals()
            except ValueError:  # `threading` takes its first importer for the main thread
                self._hooked = False
            self._next_batch(timeout, before)
        finally:
            if self._hooked:
                self._unhook_signals(before)

    def _unhook_signals(self, before: int) -> None:
        """Restores the previous fd, unless it was closed or a handler has set another one."""
        try:
            replaced = signal.set_wakeup_fd(before)
        except (OSError, ValueError):  # it was closed
            replaced = signal.set_wakeup_fd(-1)
        self._hooked = False
        if replaced != self._signal_pipe:
            with contextlib.suppress(OSError, ValueError):
                signal.set_wakeup_fd(replaced)
        elif before != -1:  # a handler that raised left its signal's byte in our pipe
            self._take_signals(before)

    def _batches(
        self,
        kinds: Mapping[int, Callable[[bytes], Any]],
        timeout: Callable[[], float | None] = lambda: None,
    ) -> Iterator[list[Any]]:
        """Yields what `kinds` make of the records (see `Decoder`), batch by batch, until the end.

        It waits for a batch as `read()` does, for the seconds that `timeout()` returns each time,
        and then yields an empty one.

        Only for the main thread of a command, where nothing else reads or sets a wakeup fd: this
        omits the checks that `read()` makes each time, because they are slow when caches are cold.
        """
        events = self.events()
        for event in events:
            if event.KIND not in kinds:
                raise SettingError(f"the renderer has no line for {event.__name__}")
        self._decoder = make_decoder(events, kinds)
        self._hook_signals()
        while (lines := self._next_batch(timeout())) or not self._ended:
            yield lines

    def _watch_output(self, fd: int) -> None:
        """Makes `_batches` raise NoReaderError, even while idle, once `fd` has no reader."""
        code = lib.shim_watch_output(self._shim, fd)
        if code < 0:
            raise OSError(-code, f"cannot watch the output: {os.strerror(-code)}")

    def _hook_signals(self) -> int:
        """Lets signals end the wait of `shim_read`; returns the previous wakeup fd, or -1.

        When a signal arrives, in any thread, Python's C handler sets a flag and then writes to the
        wakeup fd. The interpreter checks the flag after each call that it makes. So if a signal
        arrives before `set_wakeup_fd` returns, its Python handler runs then. Any later signal puts
        a byte into our pipe, and `shim_read` does not sleep while a byte is there. The pipe is
        emptied only between two calls of `shim_read`. So no signal is missed, unless a handler sets
        a wakeup fd of its own.
        """
        self._hooked = True  # before it is true, so that close() undoes it whatever happens here
        before = signal.set_wakeup_fd(self._signal_pipe, warn_on_full_buffer=False)
        return before if before != self._signal_pipe else -1

    def _take_signals(self, forward_to: int) -> None:
        """Empties the pipe; forwards its bytes to the previous wakeup fd, if there was one."""
        numbers = ffi.new("char[]", 256)
        while (count := lib.shim_take_signals(self._shim, numbers, 256)) > 0:
            if forward_to != -1:
                with contextlib.suppress(OSError):  # full or closed, as Python does
                    os.write(forward_to, ffi.buffer(numbers, count))

    def _next_batch(self, timeout: float | None, forward_to: int = -1) -> list[Any]:
        end = None if timeout is None else time.monotonic() + min(timeout, _FOREVER)
        taken, gather = self._fetched[0], self._polled and timeout == 0
        while True:
            if self._stopping and not self._detached_ns:
                self._detach()
            wait_ms = -1 if end is None else _milliseconds_until(end)
            code = _read(self._shim, self._buffer, _BATCH_SIZE, wait_ms, gather, taken)
            if code > 0:
                return self._decode(code, taken + 1)
            if code == -EINTR:
                self._take_signals(forward_to)
                continue  # the handlers have run; they may have called stop()
            if code == -ESHUTDOWN:
                raise _closed()
            if code == -EPIPE:  # see _watch_output
                from pybootstrap.engine.output import NoReaderError

                raise NoReaderError
            if code == -EBADMSG:
                raise RecordError(
                    f"the ring has something other than a record of at most {lib.MAX_RECORD} bytes"
                )
            if code < 0:
                raise OSError(-code, f"cannot read the ring buffer: {os.strerror(-code)}")
            self._ended = bool(self._detached_ns)
            if self._ended or wait_ms == 0:
                return []

    def _detach(self) -> int:
        """Detaches the programs if they are attached; returns the time at which all still were.

        It is wall clock, ns since the epoch.
        """
        if not self._detached_ns:
            before_ns = time.time_ns()
            lib.shim_detach(self._shim)
            self._detached_ns = before_ns
        return self._detached_ns

    def _decode(self, code: int, number: int) -> list[Any]:
        """The events of the batch that `shim_read` returned, and a loss that no record carries."""
        decoder, loss = self._decoder, code & _LOSS
        told = decoder.lost
        try:
            events = decoder.decode(self._bytes[: code - loss])
            if loss:
                events.append(decoder.loss(lib.shim_lost(self._shim)))
            self._fetched = number, events
        except RecordError:
            self._fetched = number, []  # else every later read would find it
            raise
        except BaseException:  # from a signal handler: the batch will be decoded again
            decoder.lost = told
            raise
        return events


_OWN_NAMES = frozenset(
    name for name in Tracer.__init__.__code__.co_names if name.startswith("_") and name[1] != "_"
)
