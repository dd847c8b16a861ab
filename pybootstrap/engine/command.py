# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command of a tool: arguments in, lines out, and an exit status."""

from __future__ import annotations

import gc
import os
import signal
import sys

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine.output import (
    NoReaderError,
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
    from collections.abc import Sequence
    from typing import Any, Callable

    from pybootstrap.engine.errors import BootstrapError
    from pybootstrap.engine.render import Renderer
    from pybootstrap.engine.tracer import Tracer

__all__ = ["main"]

# Exit statuses beside 0, and 2 for usage: sysexits.h has the names.
EX_FAILURE = 1
EX_UNAVAILABLE = 69
EX_IOERR = 74
EX_NOPERM = 77


def main(
    make_parser: Callable[[], argparse.ArgumentParser],
    make_tracer: Callable[..., Tracer],
    make_renderer: Callable[[argparse.Namespace], Renderer] | None = None,
    *,
    version: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Runs the command of a tool until a signal, a closed pipe or `-n` ends it; returns its status.

    Args:
        make_parser: makes the parser, with `options.make_parser` and `options.add_common`. Its
            `prog` is the name in messages.
        make_tracer: called with the parsed arguments, and by keyword what a Tracer of the engine
            takes: `max_latency_ms` (int), `verbose` (bool), and `ring_size` (int, bytes) if it was
            given. Returns a Tracer that was not started. It may raise SettingError: status 2.
        make_renderer: called with the parsed arguments; returns what makes lines of text of the
            records; None: a `FieldRenderer`. With `--json` a `JsonRenderer` does.
        version: what `--version` says after the name.
        argv: arguments, without the program's name; None: those of this process.

    The status is 0, 1 (the kernel refused the programs, or with `--strict` events were lost),
    2 (usage), 69 (the kernel lacks something), 74 (the output cannot be written) or 77 (no
    privilege); all but 0 are explained by one line on standard error. Only `--help`, `--version`
    and arguments that make no sense raise SystemExit, with the status in it.

    It is for a process of its own: it handles SIGINT, SIGTERM, SIGHUP and SIGALRM, gives up
    privileges, and keeps what exists at the end out of garbage collection, all for good.
    """
    # Before tracing there is nothing to undo, and a KeyboardInterrupt would show somewhere.
    _at_signals(lambda: os._exit(0))
    _handle_signals()
    # What is made from here on is needed to the end. So there is nothing to collect, but looking
    # for it would take some 5 ms: a part of that during imports, most of it when Python ends.
    gc.disable()
    status = 0
    try:
        parser = make_parser()
        parser.set_defaults(version=lambda: _print_version(parser.prog, version))
        given = parser.parse_args(argv)  # --help and --version write, and end
        status = _Command(parser.prog, given, make_tracer, make_renderer).run()
    except NoReaderError:
        forget_stdout()
    except OutputError as error:
        forget_stdout()
        say(parser.prog, f"cannot write the output: {error}")
        status = EX_IOERR
    finally:
        _at_signals(lambda: os._exit(status))
        # When Python ends, it takes our handler away, and SIGALRM would kill a slow end.
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.freeze()
        gc.enable()
    return status


_end: Callable[[], object]  # what a signal to end does


def _at_signals(function: Callable[[], object]) -> None:
    global _end  # noqa: PLW0603
    _end = function


def _handle_signals() -> None:
    """Once, because each call of signal.signal() takes some 15 us."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup(1) has it
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, lambda *_: _end())


class _Command:
    """A command with its arguments."""

    def __init__(
        self,
        name: str,
        given: argparse.Namespace,
        make_tracer: Callable[..., Tracer],
        make_renderer: Callable[[argparse.Namespace], Renderer] | None,
    ) -> None:
        self._name = name
        self._given = given
        self._tracer_of = make_tracer
        self._renderer_of = make_renderer

    def run(self) -> int:
        from pybootstrap.engine.errors import BootstrapError

        try:
            return self._check() if self._given.check else self._trace()
        except BootstrapError as error:
            unseen = getattr(error, "log", "") and not self._given.verbose
            self._say(f"{error}{'; -v shows the whole log' if unseen else ''}")
            return _status_of(error)

    def _make_tracer(self) -> Tracer:
        given = self._given
        common = {"max_latency_ms": given.latency, "verbose": given.verbose}
        if given.ring_size is not None:
            common["ring_size"] = given.ring_size
        return self._tracer_of(given, **common)

    def _make_renderer(self, tracer: Tracer) -> Renderer:
        if self._given.json:
            from pybootstrap.engine.render_json import JsonRenderer

            return JsonRenderer(tracer.events())
        if self._renderer_of is None:
            from pybootstrap.engine.render import FieldRenderer

            return FieldRenderer(tracer.events())
        return self._renderer_of(self._given)

    def _trace(self) -> int:
        from pybootstrap.engine.privileges import account, acting_as, give_up, invoking_account

        given = self._given
        path = None if given.output == "-" else given.output
        if path is None:
            stdout()  # is there any?
        invoker = invoking_account(os.environ)
        become = invoker if given.run_as is None else account(given.run_as)
        tracer = self._make_tracer()
        renderer = self._make_renderer(tracer)
        # Whatever is imported must be by now: the user we switch to may not be able to read it.

        def end() -> None:
            told_to_end()
            tracer.stop()

        _at_signals(end)
        gc.freeze()
        gc.enable()
        try:
            with tracer:
                with acting_as(invoker):  # whoever the command becomes
                    output = open_output(path)
                give_up(become)
                output.write(renderer.header)
                tracer._watch_output(output.fileno())
                self._print_events(tracer, renderer, output)
        except OutputError:
            self._report(tracer)
            raise
        return self._report(tracer)

    def _print_events(self, tracer: Tracer, renderer: Renderer, output: Output) -> None:
        left = self._given.count or sys.maxsize
        for lines in tracer._batches(renderer.kinds):
            if len(lines) > left:
                lines = _first(lines, left)  # noqa: PLW2901
            left -= len(lines)
            try:
                text = "".join(lines)
            except TypeError:  # losses among them
                left += self._print_with_losses(lines, renderer, output)
            else:
                output.write(text)
            if left == 0:
                break

    def _print_with_losses(self, lines: list[Any], renderer: Renderer, output: Output) -> int:
        """Prints lines with losses between them; returns how many losses that were."""
        from pybootstrap.engine.decoder import LostEvent

        losses = [line for line in lines if isinstance(line, LostEvent)]
        output.write("".join(renderer.lost(x) if isinstance(x, LostEvent) else x for x in lines))
        for loss in losses:
            self._say(f"{loss.count} events lost: the ring buffer was full")
        return len(losses)

    def _report(self, tracer: Tracer) -> int:
        """Says what is missing in the output; returns the exit status."""
        stats = tracer.stats
        lost = stats.lost + stats.missed
        if lost:
            left_out = f", the kernel left out at most {stats.missed}" if stats.missed else ""
            self._say(
                f"{lost} of {stats.produced + stats.missed} events were lost: {stats.lost} found "
                f"the ring buffer full (see --ring-size){left_out}"
            )
        for remark in tracer.closing_remarks(stats):
            self._say(remark)
        return EX_FAILURE if self._given.strict and lost else 0

    def _check(self) -> int:
        """Prints what is and what is not as it must be; 0 when this machine can trace."""
        _at_signals(lambda: os._exit(EX_FAILURE))  # which says nothing of the machine
        from pybootstrap.engine.check import surroundings
        from pybootstrap.engine.errors import BootstrapError

        status = 0
        for check in surroundings():
            stdout().write(f"{'ok' if check.ok else 'NOT OK':<7} {check.name}: {check.detail}\n")
            if not check.ok:
                status = status or (EX_NOPERM if check.lacks == "privilege" else EX_UNAVAILABLE)
        if status == 0:
            tracer = self._make_tracer()
            try:
                with tracer:
                    remark = tracer.check_remark()
            except BootstrapError as error:
                stdout().write(f"NOT OK  tracing: {error}\n")
                return _status_of(error)
            more = f"; {remark}" if remark else ""
            stdout().write(f"ok      tracing: ring buffer and programs work{more}\n")
        return status

    def _say(self, message: object) -> None:
        say(self._name, message)


def _print_version(name: str, version: str) -> None:
    from pybootstrap.engine._native import ffi, lib

    libbpf = ffi.string(lib.shim_libbpf_version()).decode()
    stdout().write(f"{name} {version} (libbpf {libbpf})\n")


def _first(lines: list[Any], count: int) -> list[Any]:
    """The first `count` lines, with the losses between them."""
    from pybootstrap.engine.decoder import LostEvent

    for index, line in enumerate(lines):
        if count == 0:
            return lines[:index]
        count -= not isinstance(line, LostEvent)
    return lines


def _status_of(error: BootstrapError) -> int:
    from pybootstrap.engine import errors
    from pybootstrap.engine.options import EX_USAGE

    statuses = (
        (errors.SettingError, EX_USAGE),
        (errors.PrivilegeError, EX_NOPERM),
        (errors.UnsupportedKernelError, EX_UNAVAILABLE),
    )
    return next((status for kind, status in statuses if isinstance(error, kind)), EX_FAILURE)
