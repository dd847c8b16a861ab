# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Shell completions of a command, made from its parser.

    python -m pybootstrap.engine.completions mytool:make_parser DIRECTORY

writes a script for each shell of FILES below DIRECTORY. shtab makes the scripts: install it where
this runs. Where the scripts are used they need nothing; they do not start the command.
"""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentParser
from pathlib import Path

TYPE_CHECKING = False  # as in _typing.py
if TYPE_CHECKING:
    from collections.abc import Sequence

FILES = {
    "bash": "share/bash-completion/completions/{}",
    "zsh": "share/zsh/site-functions/_{}",
    "fish": "share/fish/vendor_completions.d/{}.fish",
}
"""Where the shells look for scripts, below /usr; bash and zsh also below /usr/local."""

SIZES = " ".join([*(f"{64 << n}K" for n in range(4)), *(f"{1 << n}M" for n in range(10)), "1G"])

# How each shell completes the value of an option, by the option's metavar. bash expands the words
# of compgen -W, so they must not contain the name of a process or a file, which can be $(command).
VALUES = {
    "CGROUP": {
        "bash": "_pybootstrap_cgroup_dirs",
        "zsh": "_pybootstrap_cgroups",
        "fish": "(_pybootstrap_cgroups)",
    },
    "FILE": {
        "bash": "_pybootstrap_files",
        "zsh": "_files",
        "fish": "(__fish_complete_path (_pybootstrap_value))",
    },
    "PID": {
        "bash": "_pybootstrap_pids",
        "zsh": "_pybootstrap_pids",
        "fish": "(__fish_complete_pids)",
    },
    "SIZE": {"bash": "_pybootstrap_sizes", "zsh": f"({SIZES})", "fish": SIZES},
    "USER": {"bash": "_pybootstrap_users", "zsh": "_users", "fish": "(__fish_complete_users)"},
}

ORIGIN = (
    "# Most of this script is shtab's, under the Mozilla Public License 2.0 (mozilla.org/MPL/2.0)."
)

FUNCTIONS = {
    # By "files" and "dirs" in a name, shtab's code knows that bash must quote and add slashes.
    "bash": f"""\
{ORIGIN}
_pybootstrap_cgroup_dirs() {{ compgen -d -- "${{1:-/sys/fs/cgroup/}}"; }}
_pybootstrap_files() {{ compgen -f -- "$1"; }}
_pybootstrap_pids() {{ compgen -W "$(cd /proc && echo [0-9]*)" -- "$1"; }}
_pybootstrap_sizes() {{ compgen -W "{SIZES}" -- "$1"; }}
_pybootstrap_users() {{ compgen -u -- "$1"; }}
""",
    "zsh": f"""\
{ORIGIN}
_pybootstrap_cgroups() {{
  [[ -n $PREFIX ]] || PREFIX=/sys/fs/cgroup/
  _files -/
}}
_pybootstrap_pids() {{
  local expl
  _wanted pids expl 'process id' compadd -- /proc/<->(N:t)
}}
""",
    "fish": f"""\
{ORIGIN}
function _pybootstrap_value -d 'the word to complete, without --option='
  commandline -ct | string replace -r -- '^--[^=]*=' ''
end
function _pybootstrap_cgroups
  set -l value (_pybootstrap_value)
  test -n "$value"; or set value /sys/fs/cgroup/
  __fish_complete_directories $value
end
""",
}


def make(parser: ArgumentParser, shell: str) -> str:
    """The script of a command for one of FILES. Marks the parser's actions for shtab."""
    try:
        import shtab
    except ImportError:
        sys.exit("pybootstrap: the build needs shtab, for shell completions: pip install shtab")

    for action in parser._actions:
        if action.metavar in VALUES:
            action.complete = VALUES[action.metavar]  # type: ignore[attr-defined]
    return shtab.complete(parser, shell, preamble=FUNCTIONS[shell]).rstrip() + "\n"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    if len(argv) != 2 or ":" not in argv[0]:
        print("usage: python -m pybootstrap.engine.completions MODULE:FUNCTION DIRECTORY")
        return 2
    module, _, function = argv[0].partition(":")
    parser = getattr(importlib.import_module(module), function)()
    for shell, name in FILES.items():
        path = Path(argv[1], name.format(parser.prog))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(parser, shell))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
