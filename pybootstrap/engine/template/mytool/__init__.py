"""Every signal that is sent on this machine.

with Tracer(signal=15) as tracer:
    for event in tracer:
        print(event)
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from typing import Any

from pybootstrap import engine
from pybootstrap.engine import Event, Renderer, Skeleton, clock, command, escape, field, options

__version__ = "0.1.0"
OBJECT = Path(__file__).with_name("mytool.bpf.o").read_bytes()
COLUMNS = "{:8} {:12} {:>7} {:16} {:>7} {}"
HEADER = COLUMNS.format("TIME", "SIGNAL", "FROM", "COMM", "TO", "COMM")
NAMES = {signal.value: signal.name for signal in Signals}


class Sent(Event, object=OBJECT, struct="sent"):
    """A signal was sent. If the kernel sent it, the sender is the process that was running."""

    __slots__ = ()
    signal: int = field(doc="Its number: see signal(7).")
    ignored: bool = field(doc="Whether the receiver ignores it.")
    pid: int = field(doc="Process id of the receiver.")
    comm: str = field(doc="Name of the receiving thread.")
    sender_pid: int = field(doc="Process id of the sender.")
    sender_comm: str = field(doc="Name of the sending thread.")


class Tracer(engine.Tracer):
    """Sees signals.

    Args:
        signal: only signals of this number; the kernel filters. 0: all.
        common: what every Tracer takes, `on_event` included.
    """

    OBJECT = OBJECT
    EVENTS = (Sent,)

    def __init__(self, *, signal: int = 0, **common: Any) -> None:
        super().__init__(**common)
        self._signal = engine.whole_number("signal", signal, 0, 64)
        self.others = 0
        """How many other signals were sent; as of the last `stats`."""

    def on_open(self, skeleton: Skeleton) -> None:
        """Before load: settings, and sizes of maps."""
        skeleton.rodata.only_signal = self._signal

    def count(self, skeleton: Skeleton, produced: int, received: int, lost: int) -> Any:
        """Makes the value of `stats`, like the engine; also keeps our own counter."""
        self.others = skeleton.bss.others
        return super().count(skeleton, produced, received, lost)

    def closing_remarks(self, stats: Any) -> list[str]:  # noqa: ARG002
        """What the command prints when it ends, one line each."""
        return [f"{self.others} other signals were sent"] if self._signal else []


def make_parser() -> ArgumentParser:
    """The options: the tool's own, and those that all tools have."""
    parser = options.make_parser("mytool", "Shows every signal that is sent on this machine.")
    number = options.whole_number(1, 64, "")
    text = "show only signals of this number; the kernel filters"
    parser.add_argument("-s", "--signal", metavar="N", type=number, default=0, help=text)
    options.add_common(parser)
    return parser


def make_tracer(given: Namespace, **common: Any) -> Tracer:
    """The Tracer that the options ask for."""
    return Tracer(signal=given.signal, **common)


def make_renderer(_: Namespace) -> Renderer:
    """The renderer for text; JSON needs none."""
    return Renderer({Sent: sent}, header=HEADER)


def sent(event: Sent) -> str:
    """The line for an event."""
    name = NAMES.get(event.signal, event.signal)
    sender = (event.sender_pid, escape(event.sender_comm))
    receiver = escape(event.comm) + (" (ignored)" if event.ignored else "")
    return COLUMNS.format(clock(event.time_ns), name, *sender, event.pid, receiver)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.main(make_parser, make_tracer, make_renderer, version=__version__, argv=argv)
