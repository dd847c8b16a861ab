# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command of a tool: arguments in, lines out, and an exit status."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time

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
    from pybootstrap.engine.report import Reporter
    from pybootstrap.engine.service import Service
    from pybootstrap.engine.tracer import Tracer

__all__ = ["main"]

# Exit statuses besides 0, and 2 for usage; named as in sysexits.h.
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
        make_parser: makes the parser, with `options.make_parser` and `options.add_common`. Messages
            begin with its `prog`.
        make_tracer: called with the parsed arguments and, by keyword, the engine's own settings:
            `max_latency_ms` (int), `verbose` (bool), and `ring_size` (int, bytes) if it was given.
            Returns a Tracer that is not started. It may raise SettingError: status 2.
        make_renderer: called with the parsed arguments; returns the renderer for text; None: a
            `FieldRenderer`. With `--json` a `JsonRenderer` is used instead.
        version: what `--version` prints after the name.
        argv: arguments, without the program's name; None: those of this process.

    The status is 0, 1 (the kernel refused the programs, or with `--strict` events were lost),
    2 (usage), 69 (the kernel lacks something, or the wheel is for another machine), 74 (the output
    cannot be written) or 77 (no privilege). A line explains every status but 0, on standard error
    or in the output of `--check`. Only `--help`, `--version` and invalid arguments raise
    SystemExit, with the status in it.

    Call it only in a process of its own, because it does not undo these: it handles SIGINT,
    SIGTERM, SIGHUP and SIGALRM, drops privileges, and exempts all objects that exist at the end
    from garbage collection.
    """
    # Before tracing there is nothing to undo, and a KeyboardInterrupt would print a traceback.
    _at_signals(lambda: os._exit(0))
    _handle_signals()
    # Everything made from here on is needed to the end, so a collection would find nothing. It
    # would take about 5 ms, some of that during imports and most of it when Python exits.
    gc.disable()
    status = 0
    try:
        parser = make_parser()
        parser.set_defaults(version=lambda: _print_version(parser.prog, version))
        given = parser.parse_args(argv)  # --help and --version print and exit
        status = _Command(parser.prog, version, given, make_tracer, make_renderer).run()
    except NoReaderError:
        forget_stdout()
    except OutputError as error:
        forget_stdout()
        say(parser.prog, f"cannot write the output: {error}")
        status = EX_IOERR
    except ImportError as error:
        from pybootstrap.engine.misfit import explain

        if not (sentence := explain(error)):
            raise
        say(parser.prog, sentence)
        status = EX_UNAVAILABLE
    finally:
        _at_signals(lambda: os._exit(status))
        # Python removes our handler when it exits; then SIGALRM would kill a slow exit.
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.freeze()
        gc.enable()
    return status


_end: Callable[[], object]  # called when a signal asks us to end


def _at_signals(function: Callable[[], object]) -> None:
    global _end  # noqa: PLW0603
    _end = function


def _handle_signals() -> None:
    """Installs handlers only once, because each call of signal.signal() takes about 15 us."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup(1) ignores it
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, lambda *_: _end())


class _Periodic:
    """Functions to call at intervals, by a loop that may come by late.

    Time is CLOCK_BOOTTIME: after the machine was suspended they are due with the next event.
    """

    def __init__(self) -> None:
        self._jobs: list[tuple[float, float, Callable[[], None]]] = []  # due, interval, function
        self._due = float("inf")  # the earliest of them

    def add(self, interval_s: float, function: Callable[[], None]) -> None:
        """Calls the function after each interval."""
        due = time.clock_gettime(time.CLOCK_BOOTTIME) + interval_s
        self._jobs.append((due, interval_s, function))
        self._due = min(self._due, due)

    def seconds_left(self) -> float | None:
        """Until a function is due; None if there is none."""
        if not self._jobs:
            return None
        return max(0.0, self._due - time.clock_gettime(time.CLOCK_BOOTTIME))

    def run(self) -> None:
        """Calls what is due. What was late is called once, and next after a whole interval."""
        if not self._jobs or time.clock_gettime(time.CLOCK_BOOTTIME) < self._due:
            return
        jobs, self._jobs, self._due = self._jobs, [], float("inf")
        for due, interval, function in jobs:
            if due > time.clock_gettime(time.CLOCK_BOOTTIME):
                self._jobs.append((due, interval, function))
                self._due = min(self._due, due)
            else:
                function()
                self.add(interval, function)


class _Command:
    """A command with its arguments."""

    def __init__(
        self,
        name: str,
        version: str,
        given: argparse.Namespace,
        make_tracer: Callable[..., Tracer],
        make_renderer: Callable[[argparse.Namespace], Renderer] | None,
    ) -> None:
        self._name = name
        self._version = version
        self._given = given
        self._tracer_of = make_tracer
        self._renderer_of = make_renderer
        self._most = self._left = given.count or sys.maxsize  # events that it may still print
        self._left_written = self._most  # the same, as of the last batch that was written whole
        self._periodic = _Periodic()

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
        given = self._given
        if given.otlp is None:
            return self._make_line_renderer(tracer)
        from pybootstrap.engine.otlp import OtlpRenderer

        lines = self._make_line_renderer(tracer) if given.json or given.output else None
        return OtlpRenderer(self._name, given.otlp, tracer.events(), lines)

    def _make_line_renderer(self, tracer: Tracer) -> Renderer:
        if self._given.json:
            from pybootstrap.engine.names import Names, OtelNames
            from pybootstrap.engine.render_json import JsonRenderer

            names = OtelNames(self._name) if self._given.json == "otel" else Names()
            return JsonRenderer(tracer.events(), names)
        if self._renderer_of is None:
            from pybootstrap.engine.render import FieldRenderer

            return FieldRenderer(tracer.events())
        return self._renderer_of(self._given)

    def _trace(self) -> int:
        from pybootstrap.engine.privileges import account, acting_as, give_up, invoking_account

        given = self._given
        path = None if given.output == "-" else given.output
        if given.otlp is not None and not given.json and given.output is None:
            path = os.devnull
        if path is None:
            stdout()  # fails now if it is closed
        invoker = invoking_account(os.environ)
        become = invoker if given.run_as is None else account(given.run_as)
        tracer = self._make_tracer()
        renderer = self._make_renderer(tracer)
        reporter = self._make_reporter(tracer) if renderer.reports else None
        service = self._make_service()
        # All imports must be done by now: the user we switch to may not be able to read modules.

        def end() -> None:
            told_to_end()
            tracer.stop()

        _at_signals(end)
        gc.freeze()
        gc.enable()
        try:
            with tracer:
                with acting_as(invoker):  # even if --run-as names another user
                    output = open_output(path)
                give_up(become)
                if service is not None:
                    self._attend_to(service, tracer, output)
                output.write(renderer.header)
                tracer._watch_output(output.fileno())
                self._print_all(tracer, renderer, output, reporter)
        except OutputError:
            self._report(tracer, renderer)
            raise
        finally:
            if service is not None:
                service.stopping()
            for remark in renderer.close():
                self._say(remark)
        return self._report(tracer, renderer)

    def _make_reporter(self, tracer: Tracer) -> Reporter:
        from pybootstrap.engine.report import Reporter

        return Reporter(self._name, self._version, self._given, tracer)

    def _make_service(self) -> Service | None:
        address = os.environ.get("NOTIFY_SOCKET")
        if not address:
            return None
        from pybootstrap.engine.service import Service

        return Service(address, os.environ)

    def _attend_to(self, service: Service, tracer: Tracer, output: Output) -> None:
        """Says that tracing has begun and, if there is a watchdog, that the loop still reads.

        A reader that takes little or nothing is no reason to end tracing, because what is lost is
        counted. A write that poll(2) promised and that does not return is one, and so is anything
        else that keeps the loop from reading.
        """

        def alive(waits: bool = False) -> None:
            if not service.wants_sign():  # each piece of a write asks
                return
            lost = tracer.stats.lost
            wait = "; waiting for the reader of the output" if waits else ""
            service.alive(f"{self._written} events written, {lost} lost{wait}")

        try:
            service.ready()
        except OSError as error:
            self._say(f"cannot notify the service manager: {error.strerror or error}")
        if service.watchdog_s is not None:
            self._periodic.add(service.watchdog_s / 2, alive)
            output.on_wait = alive

    def _print_all(
        self, tracer: Tracer, renderer: Renderer, output: Output, reporter: Reporter | None
    ) -> None:
        """Prints the events, and the reports if there are any; counts what it could not write."""
        try:
            if reporter is None:
                self._print_events(tracer, renderer, output)
            else:
                self._print_with_reports(tracer, renderer, output, reporter)
        except OutputError as error:
            tracer._detach()
            stats = tracer.stats
            missing = stats.produced - stats.lost - (self._most - self._left_written)
            if missing == 0:
                raise
            raise OutputError(f"{error}; up to {missing} events are missing") from None

    def _print_with_reports(
        self, tracer: Tracer, renderer: Renderer, output: Output, reporter: Reporter
    ) -> None:
        """Prints the events, with the reports before, between and after them."""
        from contextlib import suppress

        from pybootstrap.engine.report import STATUS_S

        def status() -> None:
            output.write(renderer.status(reporter.report(self._written)))

        def end(reason: str) -> None:
            output.write(renderer.end(reporter.final(self._written, reason)))

        output.write(renderer.start(reporter.report(0)))
        self._periodic.add(STATUS_S, status)
        try:
            self._print_events(tracer, renderer, output)
        except (NoReaderError, OutputError):  # nothing more can be written
            raise
        except BaseException:
            with suppress(NoReaderError, OutputError):
                end("error")
            raise
        end("signal" if self._left else "count")

    @property
    def _written(self) -> int:
        return self._most - self._left

    def _print_events(self, tracer: Tracer, renderer: Renderer, output: Output) -> None:
        for lines in tracer._batches(renderer.kinds, self._periodic.seconds_left):
            if len(lines) > self._left:
                lines = _first(lines, self._left)  # noqa: PLW2901
            self._left -= len(lines)
            lines = renderer.take(lines)  # noqa: PLW2901
            try:
                text = "".join(lines)
            except TypeError:  # there are losses among them
                self._left += self._print_with_losses(lines, renderer, output)
            else:
                output.write(text)
            self._left_written = self._left
            if self._left == 0:
                break
            self._periodic.run()

    def _print_with_losses(self, lines: list[Any], renderer: Renderer, output: Output) -> int:
        """Prints lines with losses between them; returns the number of losses."""
        from pybootstrap.engine.decoder import LostEvent

        losses = [line for line in lines if isinstance(line, LostEvent)]
        output.write("".join(renderer.lost(x) if isinstance(x, LostEvent) else x for x in lines))
        for loss in losses:
            message = f"{loss.count} events lost: the ring buffer was full"
            say(self._name, message, wait=False)  # the output and the final report have it, too
        return len(losses)

    def _report(self, tracer: Tracer, renderer: Renderer) -> int:
        """Reports what the output lacks; returns the exit status."""
        stats = tracer.stats
        lost = stats.lost + stats.missed
        if lost:
            left_out = f", the kernel skipped at most {stats.missed}" if stats.missed else ""
            self._say(
                f"{lost} of {stats.produced + stats.missed} events were lost: {stats.lost} found "
                f"the ring buffer full (see --ring-size){left_out}"
            )
        for remark in tracer.closing_remarks(stats):
            self._say(remark)
        return EX_FAILURE if self._given.strict and lost + renderer.undelivered else 0

    def _check(self) -> int:
        """Prints the result of each check; returns 0 if this machine can trace."""
        _at_signals(lambda: os._exit(EX_FAILURE))  # an interrupted check proves nothing
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
