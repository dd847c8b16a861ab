# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Imports the names of a package when they are first used (PEP 562).

A command imports one module of a package, which must not load the others.
"""

from __future__ import annotations

import sys

from pybootstrap._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Callable


def lazily(
    package: str, modules: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package; `modules` maps modules to the names in them.

    A module's own name, up to its first dot, is found as well.
    """
    places = {name: module for module, names in modules.items() for name in names}
    own = {module.partition(".")[0] for module in modules}

    def find(name: str) -> Any:
        from importlib import import_module

        if name in places:
            try:
                module = import_module(f"{package}.{places[name]}")
            except ImportError as error:
                from pybootstrap.engine.misfit import explain

                if sentence := explain(error):
                    message = f"pybootstrap: {sentence}"
                    raise ImportError(message, name=error.name, path=error.path) from None
                raise
            found = getattr(module, name)
        elif name in own:
            found = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, found)
        return found

    return find, lambda: sorted({*vars(sys.modules[package]), *places, *own})
