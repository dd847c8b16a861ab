# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command of another tool: forks.py OBJECT [OPTION...] shows the forks of one process."""

from __future__ import annotations

import argparse
import struct
import sys
from pathlib import Path
from typing import Any

from pybootstrap import SettingError
from pybootstrap.engine import command, options
from pybootstrap.engine.decoder import Decoder, Kind
from pybootstrap.engine.render import Renderer, clock
from pybootstrap.engine.skeleton import Skeleton
from pybootstrap.engine.tracer import Tracer

HEADER = struct.Struct("=IH2xQQ")
PAIR = struct.Struct("=II")


class Fork:
    KIND = 1

    def __init__(self, record: bytes) -> None:
        self.record = record
        self.time_ns: int = HEADER.unpack_from(record)[2]
        self.parent, self.child = PAIR.unpack_from(record, HEADER.size)


class Forks(Tracer):
    def __init__(self, parent: int, **common: Any) -> None:
        super().__init__(**common)
        self._parent = parent

    def _set_up(self, skeleton: Skeleton, fallback: bool) -> bool:
        assert not fallback
        skeleton.rodata.only_parent = self._parent
        skeleton.progs.on_packet.autoload = False
        return False

    def _make_decoder(self, kinds: Any) -> Decoder:
        def unpack(batch: bytes, at: int) -> tuple[int, ...]:
            return (*HEADER.unpack_from(batch, at), 0, 0)

        make = (kinds or {Fork.KIND: Fork})[Fork.KIND]
        return Decoder({Fork.KIND: Kind(make, HEADER.size + PAIR.size, 0)}, unpack)

    def closing_remarks(self, stats: Any) -> list[str]:
        return [f"{stats.received} forks were read"]

    def check_remark(self) -> str:
        return "so do forks"


def make_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("forks", "Shows forks.")
    parser.add_argument("object")
    parser.add_argument("--of", metavar="PID", type=options.whole_number(0, 2**31 - 1, ""))
    options.add_common(parser)
    return parser


def make_tracer(given: argparse.Namespace, **common: Any) -> Forks:
    if given.of == 0:
        raise SettingError("nobody sees the forks of process 0")
    Forks.OBJECT = Path(given.object).read_bytes()
    return Forks(given.of or 1, **common)


def line(fork: Fork) -> str:
    return f"{clock(fork.time_ns)} {fork.parent} {fork.child}"


def make_renderer(given: argparse.Namespace) -> Renderer:
    if given.json:
        return Renderer({Fork: lambda fork: f"[{fork.parent}, {fork.child}]"})
    return Renderer({Fork: line}, header="TIME     PARENT CHILD")


if __name__ == "__main__":
    sys.exit(command.main(make_parser, make_tracer, make_renderer, version="7.1"))
