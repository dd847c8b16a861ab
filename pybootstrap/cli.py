# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command `bootstrap`: arguments in, lines out."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

from pybootstrap._parser import EX_USAGE, make_parser

if TYPE_CHECKING:
    import argparse

    from pybootstrap.errors import BootstrapError
    from pybootstrap.events import Event
    from pybootstrap.tracer import Stats, Tracer

# Exit statuses beside 0, and 2 for usage: sysexits.h has the names.
EX_FAILURE = 1
EX_UNAVAILABLE = 69
EX_IOERR = 74
EX_NOPERM = 77


class _OutputError(Exception):
    """Standard output takes no more; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. `argv` is without the program's name."""
    try:
        return _run(make_parser().parse_args(argv))
    except KeyboardInterrupt:  # before the handlers were in place
        return 0


def _run(options: argparse.Namespace) -> int:
    from pybootstrap import errors  # not before: --help needs none of it

    try:
        if options.version:
            _write(_version())
            return 0
        return _check() if options.check else _trace(options)
    except BrokenPipeError:  # whoever read our output has seen enough
        _forget_stdout()
    except _OutputError as error:
        _forget_stdout()
        return _fail(f"cannot write the output: {error}", EX_IOERR)
    except errors.BootstrapError as error:
        return _fail(error, _status_of(error))
    return 0


def _status_of(error: BootstrapError) -> int:
    from pybootstrap import errors

    statuses = {
        errors.SettingError: EX_USAGE,
        errors.PrivilegeError: EX_NOPERM,
        errors.UnsupportedKernelError: EX_UNAVAILABLE,
    }
    return statuses.get(type(error), EX_FAILURE)


def _trace(options: argparse.Namespace) -> int:
    from pybootstrap.privileges import account, give_up, invoking_account

    if sys.stdout is None and options.output is None:
        raise _OutputError("standard output is closed")
    become = account(options.run_as) if options.run_as else invoking_account(os.environ)
    tracer = _make_tracer(options)
    # Whatever is imported must be by now: whom we become may not be able to read it.
    header, render = _make_renderer(options)

    def end(*_: object) -> None:
        global _told_to_end  # noqa: PLW0603
        _told_to_end = True
        tracer.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        with tracer:
            give_up(become)
            _open_output(options.output)
            _write(header)
            _print_events(tracer, render, options.count or sys.maxsize)
    except _OutputError:
        _report_losses(tracer.stats, options.strict)
        raise
    return _report_losses(tracer.stats, options.strict)


def _make_tracer(options: argparse.Namespace) -> Tracer:
    from pybootstrap.tracer import Tracer

    given = {"ring_size": options.ring_size, "max_processes": options.max_processes}
    return Tracer(
        min_duration_ms=options.duration or 0,
        args=options.args or options.json,
        pids=options.pid,
        ppids=options.ppid,
        users=[int(user) if user.isdecimal() else user for user in options.user],
        comms=options.comm,
        cgroups=options.cgroup,
        failed=options.failed,
        verbose=options.verbose,
        **{name: value for name, value in given.items() if value is not None},
    )


def _make_renderer(options: argparse.Namespace) -> tuple[str, Callable[[list[Event]], str]]:
    """What to print first, and what makes lines of events."""
    from pybootstrap.render import TextRenderer, render_json

    if options.json:
        return "", render_json
    text = TextRenderer(args=options.args, long=options.long)
    return text.header, text.render


def _print_events(tracer: Tracer, render: Callable[[list[Event]], str], left: int) -> None:
    from pybootstrap.events import LostEvent

    while left > 0:
        events = tracer.read()
        if not events:
            break  # stopped
        events = events[:left]
        _write(render(events))
        for event in events:
            if isinstance(event, LostEvent):
                _say(f"{event.count} events lost: the ring buffer was full")
            else:
                left -= 1


def _report_losses(stats: Stats, strict: bool) -> int:
    """Says what is missing in the output; returns the exit status."""
    lost = stats.lost + stats.missed
    if lost:
        _say(
            f"{lost} of {stats.produced + stats.missed} events were lost: {stats.lost} found the "
            f"ring buffer full (see --ring-size), {stats.missed} were skipped by the kernel"
        )
    if stats.untracked:
        _say(
            f"{stats.untracked} programs could not be remembered (see --max-processes): "
            "their exits count from the start of the process"
        )
    return EX_FAILURE if strict and lost else 0


def _check() -> int:
    """Prints what is and what is not as it must be; 0 when this machine can trace."""
    from pybootstrap._native import lib
    from pybootstrap.check import surroundings
    from pybootstrap.errors import BootstrapError
    from pybootstrap.tracer import Tracer

    status = 0
    for check in surroundings():
        _write(f"{'ok' if check.ok else 'NOT OK':<7} {check.name}: {check.detail}\n")
        if not check.ok:
            status = status or (EX_NOPERM if check.lacks == "privilege" else EX_UNAVAILABLE)
    if status == 0:
        try:
            Tracer().start().close()
        except BootstrapError as error:
            _write(f"NOT OK  tracing: {error}\n")
            return _status_of(error)
        dead = lib.shim_kernel_has_struct(b"trace_event_raw_sched_process_exit")
        form = "says which thread is the last" if dead else "does not say which thread is the last"
        _write(f"ok      tracing: ring buffer and programs work; the exit tracepoint {form}\n")
    return status


def _version() -> str:
    from pybootstrap import __version__
    from pybootstrap._native import ffi, lib

    return f"bootstrap {__version__} (libbpf {ffi.string(lib.shim_libbpf_version()).decode()})\n"


# ---- Output ----


def _open_output(path: str | None) -> None:
    """Makes a file the standard output; by now with the invoking user's rights only."""
    if path is None:
        return
    # Non-blocking, or a FIFO that nobody reads would hold us here; _write() can deal with that.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as error:
        raise _OutputError(f"{path}: {error.strerror}") from None
    sys.stdout = os.fdopen(fd, "w", encoding="utf-8")


_PIECE = 4096  # PIPE_BUF: what a pipe that polls as writable takes without blocking
_PATIENCE_MS = 1000  # with a reader that takes nothing, once we were told to end

_told_to_end = False  # SIGINT or SIGTERM came


def _write(text: str) -> None:
    """Writes to standard output at once; in pieces that do not block, unless it is a file.

    Python's own file objects lose data when a signal interrupts a blocked write, and when somebody
    has made the pipe non-blocking; and they do not return while the reader takes nothing.
    """
    data = memoryview(text.encode(sys.stdout.encoding, "backslashreplace"))
    fd = sys.stdout.fileno()
    piece = len(data) if stat.S_ISREG(os.fstat(fd).st_mode) else _PIECE
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    waited = 0
    try:
        while data:
            if poller.poll(_PATIENCE_MS // 4):
                data = data[_write_some(fd, data[:piece]) :]
                waited = 0
                continue
            waited += _PATIENCE_MS // 4
            if _told_to_end and waited >= _PATIENCE_MS:
                raise _OutputError("its reader takes nothing")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _OutputError(error.strerror) from None


def _write_some(fd: int, data: memoryview) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:  # non-blocking, and somebody else has filled it meanwhile
        return 0


def _forget_stdout() -> None:
    """Keeps the interpreter from failing again when it flushes standard output at its end."""
    if sys.stdout is not None:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def _say(message: object) -> None:
    if sys.stderr is not None:
        print(f"bootstrap: {message}", file=sys.stderr, flush=True)


def _fail(message: object, status: int) -> int:
    _say(message)
    return status
