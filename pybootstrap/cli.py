# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command `bootstrap`: arguments in, lines out."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

from pybootstrap._parser import EX_USAGE, make_parser

if TYPE_CHECKING:
    import argparse

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
        else:
            _trace(options)
    except BrokenPipeError:  # whoever read our output has seen enough
        _forget_stdout()
    except _OutputError as error:
        _forget_stdout()
        return _fail(f"cannot write the output: {error}", EX_IOERR)
    except errors.PrivilegeError as error:
        return _fail(error, EX_NOPERM)
    except errors.UnsupportedKernelError as error:
        return _fail(error, EX_UNAVAILABLE)
    except errors.SettingError as error:
        return _fail(error, EX_USAGE)
    except errors.BootstrapError as error:
        return _fail(error, EX_FAILURE)
    return 0


def _trace(options: argparse.Namespace) -> None:
    from pybootstrap.tracer import Tracer

    if sys.stdout is None:
        raise _OutputError("standard output is closed")
    tracer = Tracer(
        min_duration_ms=options.duration or 0,
        args=options.args or options.json,
        pids=options.pid,
        ppids=options.ppid,
        users=[int(user) if user.isdecimal() else user for user in options.user],
        comms=options.comm,
        cgroups=options.cgroup,
        failed=options.failed,
        verbose=options.verbose,
        **({"max_processes": options.max_processes} if options.max_processes else {}),
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: tracer.stop())
    with tracer:
        _print_events(tracer, options)
    _report_losses(tracer.stats)


def _print_events(tracer: Tracer, options: argparse.Namespace) -> None:
    from pybootstrap.events import LostEvent
    from pybootstrap.render import TextRenderer, render_json

    render: Callable[[list[Event]], str] = render_json
    if not options.json:
        text = TextRenderer(args=options.args, long=options.long)
        render = text.render
        _write(text.header)
    left = options.count or sys.maxsize
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


def _report_losses(stats: Stats) -> None:
    if stats.lost or stats.missed:
        _say(
            f"of {stats.produced} events {stats.lost} were lost because the ring buffer was full; "
            f"the kernel skipped {stats.missed} more"
        )
    if stats.untracked:
        _say(f"{stats.untracked} processes could not be remembered: their exits count from start")


def _version() -> str:
    from pybootstrap import __version__
    from pybootstrap._native import ffi, lib

    return f"bootstrap {__version__} (libbpf {ffi.string(lib.shim_libbpf_version()).decode()})\n"


# ---- Output ----


def _write(text: str) -> None:
    """Writes to standard output and flushes, so that a reader at the other end sees it at once."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _OutputError(error.strerror) from None


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
