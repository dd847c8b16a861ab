# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command `bootstrap`: its options, and the Tracer and renderer that they ask for.

Nothing is imported before it is needed, because the man page is made from `make_parser()` before
the extension module exists, and because `main()` handles a signal during imports.
"""

from __future__ import annotations

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap._version import __version__

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from pybootstrap.engine.render import Renderer
    from pybootstrap.tracer import Tracer


DESCRIPTION = """\
Shows every process of the machine that starts a program (EXEC) and every process that ends (EXIT),
as it happens, with its exit status and how long it ran.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command; the man page is made from it, too."""
    from pybootstrap.engine import options

    parser = options.make_parser("bootstrap", DESCRIPTION)
    parser.add_argument(
        "-d",
        "--duration",
        metavar="MS",
        type=options.whole_number(1, options.MAX_MS, " of milliseconds"),
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
        type=options.whole_number(1, 2**24, ""),
        help="remember up to N running processes for their exit (default 32768; each takes about "
        "100 bytes of kernel memory, 150 with arguments)",
    )
    options.add_common(parser)
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    """Adds options that may be given several times, for processes that match any of the values."""
    from pybootstrap.engine import options

    pid = options.whole_number(1, 2**31 - 1, "")
    for flags, metavar, value, meaning in (
        (("-p", "--pid"), "PID", pid, "print only this process"),
        (("--ppid",), "PID", pid, "print only children of this process"),
        (("-u", "--user"), "USER", str, "print only processes of this user, a name or a number"),
        (("-c", "--comm"), "NAME", _comm, "print only processes with this command name"),
        (("--cgroup",), "CGROUP", str, "print only processes in this cgroup (v2) or below"),
    ):
        parser.add_argument(
            *flags, metavar=metavar, type=value, action="append", default=[], help=meaning
        )


def _comm(text: str) -> str:
    """An argparse type: not empty. A process can have an empty name, but nobody looks for it."""
    if not text:
        from argparse import ArgumentTypeError

        raise ArgumentTypeError("a command name is needed")
    return text


def _user(text: str) -> int | str:
    """A user id or a name; no id has more than 10 digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else text


def make_tracer(given: argparse.Namespace, **common: Any) -> Tracer:
    """The Tracer that these arguments ask for; `common` has the settings of `engine.Tracer`.

    Raises SettingError for arguments that do not go together.
    """
    from pybootstrap.engine.errors import SettingError
    from pybootstrap.tracer import Tracer

    if given.json and given.long:
        raise SettingError("--long adds columns to text: leave it out, --json has every field")
    if given.max_processes is not None:
        common["max_processes"] = given.max_processes
    return Tracer(
        min_duration_ms=given.duration or 0,
        args=given.args or given.json or given.otlp or given.check,  # check everything
        pids=given.pid,
        ppids=given.ppid,
        users=[_user(text) for text in given.user],
        comms=given.comm,
        cgroups=given.cgroup,
        failed=given.failed,
        **common,
    )


def make_renderer(given: argparse.Namespace) -> Renderer:
    """The renderer for text that these arguments ask for."""
    from pybootstrap.render import TextRenderer

    return TextRenderer(args=given.args, long=given.long)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. `argv` is without the program's name.

    For a process of its own: see `pybootstrap.engine.command.main`.
    """
    try:
        from pybootstrap.engine import command

        return command.main(make_parser, make_tracer, make_renderer, version=__version__, argv=argv)
    except KeyboardInterrupt:  # during the import
        return 0
