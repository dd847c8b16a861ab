# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The engine that all tools share. Nothing here knows what a program traces.

A tool consists of a BPF object, an event class for each kind of record, a Tracer and a command,
built from the names below; `pybootstrap` itself has the errors. docs/your-own-tool.md shows how to
write and install one.
"""

from pybootstrap._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pybootstrap.engine.events import Event, LostEvent, event_classes, field, text
    from pybootstrap.engine.render import Renderer, clock, escape
    from pybootstrap.engine.skeleton import Map, Program, Skeleton
    from pybootstrap.engine.tracer import Stats, Tracer, milliseconds, whole_number
else:
    from pybootstrap._lazy import lazily

    __getattr__, __dir__ = lazily(
        __name__,
        {
            "events": ("Event", "LostEvent", "event_classes", "field", "text"),
            "render": ("Renderer", "clock", "escape"),
            "skeleton": ("Map", "Program", "Skeleton"),
            "tracer": ("Stats", "Tracer", "milliseconds", "whole_number"),
        },
    )

__all__ = [
    "Event",
    "LostEvent",
    "Map",
    "Program",
    "Renderer",
    "Skeleton",
    "Stats",
    "Tracer",
    "clock",
    "escape",
    "event_classes",
    "field",
    "milliseconds",
    "text",
    "whole_number",
]
