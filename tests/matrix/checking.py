# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""How a check of guest.py says what came of it: it returns a detail, or raises one of these."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

LIMIT = 60.0  # seconds for one command; emulation makes everything some twenty times slower

Check = Callable[[], str]


class CheckFailedError(Exception):
    """A check did not hold; the message says what was seen."""


class CheckSkippedError(Exception):
    """A check could not be made here; the message says why."""


def require(condition: object, message: str) -> None:
    """Fail the check that is running, with `message`, unless the condition holds."""
    if not condition:
        raise CheckFailedError(message)


def run_check(check: Check) -> None:
    """Make one check and print its line; "ok" is null when it could not be made."""
    started = time.monotonic()
    ok: bool | None
    try:
        ok, detail = True, check()
    except CheckSkippedError as error:
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
