# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Tests marked `kernel` load real BPF programs. If that is not possible, they are skipped with
the reason, unless PYBOOTSTRAP_REQUIRE_KERNEL=1 asks for a failure instead."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import pytest

from pybootstrap import BootstrapError, Tracer

pytest.register_assert_rewrite("tests.cases", "tests.support")


@functools.cache
def why_no_kernel() -> str | None:
    """The reason why tracing does not work here; None if it works."""
    try:
        with Tracer():
            return None
    except BootstrapError as error:
        return str(error)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernel: loads BPF programs into the running kernel")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel") is not None:
        reason = why_no_kernel()
        if reason is not None:
            pytest.skip(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """With PYBOOTSTRAP_REQUIRE_KERNEL=1 any skip is a failure."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("PYBOOTSTRAP_REQUIRE_KERNEL") == "1":
        report.outcome = "failed"
        report.longrepr = f"PYBOOTSTRAP_REQUIRE_KERNEL=1, but skipped: {report.longrepr}"
