# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What this package needs of `typing` at run time; importing that would add 3 ms to each start."""

from collections import namedtuple

TYPE_CHECKING = False  # type checkers assume True for this name

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
        """Like `typing.NamedTuple`, for classes that have only fields and a docstring."""


__all__ = ["TYPE_CHECKING", "NamedTuple"]
