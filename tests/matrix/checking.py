# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""How guest.py makes a check, which returns a detail, fails with any exception, or is skipped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from unittest import SkipTest

Check = Callable[[], str]


def run_check(check: Check) -> None:
    """Make one check and print its line; "ok" is null when it could not be made."""
    started = time.monotonic()
    ok: bool | None
    try:
        ok, detail = True, check()
    except SkipTest as error:
        ok, detail = None, str(error)
    except Exception as error:  # whatever went wrong is this check's result, and the next ones run
        ok, detail = False, f"{type(error).__name__}: {error}"
    said = {
        "check": check.__name__[len("check_") :],
        "ok": ok,
        "detail": detail,
        "seconds": round(time.monotonic() - started, 3),
    }
    print(json.dumps(said), flush=True)
