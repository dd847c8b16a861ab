# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Every process start (exec) and end (exit) on a Linux machine, seen from Python.

    from pybootstrap import Tracer

    with Tracer(min_duration_ms=10) as tracer:
        for event in tracer:
            print(event)

Needs Linux 5.10 or newer with BTF, and root or the capabilities CAP_BPF and CAP_PERFMON.
"""

from pybootstrap._version import __version__
from pybootstrap.errors import (
    BootstrapError,
    LoadError,
    PrivilegeError,
    RecordError,
    SettingError,
    StateError,
    UnsupportedKernelError,
)
from pybootstrap.events import Event, ExecEvent, ExitEvent, LostEvent, ProcessEvent, Usage
from pybootstrap.tracer import Stats, Tracer

__all__ = [
    "BootstrapError",
    "Event",
    "ExecEvent",
    "ExitEvent",
    "LoadError",
    "LostEvent",
    "PrivilegeError",
    "ProcessEvent",
    "RecordError",
    "SettingError",
    "StateError",
    "Stats",
    "Tracer",
    "UnsupportedKernelError",
    "Usage",
    "__version__",
]
