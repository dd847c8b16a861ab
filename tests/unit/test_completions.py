# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What bash, zsh and fish offer with the scripts that the build makes. Each shell really runs."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pybootstrap.cli import make_parser
from pybootstrap.engine import completions, options
from tests.support import DEADLINE_S

SHARE = Path(__file__).resolve().parents[2] / "build/share"
SYSTEM = "/usr/local/share:/usr/share"
OPTIONS = {text for action in make_parser()._actions for text in action.option_strings}

# Calls what bash-completion finds for a command, as bash does, to complete the last of these words.
BASH = """\
. /usr/share/bash-completion/bash_completion
COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_completion_loader "$1"
function=$(complete -p "$1")
function=${function#*-F }
"${function%% *}" "$1" "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
# Control-X writes down the line and ends the shell.
BASHRC = """\
. /usr/share/bash-completion/bash_completion
bind -x '"\\C-x": printf "%s\\n" $READLINE_LINE >offered; exit'
"""
# Asks for the choices as soon as there is a line to edit, writes down what is offered, and ends.
ZSHRC = """\
fpath=($SITE_FUNCTIONS $fpath)
autoload -Uz compinit && compinit -u -D
compadd() {
  if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\\ * ]]; then
    local -a hits
    builtin compadd -A hits "$@"
    print -rl -- $hits >>$ZDOTDIR/offered
  fi
  builtin compadd "$@"
}
choices() { BUFFER=$LINE CURSOR=$#LINE; zle list-choices; BUFFER=exit; zle accept-line }
zle -N zle-line-init choices
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    """With it a shell finds the scripts in SHARE and the command, and no settings of ours."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home), "XDG_DATA_DIRS": f"{SHARE}:{SYSTEM}", **more}


def output_of(home: Path, *command: str) -> tuple[list[str], str]:
    """The lines of standard output, and standard error."""
    env = environment(home)
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr


def in_a_terminal(home: Path, command: Sequence[str], keys: str = "", **more: str) -> str:
    """Runs a shell with a terminal of its own; returns what it writes to standard error."""
    ours, theirs = os.openpty()

    def drain() -> None:
        try:
            while os.read(ours, 1 << 16):
                pass
        except OSError:  # EIO: nobody has it open any more
            pass

    env = environment(home, TERM="dumb", **more)
    shell = subprocess.Popen(
        ["setsid", "--ctty", *command],
        cwd=home,
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    watchdog = threading.Timer(DEADLINE_S, shell.kill)
    watchdog.start()
    reader = threading.Thread(target=drain)
    reader.start()
    os.write(ours, keys.encode())
    _, errors = shell.communicate()
    reader.join()
    watchdog.cancel()
    os.close(ours)
    return errors


def bash(home: Path, *words: str) -> tuple[list[str], str]:
    return output_of(home, "bash", "--norc", "-c", BASH, "bash", *words)


def zsh(home: Path, *words: str) -> tuple[list[str], str]:
    (home / ".zshrc").write_text(ZSHRC)
    offered = home / "offered"
    offered.write_text("")
    functions = str(SHARE / "zsh/site-functions")
    more = {"ZDOTDIR": str(home), "SITE_FUNCTIONS": functions, "LINE": " ".join(words)}
    errors = in_a_terminal(home, ["zsh", "-i"], **more)
    return offered.read_text().split(), errors


def fish(home: Path, *words: str) -> tuple[list[str], str]:
    lines, errors = output_of(home, "fish", "-c", "complete -C $argv[1]", " ".join(words))
    return [line.partition("\t")[0] for line in lines], errors


Shell = Callable[..., "tuple[list[str], str]"]
in_each_shell = pytest.mark.parametrize("shell", [bash, zsh, fish])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with two files and a directory, which is home and working directory."""
    for name in ("report.json", "report 2.json"):
        (tmp_path / name).touch()
    (tmp_path / "reports").mkdir()
    return tmp_path


@in_each_shell
def test_every_option_is_offered(shell: Shell, home: Path) -> None:
    offered: set[str] = set()
    for start in ("-", "--"):
        words, errors = shell(home, "bootstrap", start)
        assert errors == ""
        offered |= set(words)
    assert offered == OPTIONS


@in_each_shell
def test_options_go_on_after_a_value(shell: Shell, home: Path) -> None:
    words = ("bootstrap", "-d", "100", "-o", "report.json", "--ou")
    assert shell(home, *words) == (["--output"], "")


@in_each_shell
@pytest.mark.parametrize("option", ["-u", "--user", "--run-as"])
def test_users_are_offered(shell: Shell, option: str, home: Path) -> None:
    names = {user.pw_name for user in pwd.getpwall()}
    words, errors = shell(home, "bootstrap", option, "")
    assert errors == ""
    assert names <= set(words)
    assert shell(home, "bootstrap", option, "roo") == (["root"], "")


@in_each_shell
@pytest.mark.parametrize("option", ["-p", "--pid", "--ppid"])
def test_running_processes_are_offered(shell: Shell, option: str, home: Path) -> None:
    pid = str(os.getpid())
    words, errors = shell(home, "bootstrap", option, pid[:-1])
    assert errors == ""
    assert pid in words
    assert all(word.startswith(pid[:-1]) for word in words)


@in_each_shell
@pytest.mark.parametrize("option", ["-o", "--output"])
def test_files_are_offered(shell: Shell, option: str, home: Path) -> None:
    words, errors = shell(home, "bootstrap", option, "report")
    assert errors == ""
    assert {word.rstrip("/") for word in words} >= {"report.json", "reports"}


@in_each_shell
def test_cgroups_are_offered(shell: Shell, home: Path) -> None:
    names = {path.name for path in Path("/sys/fs/cgroup").iterdir() if path.is_dir()}
    words, errors = shell(home, "bootstrap", "--cgroup", "")
    assert errors == ""
    assert {Path(word).name for word in words} == names
    first = min(names)
    words, errors = shell(home, "bootstrap", "--cgroup", f"/sys/fs/cgroup/{first}")
    assert errors == ""
    assert {Path(word).name for word in words} == {n for n in names if n.startswith(first)}


@in_each_shell
def test_all_ring_sizes_are_offered(shell: Shell, home: Path) -> None:
    words, errors = shell(home, "bootstrap", "--ring-size", "")
    assert errors == ""
    sizes = [make_parser().parse_args(["--ring-size", word]).ring_size for word in words if word]
    assert sorted(sizes) == [1 << n for n in range(16, 31)]
    assert (min(sizes), max(sizes)) == (options.MIN_RING, options.MAX_RING)


@in_each_shell
def test_no_name_is_executed(shell: Shell, home: Path) -> None:
    (home / "r$(touch executed)").touch()
    (home / "r`touch executed`").touch()
    _, errors = shell(home, "bootstrap", "-o", "r")
    assert errors == ""
    assert not (home / "executed").exists()


@pytest.mark.parametrize("shell", [zsh, fish])
def test_options_are_offered_after_sudo(shell: Shell, home: Path) -> None:
    assert shell(home, "sudo", "bootstrap", "--ou") == (["--output"], "")


@pytest.mark.parametrize("line", ["bootstrap --ou", "sudo bootstrap --ou"])
def test_bash_completes_what_is_typed(line: str, home: Path) -> None:
    """With bash-completion loaded; in 2.11, completing after sudo fails without a terminal."""
    (home / "bashrc").write_text(BASHRC)
    in_a_terminal(home, ["bash", "--rcfile", "bashrc", "-i"], keys=f"{line}\t\x18")
    assert (home / "offered").read_text().split() == f"{line}tput".split()


@pytest.mark.parametrize("shell", list(completions.FILES))
def test_the_scripts_of_the_build_are_fresh(shell: str) -> None:
    """They are what the parser gives now, wherever and whenever they are made."""
    built = SHARE.parent / completions.FILES[shell].format("bootstrap")
    assert built.read_text() == completions.make(make_parser(), shell)
    assert str(SHARE.parents[1]) not in built.read_text()


def test_a_tool_of_its_own_gets_completions(home: Path) -> None:
    (home / "mytool.py").write_text(
        "from pybootstrap.engine import options\n"
        "def make_parser():\n"
        "    parser = options.make_parser('mytool', 'Shows signals.')\n"
        "    parser.add_argument('--sender', metavar='PID')\n"
        "    options.add_common(parser)\n"
        "    return parser\n"
    )
    module = "pybootstrap.engine.completions"
    files, errors = output_of(home, sys.executable, "-m", module, "mytool:make_parser", "out")
    assert errors == ""
    assert files == [f"out/{name.format('mytool')}" for name in completions.FILES.values()]
    script = str(home / files[2])
    line = "source $argv[1]; complete -C $argv[2]"
    pids, errors = output_of(home, "fish", "-c", line, script, "mytool --sender ")
    assert errors == ""
    assert str(os.getpid()) in [pid.partition("\t")[0] for pid in pids]


def test_without_shtab_the_build_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['shtab'] = None; from pybootstrap.engine.completions import make; "
    )
    code += "from argparse import ArgumentParser; make(ArgumentParser(), 'bash')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == "pybootstrap: the build needs shtab, for shell completions: pip install shtab\n"
    )
