# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command `bootstrap`: arguments in, lines out."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Sequence
from errno import EIO

from pybootstrap._typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from pybootstrap.engine.errors import BootstrapError
    from pybootstrap.render import Renderer
    from pybootstrap.tracer import Stats, Tracer

# Exit statuses beside 0, and 2 for usage: sysexits.h has the names.
EX_FAILURE = 1
EX_UNAVAILABLE = 69
EX_IOERR = 74
EX_NOPERM = 77


class _OutputError(Exception):
    """Standard output takes no more; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. `argv` is without the program's name.

    For a process of its own: what exists at the end is kept out of garbage collection for good.
    """
    # What is made from here on is needed to the end. So there is nothing to collect, but looking
    # for it would take some 5 ms: a part of that during imports, most of it when Python ends.
    gc.disable()
    try:
        from pybootstrap._parser import make_parser

        return _run(make_parser().parse_args(argv))
    except KeyboardInterrupt:  # before the handlers were in place
        return 0
    finally:
        # When Python ends, it takes our handler away, and SIGALRM would kill a slow end.
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.freeze()
        gc.enable()


def _run(options: argparse.Namespace) -> int:
    from pybootstrap.engine import errors  # not before: --help needs none of it

    try:
        if options.version:
            _stdout().write(_version())
            return 0
        return _check() if options.check else _trace(options)
    except BrokenPipeError:  # whoever read our output has seen enough
        _forget_stdout()
    except _OutputError as error:
        _forget_stdout()
        return _fail(f"cannot write the output: {error}", EX_IOERR)
    except errors.BootstrapError as error:
        unseen = getattr(error, "log", "") and not options.verbose
        more = "; -v shows the whole log" if unseen else ""
        return _fail(f"{error}{more}", _status_of(error))
    return 0


def _status_of(error: BootstrapError) -> int:
    from pybootstrap._parser import EX_USAGE
    from pybootstrap.engine import errors

    statuses = (
        (errors.SettingError, EX_USAGE),
        (errors.PrivilegeError, EX_NOPERM),
        (errors.UnsupportedKernelError, EX_UNAVAILABLE),
    )
    return next((status for kind, status in statuses if isinstance(error, kind)), EX_FAILURE)


def _trace(options: argparse.Namespace) -> int:
    from pybootstrap.engine.privileges import account, acting_as, give_up, invoking_account

    if options.output == "-":
        options.output = None
    if options.output is None:
        _stdout()  # is there any?
    invoker = invoking_account(os.environ)
    become = invoker if options.run_as is None else account(options.run_as)
    renderer = _make_renderer(options)
    tracer = _make_tracer(options)
    # Whatever is imported must be by now: the user we switch to may not be able to read it.

    def end(*_: object) -> None:
        _told_to_end()
        tracer.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup(1) has it
        signal.signal(signal.SIGHUP, end)
    gc.freeze()
    gc.enable()
    try:
        with tracer:
            with acting_as(invoker):  # whoever the command becomes
                output = _open_output(options.output)
            give_up(become)
            output.write(renderer.header)
            _print_events(tracer, renderer, output, options.count or sys.maxsize)
    except _OutputError:
        _report_losses(tracer.stats, options.strict)
        raise
    return _report_losses(tracer.stats, options.strict)


def _user(text: str) -> int | str:
    """A number, or else a name; no id has more digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else text


def _make_tracer(options: argparse.Namespace) -> Tracer:
    from pybootstrap.tracer import Tracer

    given = {"ring_size": options.ring_size, "max_processes": options.max_processes}
    return Tracer(
        min_duration_ms=options.duration or 0,
        args=options.args or options.json,
        pids=options.pid,
        ppids=options.ppid,
        users=[_user(text) for text in options.user],
        comms=options.comm,
        cgroups=options.cgroup,
        failed=options.failed,
        max_latency_ms=options.latency,
        verbose=options.verbose,
        **{name: value for name, value in given.items() if value is not None},
    )


def _make_renderer(options: argparse.Namespace) -> Renderer:
    if options.json:
        from pybootstrap.render_json import JsonRenderer

        return JsonRenderer()
    from pybootstrap.render import TextRenderer

    return TextRenderer(args=options.args, long=options.long)


def _print_events(tracer: Tracer, renderer: Renderer, output: _Output, left: int) -> None:
    for lines in tracer._batches(renderer.kinds):
        if len(lines) > left:
            lines = _first(lines, left)  # noqa: PLW2901
        left -= len(lines)
        try:
            text = "".join(lines)
        except TypeError:  # losses among them
            left += _print_with_losses(lines, renderer, output)
        else:
            output.write(text)
        if left == 0:
            break


def _print_with_losses(lines: list[Any], renderer: Renderer, output: _Output) -> int:
    """Prints lines with losses between them; returns how many losses that were."""
    from pybootstrap.events import LostEvent

    losses = [line for line in lines if isinstance(line, LostEvent)]
    output.write("".join(renderer.lost(x) if isinstance(x, LostEvent) else x for x in lines))
    for loss in losses:
        _say(f"{loss.count} events lost: the ring buffer was full")
    return len(losses)


def _first(lines: list[Any], count: int) -> list[Any]:
    """The first `count` lines, with the losses between them."""
    from pybootstrap.events import LostEvent

    for index, line in enumerate(lines):
        if count == 0:
            return lines[:index]
        count -= not isinstance(line, LostEvent)
    return lines


def _report_losses(stats: Stats, strict: bool) -> int:
    """Says what is missing in the output; returns the exit status."""
    lost = stats.lost + stats.missed
    if lost:
        left_out = f", the kernel left out at most {stats.missed}" if stats.missed else ""
        _say(
            f"{lost} of {stats.produced + stats.missed} events were lost: {stats.lost} found the "
            f"ring buffer full (see --ring-size){left_out}"
        )
    if stats.untracked:
        _say(
            f"{stats.untracked} programs could not be remembered (see --max-processes): "
            "their exits count from the start of the process"
        )
    return EX_FAILURE if strict and lost else 0


def _check() -> int:
    """Prints what is and what is not as it must be; 0 when this machine can trace."""
    from pybootstrap.engine._native import lib
    from pybootstrap.engine.check import surroundings
    from pybootstrap.engine.errors import BootstrapError
    from pybootstrap.tracer import Tracer

    status = 0
    for check in surroundings():
        _stdout().write(f"{'ok' if check.ok else 'NOT OK':<7} {check.name}: {check.detail}\n")
        if not check.ok:
            status = status or (EX_NOPERM if check.lacks == "privilege" else EX_UNAVAILABLE)
    if status == 0:
        try:
            with Tracer() as tracer:
                old = tracer._old
        except BootstrapError as error:
            _stdout().write(f"NOT OK  tracing: {error}\n")
            return _status_of(error)
        dead = lib.shim_kernel_has_struct(b"trace_event_raw_sched_process_exit")
        form = "says which thread is the last" if dead else "does not say which thread is the last"
        _stdout().write(
            f"ok      tracing: ring buffer and programs work; the exit tracepoint {form}"
            f"{'; without bpf_loop()' if old else ''}\n"
        )
    return status


def _version() -> str:
    from pybootstrap import __version__
    from pybootstrap.engine._native import ffi, lib

    return f"bootstrap {__version__} (libbpf {ffi.string(lib.shim_libbpf_version()).decode()})\n"


# ---- Output ----


def _open_output(path: str | None) -> _Output:
    """The file, or standard output."""
    if path is None:
        return _stdout()
    # Non-blocking, or a FIFO that nobody reads would hold us here; _Output can deal with that.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return _Output(os.open(path, flags, 0o666), "utf-8")
    except OSError as error:
        raise _OutputError(f"{path}: {error.strerror}") from None


_PIECE = 4096  # PIPE_BUF: what a pipe that polls as writable takes, unless others write to it too
_PATIENCE_S = 1  # with readers that take nothing, once we were told to end
_TICK_S = 0.25

_give_up_at: float | None = None  # time.monotonic() when that is over
_hurry = False  # we were told twice
_writing = False


def _told_to_end() -> None:
    """A signal to end came: from here on patience has an end, and a blocked write(2) is ended."""
    global _give_up_at, _hurry  # noqa: PLW0603
    _hurry = _give_up_at is not None
    _give_up_at = time.monotonic() + (0 if _hurry else _PATIENCE_S)
    if not _hurry:
        signal.signal(signal.SIGALRM, _tick)
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)


def _tick(*_: object) -> None:
    """Interrupts a write to a terminal or a shared pipe, which may block although it polls."""
    if _writing and _out_of_patience():
        raise _OutputError("its reader takes nothing")


def _out_of_patience() -> bool:
    return _give_up_at is not None and time.monotonic() >= _give_up_at


def _be_patient_again() -> None:
    """A reader has taken something after all."""
    global _give_up_at  # noqa: PLW0603
    if not _hurry:
        _give_up_at = time.monotonic() + _PATIENCE_S


class _Output:
    """A descriptor that is written to at once; in pieces that do not block, unless it is a file.

    Python's own file objects lose data when a signal interrupts a blocked write, and when somebody
    has made the pipe non-blocking; and they do not return while the reader takes nothing.
    """

    def __init__(self, fd: int, encoding: str) -> None:
        self._fd = fd
        self._encoding = encoding
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._is_terminal = os.isatty(fd)
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        self._poll = poller.poll

    def write(self, text: str) -> None:
        """Raises BrokenPipeError when nobody reads any more, _OutputError when it takes no more."""
        data = text.encode(self._encoding, "backslashreplace")
        try:
            while data:
                if self._is_file or self._poll(_TICK_S * 1000):
                    data = data[self._write_some(data) :]
                elif _out_of_patience():
                    raise _OutputError("its reader takes nothing")
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.errno == EIO and self._is_terminal:  # it was closed
                raise BrokenPipeError from None
            raise _OutputError(error.strerror) from None

    def _write_some(self, data: bytes) -> int:
        global _writing  # noqa: PLW0603
        _writing = True
        try:
            written = os.write(self._fd, data if self._is_file else data[:_PIECE])
        except BlockingIOError:  # non-blocking, and somebody else has filled it meanwhile
            return 0
        finally:
            _writing = False
        if _give_up_at is not None:
            _be_patient_again()
        return written


def _stdout() -> _Output:
    if sys.stdout is None:
        raise _OutputError("standard output is closed")
    return _Output(sys.stdout.fileno(), sys.stdout.encoding)


def _forget_stdout() -> None:
    """Keeps the interpreter from failing again when it flushes standard output at its end."""
    if sys.stdout is not None:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def _say(message: object) -> None:
    """A line to standard error; nothing where nobody can take it."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, _OutputError):
        _Output(sys.stderr.fileno(), "utf-8").write(f"bootstrap: {message}\n")


def _fail(message: object, status: int) -> int:
    _say(message)
    return status
