# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Writes the project of a new tool: python -m pybootstrap.engine.new NAME [DIR].

The project is a copy of template/, a working tool, with its name replaced. This needs only the
standard library, and nothing that was built.
"""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from pybootstrap.engine import options

TYPE_CHECKING = False  # as in _typing.py
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TEMPLATE = Path(__file__).with_name("template")
TEMPLATE_NAME = "mytool"
UNSET = b"\nPYBOOTSTRAP ?=\n"  # in its Makefile

# The tool's name becomes that of a package, a command, a distribution and a C source.
C_KEYWORDS = """auto break case char const continue default do double else enum extern float for
    goto if inline int long register restrict return short signed sizeof static struct switch
    typedef union unsigned void volatile while"""
IN_THE_PROJECT = ("bpf", "build", "dist", "setup", "tests")
IN_ITS_ENVIRONMENT = ("cffi", "pip", "pytest", "python", "python3", "setuptools")


class RefusedError(Exception):
    """The request cannot be met; the message is for the user."""


def check_name(name: str) -> None:
    """Raises RefusedError if this cannot be the name of a tool."""
    if not re.fullmatch("[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?", name):
        raise RefusedError(
            f"{name!r} is not a name for Python and C: use letters, digits and inner underscores"
        )
    if keyword.iskeyword(name) or name in C_KEYWORDS.split():
        raise RefusedError(f"{name!r} is a keyword of Python or C: choose another name")
    if name in IN_THE_PROJECT:
        raise RefusedError(f"{name!r} already has a meaning in every project: choose another name")
    if name in IN_ITS_ENVIRONMENT or is_module(name):
        raise RefusedError(f"{name!r} is already a Python module or command: choose another name")


def is_module(name: str) -> bool:
    """Whether `import` finds more than a directory of this name."""
    found = find_spec(name)
    return found is not None and found.origin is not None


def check_directory(directory: Path) -> None:
    """Raises RefusedError if it is not empty, OSError if it is not a directory."""
    if directory.exists() and any(directory.iterdir()):
        raise RefusedError(f"{directory} is not empty: name another directory")


def checkout() -> Path | None:
    """The checkout of pybootstrap that this file is in; None if it is installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "bpf/ring.bpf.h").is_file() else None


def project(name: str) -> Iterator[tuple[str, bytes]]:
    """The files of the project: path and contents."""
    pybootstrap = checkout()
    for path in sorted(TEMPLATE.rglob("*")):
        if not path.is_file() or "__pycache__" in path.parts:
            continue
        contents = path.read_bytes().replace(TEMPLATE_NAME.encode(), name.encode())
        if path.name == "Makefile" and pybootstrap:
            contents = contents.replace(UNSET, UNSET[:-1] + b" " + for_make(pybootstrap) + b"\n")
        yield str(path.relative_to(TEMPLATE)).replace(TEMPLATE_NAME, name), contents


def for_make(path: Path) -> bytes:
    """A path, quoted for a Makefile."""
    return bytes(path).replace(b"$", b"$$").replace(b"#", b"\\#")


def write(name: str, directory: Path) -> None:
    """Writes the project. Raises OSError."""
    for path, contents in project(name):
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 2 when nothing was written."""
    parser = options.make_parser(
        "python -m pybootstrap.engine.new", "Writes the project of a new tool."
    )
    parser.add_argument("name", metavar="NAME", help="name of the tool")
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", help="its directory, empty or new (default: NAME)"
    )
    given = parser.parse_args(argv)
    directory = Path(given.directory or given.name)
    try:
        check_name(given.name)
        check_directory(directory)
        write(given.name, directory)
    except RefusedError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write to {directory}: {error.strerror}")
    more = "" if checkout() else " PYBOOTSTRAP=..., a wheel or a checkout of pybootstrap"
    print(f"{given.name} is in {directory}; there: make run{more}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
