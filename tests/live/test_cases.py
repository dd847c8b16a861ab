# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Runs the cases for every kernel on this one."""

from __future__ import annotations

from typing import Callable

import pytest

from tests.cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__[len("check_") :])
def test_case(case: Callable[[], str]) -> None:
    print(case())
