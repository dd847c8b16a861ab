# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What `-n N` counts, and the exit statuses of errors."""

from __future__ import annotations

import pytest

from pybootstrap import BootstrapError, LoadError, LostEvent, PrivilegeError, SettingError
from pybootstrap.engine.check import version_of
from pybootstrap.engine.command import _first, _status_of
from pybootstrap.engine.errors import start_error

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
def test_losses_do_not_count_as_events(count: int, first: list[object]) -> None:
    assert _first([GAP, "a", "b", GAP, "c", GAP], count) == first


class OtherPrivilegeError(PrivilegeError):
    """An error that a program using the package may raise."""


@pytest.mark.parametrize(
    ("error", "status"),
    [(SettingError(), 2), (PrivilegeError(), 77), (OtherPrivilegeError(), 77), (LoadError(""), 1)],
)
def test_exit_statuses_of_errors(error: BootstrapError, status: int) -> None:
    assert _status_of(error) == status


def test_errors_of_the_library_name_no_command_option() -> None:
    error = start_error(22, "load", "the verifier's verdict")
    assert isinstance(error, LoadError)
    assert "verdict" in str(error)
    assert "-v" not in str(error)


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.18.44-cloud-amd64", (6, 18)),
        ("6.18-rc1", (6, 18)),
        ("5.10.0", (5, 10)),
        ("7", (7, 0)),
        ("7-rc2", (7, 0)),
        ("no number", (0, 0)),
    ],
)
def test_kernel_versions(release: str, version: tuple[int, int]) -> None:
    assert version_of(release) == version
