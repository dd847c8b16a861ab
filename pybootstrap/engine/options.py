# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command line of a tool: the options that all tools have, and types for a tool's own.

Imports only the standard library, because man pages are made from parsers before the extension
module exists.
"""

from __future__ import annotations

import argparse
import re

TYPE_CHECKING = False  # as in _typing.py
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

__all__ = ["EX_USAGE", "MAX_MS", "add_common", "make_parser", "whole_number"]

EX_USAGE = 2  # what argparse uses
MAX_MS = 2**63 // 10**6  # so that ns fit into 63 bits
MIN_RING, MAX_RING = 64 << 10, 1 << 30  # bytes, as in shim.h


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one line, without the usage."""
        self.exit(EX_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")

    def print_help(self, file: Any = None) -> None:
        """Prints without a buffer, so that a failure is noticed. Raises the errors of `Output`."""
        if file is not None:
            super().print_help(file)
            return
        from pybootstrap.engine.output import stdout

        stdout().write(self.format_help())


class _PrintVersion(argparse.Action):
    """Acts at once, like --help, whatever the other arguments are."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print_version: Callable[[], None] = self.default
        print_version()
        parser.exit()


def whole_number(low: int, high: int, what: str) -> type[int]:
    """A `type` for `add_argument`: an int from low to high, written in decimal digits only.

    `what` completes the error message "a whole number{what} from ...".
    """

    def parse(text: str) -> int:
        if re.fullmatch("[0-9]+", text, re.ASCII) and low <= int(text[:20]) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number{what} from {low} to {high}"
        )

    return parse  # type: ignore[return-value]


def _ring_size(text: str) -> int:
    """An argparse type: bytes, optionally with K, M or G, within the limits of `Tracer`."""
    match = re.fullmatch("([0-9]{1,10})([KMG]?)", text, re.ASCII)
    size = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else 0
    if size & (size - 1) or not MIN_RING <= size <= MAX_RING:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a power of two from 64K to 1G, such as 512K or 4M"
        )
    return size


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser for the command `prog`, without options yet; it reports errors in one line."""
    return _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        # With a fixed width argparse does not import shutil to find the terminal's.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=80),
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every command has: see `command.main`."""
    parser.add_argument(
        "-j",
        "--json",
        action="store_true",
        help="print each event as one JSON object on a line, with every field",
    )
    # An option of its own: if --json took a value, `--json FILE` and `-ja` would lose theirs to it.
    parser.add_argument(
        "--json=otel",
        dest="json",
        action="store_const",
        const="otel",
        help="the same with the names of OpenTelemetry's semantic conventions",
    )
    parser.add_argument(
        "-n",
        "--count",
        metavar="N",
        type=whole_number(1, 2**63, ""),
        help="end after N events",
    )
    parser.add_argument(
        "--latency",
        metavar="MS",
        type=whole_number(0, MAX_MS, " of milliseconds"),
        default=100,
        help="let an event wait up to MS milliseconds for others (default %(default)s), because "
        "one batch of many costs far less than many of one; 0 prints each event at once",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write to FILE, which is opened as the invoking user"
    )
    parser.add_argument(
        "--otlp",
        metavar="URL",
        help="send each event as an OpenTelemetry log record to the receiver at URL, such as "
        "http://collector:4318; print nothing, unless -j, --json=otel or -o asks for it",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="end with status 1 if any event was lost, or not delivered by --otlp",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check whether this machine can trace, say what to do if not, and end",
    )
    parser.add_argument(
        "--run-as",
        metavar="USER",
        help="become this user once tracing has begun (default: the user who called sudo)",
    )
    parser.add_argument(
        "--ring-size",
        metavar="SIZE",
        type=_ring_size,
        help="size of the ring buffer, such as 512K or 4M: a power of two, 64K to 1G (default 2M)",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="print the messages of libbpf and the kernel's verifier to standard error",
    )
    parser.add_argument(
        "-V", "--version", action=_PrintVersion, nargs=0, help="print the version and end"
    )
