# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What `-n N` counts."""

from __future__ import annotations

import pytest

from pybootstrap import LostEvent
from pybootstrap.cli import _first

GAP = LostEvent(2, 1, 3)


@pytest.mark.parametrize(
    ("count", "first"),
    [
        (1, [GAP, "a"]),
        (2, [GAP, "a", "b"]),
        (3, [GAP, "a", "b", GAP, "c"]),
        (4, [GAP, "a", "b", GAP, "c", GAP]),
    ],
)
def test_losses_do_not_count(count: int, first: list[object]) -> None:
    assert _first([GAP, "a", "b", GAP, "c", GAP], count) == first
