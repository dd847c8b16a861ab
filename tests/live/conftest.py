# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""All tests here load real BPF programs. What is right is decided by wait4, /proc and counters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from tests.support import Command


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.kernel)


@pytest.fixture
def bootstrap() -> Iterator[Callable[..., Command]]:
    """Starts the command; whatever still runs at the end of the test is killed, by pid."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **popen: stack.enter_context(Command(*arguments, **popen))
