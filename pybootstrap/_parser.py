# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command line of `bootstrap`: what it takes, and what is wrong with what it was given.

This module imports the standard library only: the man page is made from `make_parser()` before the
extension module exists.
"""

from __future__ import annotations

import argparse
import re

TYPE_CHECKING = False  # as in _typing.py
if TYPE_CHECKING:
    from typing import NoReturn

DESCRIPTION = """\
Shows every process of the machine that starts a program (EXEC) and every process that ends (EXIT),
as it happens, with its exit status and how long it ran.
"""

EX_USAGE = 2  # what argparse uses
MAX_MS = 2**63 // 10**6  # what fits into the kernel's nanoseconds


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, not the usage first."""
        self.exit(EX_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _whole_number(low: int, high: int, what: str) -> type[int]:
    """An argparse type: decimal digits only, from low to high."""

    def parse(text: str) -> int:
        if re.fullmatch("[0-9]+", text, re.ASCII) and low <= int(text[:20]) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number{what} from {low} to {high}"
        )

    return parse  # type: ignore[return-value]


def _ring_size(text: str) -> int:
    """An argparse type: bytes, with K, M or G; what `Tracer` takes of them is its own matter."""
    match = re.fullmatch("([0-9]{1,10})([KMG]?)", text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512K or 4M")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command; also what the man page is made from."""
    parser = _Parser(
        prog="bootstrap",
        description=DESCRIPTION,
        allow_abbrev=False,
        # With a width of its own it need not import what finds out the terminal's.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=80),
    )
    parser.add_argument(
        "-d",
        "--duration",
        metavar="MS",
        type=_whole_number(1, MAX_MS, " of milliseconds"),
        help="print only processes that end after running at least MS milliseconds (and no EXEC)",
    )
    parser.add_argument(
        "-a",
        "--args",
        action="store_true",
        help="print the whole command line, on EXIT too",
    )
    parser.add_argument(
        "-j",
        "--json",
        action="store_true",
        help="print each event as one JSON object on a line, with every field",
    )
    parser.add_argument(
        "-l",
        "--long",
        action="store_true",
        help="add columns: user id, CPU time and peak memory",
    )
    parser.add_argument(
        "-x",
        "--failed",
        action="store_true",
        help="print only exits with a status other than 0 or by a signal (and no EXEC)",
    )
    _add_filters(parser)
    parser.add_argument(
        "-n",
        "--count",
        metavar="N",
        type=_whole_number(1, 2**63, ""),
        help="end after N events",
    )
    parser.add_argument(
        "--latency",
        metavar="MS",
        type=_whole_number(0, MAX_MS, " of milliseconds"),
        default=100,
        help="let an event wait up to MS milliseconds for others (default %(default)s): one batch "
        "of many costs far less than many of one; 0 prints each at once",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write to FILE, which is opened as the invoking user"
    )
    parser.add_argument(
        "--strict", action="store_true", help="end with status 1 if any event was lost"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="say whether this machine can trace, and what to do if not, and end",
    )
    parser.add_argument(
        "--run-as",
        metavar="USER",
        help="become this user once tracing has begun (default: who called sudo)",
    )
    parser.add_argument(
        "--ring-size",
        metavar="SIZE",
        type=_ring_size,
        help="size of the ring buffer, such as 512K or 4M: a power of two, 64K to 1G (default 2M)",
    )
    parser.add_argument(
        "--max-processes",
        metavar="N",
        type=_whole_number(1, 2**24, ""),
        help="remember up to N running processes for their exit (default 32768; each takes about "
        "100 bytes of kernel memory, 150 with arguments)",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="print what libbpf and the kernel's verifier say, to standard error",
    )
    parser.add_argument("-V", "--version", action="store_true", help="print the version and end")
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    """Each may be given several times, for processes that match any of its values."""
    pid = _whole_number(1, 2**31 - 1, "")
    for flags, metavar, value, meaning in (
        (("-p", "--pid"), "PID", pid, "print only this process"),
        (("--ppid",), "PID", pid, "print only children of this process"),
        (("-u", "--user"), "USER", str, "print only processes of this user, a name or a number"),
        (("-c", "--comm"), "NAME", str, "print only processes with this command name"),
        (("--cgroup",), "PATH", str, "print only processes in this cgroup (v2) or below"),
    ):
        parser.add_argument(
            *flags, metavar=metavar, type=value, action="append", default=[], help=meaning
        )
