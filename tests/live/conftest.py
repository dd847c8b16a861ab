# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""All tests here load real BPF programs. wait4, /proc and counters are the witnesses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Callable

import pytest

from pybootstrap import Tracer
from tests.live.source import Source, build
from tests.support import Command

Start = Callable[..., Command]
Trace = Callable[..., AbstractContextManager[tuple[Tracer, Source]]]
Feed = Callable[[int], AbstractContextManager[Source]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.kernel)


@pytest.fixture
def bootstrap() -> Iterator[Start]:
    """Starts the command; kills it at the end of the test if it still runs."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **popen: stack.enter_context(Command(*arguments, **popen))


@pytest.fixture(scope="session")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    """Starts the synthetic source for the only Tracer of the process with this id."""
    program = build(tmp_path_factory.mktemp("source"))
    return lambda pid: Source(program, pid)


@pytest.fixture
def trace(feed: Feed) -> Trace:
    """Starts the source, and a Tracer that reports only its records and no real process."""

    @contextlib.contextmanager
    def start(**settings: Any) -> Iterator[tuple[Tracer, Source]]:
        with Tracer(pids=[1], **settings) as tracer, feed(os.getpid()) as source:
            yield tracer, source

    return start
