# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Runs a check of guest.py, which returns a detail, raises an exception, or is skipped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from unittest import SkipTest

Check = Callable[[], str]


def run_check(check: Check) -> None:
    """Run one check and print its line; "ok" is null if it was skipped."""
    started = time.monotonic()
    ok: bool | None
    try:
        ok, detail = True, check()
    except SkipTest as error:
        ok, detail = None, str(error)
    except Exception as error:  # any error is this check's result; the next ones still run
        ok, detail = False, f"{type(error).__name__}: {error}"
    said = {
        "check": check.__name__[len("check_") :],
        "ok": ok,
        "detail": detail,
        "seconds": round(time.monotonic() - started, 3),
    }
    print(json.dumps(said), flush=True)
