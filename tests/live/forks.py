# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command of another tool: forks.py OBJECT [OPTION...] shows forks by one process."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pybootstrap import SettingError
from pybootstrap.engine import command, options
from pybootstrap.engine.render import FieldRenderer, Renderer, clock
from pybootstrap.engine.skeleton import Skeleton
from pybootstrap.engine.tracer import Tracer


class Forks(Tracer):
    """Traces forks; its event classes are made from BTF."""

    def __init__(self, parent: int, **common: Any) -> None:
        super().__init__(**common)
        self._parent = parent

    def on_open(self, skeleton: Skeleton) -> None:
        skeleton.rodata.only_parent = self._parent
        skeleton.progs.on_packet.autoload = False

    def closing_remarks(self, stats: Any) -> list[str]:
        return [f"{stats.received} forks were read"]

    def check_remark(self) -> str:
        return "so do forks"


def make_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("forks", "Shows forks.")
    parser.add_argument("object")
    parser.add_argument("--of", metavar="PID", type=options.whole_number(0, 2**31 - 1, ""))
    parser.add_argument("--plain", action="store_true")
    options.add_common(parser)
    return parser


def make_tracer(given: argparse.Namespace, **common: Any) -> Forks:
    if given.of == 0:
        raise SettingError("nobody sees the forks of process 0")
    Forks.OBJECT = Path(given.object).read_bytes()
    return Forks(given.of or 1, **common)


def line(fork: Any) -> str:
    return f"{clock(fork.time_ns)} {fork.parent} {fork.child}"


def make_renderer(given: argparse.Namespace) -> Renderer:
    if given.plain:
        return FieldRenderer(Forks.events())
    return Renderer({Forks.events()[0]: line}, header="TIME     PARENT CHILD")


if __name__ == "__main__":
    sys.exit(command.main(make_parser, make_tracer, make_renderer, version="7.1"))
