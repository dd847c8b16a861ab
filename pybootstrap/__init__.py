# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Every process start (exec) and end (exit) on a Linux machine, seen from Python.

    from pybootstrap import Tracer

    with Tracer(min_duration_ms=10) as tracer:
        for event in tracer:
            print(event)

Needs Linux 5.10 or newer with BTF, and root or the capabilities CAP_BPF and CAP_PERFMON.
"""

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap._version import __version__

if TYPE_CHECKING:
    from pybootstrap.engine.errors import (
        BootstrapError,
        LoadError,
        ObjectError,
        PrivilegeError,
        RecordError,
        SettingError,
        StateError,
        UnknownNameError,
        UnsupportedKernelError,
    )
    from pybootstrap.events import Event, ExecEvent, ExitEvent, LostEvent, ProcessEvent, Usage
    from pybootstrap.tracer import Stats, Tracer
else:
    from pybootstrap._lazy import lazily

    __getattr__, __dir__ = lazily(
        __name__,
        {
            "engine.errors": (
                "BootstrapError",
                "LoadError",
                "ObjectError",
                "PrivilegeError",
                "RecordError",
                "SettingError",
                "StateError",
                "UnknownNameError",
                "UnsupportedKernelError",
            ),
            "events": ("Event", "ExecEvent", "ExitEvent", "LostEvent", "ProcessEvent", "Usage"),
            "tracer": ("Stats", "Tracer"),
        },
    )


__all__ = [
    "BootstrapError",
    "Event",
    "ExecEvent",
    "ExitEvent",
    "LoadError",
    "LostEvent",
    "ObjectError",
    "PrivilegeError",
    "ProcessEvent",
    "RecordError",
    "SettingError",
    "StateError",
    "Stats",
    "Tracer",
    "UnknownNameError",
    "UnsupportedKernelError",
    "Usage",
    "__version__",
]
