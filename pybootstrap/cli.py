# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command `bootstrap`: arguments in, lines out."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine.output import (
    Output,
    OutputError,
    forget_stdout,
    open_output,
    say,
    stdout,
    told_to_end,
)

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from pybootstrap.engine.errors import BootstrapError
    from pybootstrap.engine.render import Renderer
    from pybootstrap.tracer import Stats, Tracer

# Exit statuses beside 0, and 2 for usage: sysexits.h has the names.
EX_FAILURE = 1
EX_UNAVAILABLE = 69
EX_IOERR = 74
EX_NOPERM = 77

_NAME = "bootstrap"


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
            stdout().write(_version())
            return 0
        return _check() if options.check else _trace(options)
    except BrokenPipeError:  # whoever read our output has seen enough
        forget_stdout()
    except OutputError as error:
        forget_stdout()
        return _fail(f"cannot write the output: {error}", EX_IOERR)
    except errors.BootstrapError as error:
        unseen = getattr(error, "log", "") and not options.verbose
        more = "; -v shows the whole log" if unseen else ""
        return _fail(f"{error}{more}", _status_of(error))
    return 0


def _status_of(error: BootstrapError) -> int:
    from pybootstrap.engine import errors
    from pybootstrap.engine.options import EX_USAGE

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
        stdout()  # is there any?
    invoker = invoking_account(os.environ)
    become = invoker if options.run_as is None else account(options.run_as)
    renderer = _make_renderer(options)
    tracer = _make_tracer(options)
    # Whatever is imported must be by now: the user we switch to may not be able to read it.

    def end(*_: object) -> None:
        told_to_end()
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
                output = open_output(options.output)
            give_up(become)
            output.write(renderer.header)
            _print_events(tracer, renderer, output, options.count or sys.maxsize)
    except OutputError:
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


def _print_events(tracer: Tracer, renderer: Renderer, output: Output, left: int) -> None:
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


def _print_with_losses(lines: list[Any], renderer: Renderer, output: Output) -> int:
    """Prints lines with losses between them; returns how many losses that were."""
    from pybootstrap.events import LostEvent

    losses = [line for line in lines if isinstance(line, LostEvent)]
    output.write("".join(renderer.lost(x) if isinstance(x, LostEvent) else x for x in lines))
    for loss in losses:
        say(_NAME, f"{loss.count} events lost: the ring buffer was full")
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
        say(
            _NAME,
            f"{lost} of {stats.produced + stats.missed} events were lost: {stats.lost} found the "
            f"ring buffer full (see --ring-size){left_out}",
        )
    if stats.untracked:
        say(
            _NAME,
            f"{stats.untracked} programs could not be remembered (see --max-processes): "
            "their exits count from the start of the process",
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
        stdout().write(f"{'ok' if check.ok else 'NOT OK':<7} {check.name}: {check.detail}\n")
        if not check.ok:
            status = status or (EX_NOPERM if check.lacks == "privilege" else EX_UNAVAILABLE)
    if status == 0:
        try:
            with Tracer() as tracer:
                old = tracer._old
        except BootstrapError as error:
            stdout().write(f"NOT OK  tracing: {error}\n")
            return _status_of(error)
        dead = lib.shim_kernel_has_struct(b"trace_event_raw_sched_process_exit")
        form = "says which thread is the last" if dead else "does not say which thread is the last"
        stdout().write(
            f"ok      tracing: ring buffer and programs work; the exit tracepoint {form}"
            f"{'; without bpf_loop()' if old else ''}\n"
        )
    return status


def _version() -> str:
    from pybootstrap import __version__
    from pybootstrap.engine._native import ffi, lib

    return f"bootstrap {__version__} (libbpf {ffi.string(lib.shim_libbpf_version()).decode()})\n"


def _fail(message: object, status: int) -> int:
    say(_NAME, message)
    return status
