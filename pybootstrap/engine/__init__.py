# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What every tool shares: nothing here knows what a program traces.

A tool has a BPF object, an event class for each kind of its records, a Tracer and a command, which
it makes of what this module names. docs/your-own-tool.md leads from nothing to an installed one.
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
