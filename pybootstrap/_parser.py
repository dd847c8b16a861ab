# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command line of `bootstrap`: what it takes, and what is wrong with what it was given.

The man page is made from `make_parser()` before the extension module exists.
"""

from __future__ import annotations

from pybootstrap.engine import options
from pybootstrap.engine.options import MAX_MS, whole_number

TYPE_CHECKING = False  # as in _typing.py
if TYPE_CHECKING:
    import argparse

DESCRIPTION = """\
Shows every process of the machine that starts a program (EXEC) and every process that ends (EXIT),
as it happens, with its exit status and how long it ran.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command; also what the man page is made from."""
    parser = options.make_parser("bootstrap", DESCRIPTION)
    parser.add_argument(
        "-d",
        "--duration",
        metavar="MS",
        type=whole_number(1, MAX_MS, " of milliseconds"),
        help="print only processes that end after running at least MS milliseconds (and no EXEC)",
    )
    parser.add_argument(
        "-a",
        "--args",
        action="store_true",
        help="print the whole command line, on EXIT too",
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
        "--max-processes",
        metavar="N",
        type=whole_number(1, 2**24, ""),
        help="remember up to N running processes for their exit (default 32768; each takes about "
        "100 bytes of kernel memory, 150 with arguments)",
    )
    options.add_common(parser)
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    """Each may be given several times, for processes that match any of its values."""
    pid = whole_number(1, 2**31 - 1, "")
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
