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
    # The same at run time, but imported when first asked for (PEP 562): importing one module of
    # this package, as the command does, must not load the others.
    _NAMES = {
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
    }

    def __getattr__(name):
        from importlib import import_module

        for module_name, names in _NAMES.items():
            if name == module_name or name in names:
                module = import_module(f"{__name__}.{module_name}")
                globals()[name] = module if name == module_name else getattr(module, name)
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), "events", "tracer", *__all__})


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
