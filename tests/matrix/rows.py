# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The rows of a table: what ran where, and the results that checking.py printed there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

MARKS = {True: "ok", False: "FAILED", None: "skipped"}


@dataclass
class Row:
    """One kernel of the table: what was requested, and the result."""

    name: str
    kernel: str = ""
    state: str = "not run"  # or "passed" or "FAILED"
    note: str = ""
    seconds: float = 0.0
    # For each check: whether it passed (None: skipped), its detail, its duration in seconds.
    checks: dict[str, tuple[bool | None, str, float]] = field(default_factory=dict)


def read_results(row: Row, output: str, trouble: str) -> None:
    """Fill the row with the lines of guest.py; it passed if all are there and ok."""
    end = None
    for line in output.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            trouble = trouble or f"a line is not JSON: {line!r}"
            continue
        if "end" in said:
            end = said["end"]
        else:
            row.checks[said["check"]] = (said["ok"], said["detail"], said["seconds"])
    if "release" in row.checks:
        row.kernel = row.checks["release"][1]
    if end is None or end != len(row.checks):
        trouble = trouble or "the guest script did not come to its end"
    complete = not trouble and all(ok is not False for ok, _, _ in row.checks.values())
    row.state, row.note = ("passed" if complete else "FAILED"), trouble


def print_notes(rows: Sequence[Row], details: bool) -> None:
    """Print the detail of each failed or skipped check, or with `details` of every check."""
    for row in rows:
        if row.note:
            print(f"{row.name}: {row.state}: {row.note}")
        for name, (ok, detail, seconds) in row.checks.items():
            if not ok or details:
                print(f"{row.name}: {name}: {MARKS[ok]} ({seconds:.1f} s): {detail}")
