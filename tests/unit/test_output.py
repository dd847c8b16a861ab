# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Where a command writes to: what has left, is full or was closed."""

from __future__ import annotations

import os
import sys

import pytest

from pybootstrap.engine.output import NoReaderError, Output, say


def test_a_message_that_nobody_reads_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as left:
        with pytest.raises(NoReaderError):
            Output(write, "utf-8").write("x")
        monkeypatch.setattr(sys, "stderr", left)
        say("tool", "3 events lost")


def test_a_message_to_a_full_device_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        say("tool", "3 events lost")
