# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command `bootstrap` with a wake-up for each event: the project's own baseline."""

import signal
import sys

from pybootstrap import Tracer
from pybootstrap.render import HEADER, TextRenderer


def main() -> None:
    """Prints events as text until SIGINT or SIGTERM."""
    tracer = Tracer(args=False, max_latency_ms=0)
    render = TextRenderer().render
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: tracer.stop())
    sys.stdout.write(HEADER)
    with tracer:
        while events := tracer.read():
            sys.stdout.write(render(events))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
