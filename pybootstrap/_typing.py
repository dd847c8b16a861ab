# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What this package needs of `typing` at run time. Importing that would take 3 ms of each start."""

from collections import namedtuple

TYPE_CHECKING = False  # type checkers know the name, and take it for True

if TYPE_CHECKING:
    from typing import NamedTuple
else:

    class _TupleMaker(type):
        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            made = namedtuple(name, body["__annotations__"], module=body["__module__"])  # noqa: PYI024
            made.__doc__ = body["__doc__"]
            made.__annotations__ = body["__annotations__"]
            return made

    class NamedTuple(metaclass=_TupleMaker):
        """As `typing.NamedTuple`, for classes that have fields and a docstring and nothing else."""


__all__ = ["TYPE_CHECKING", "NamedTuple"]
