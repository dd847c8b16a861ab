# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command line of `bootstrap`: what it takes, and what is wrong with what it was given.

This module imports the standard library only: the man page is made from `make_parser()` before the
extension module exists.
"""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

DESCRIPTION = """\
Shows every process of the machine that starts a program (EXEC) and every process that ends (EXIT),
as it happens, with its exit status and how long it ran.
"""

EX_USAGE = 2  # what argparse uses
MAX_DURATION_MS = 2**63 // 10**6  # what fits into the kernel's nanoseconds


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


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command; also what the man page is made from."""
    parser = _Parser(
        prog="bootstrap",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-d",
        "--duration",
        metavar="MS",
        type=_whole_number(1, MAX_DURATION_MS, " of milliseconds"),
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
        "-n",
        "--count",
        metavar="N",
        type=_whole_number(1, 2**63, ""),
        help="end after N events",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="print what libbpf and the kernel's verifier say, to standard error",
    )
    parser.add_argument("-V", "--version", action="store_true", help="print the version and end")
    return parser
