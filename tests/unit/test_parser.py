# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command line: good values, and one sentence for each bad one."""

from __future__ import annotations

import pytest

from pybootstrap.cli import make_parser
from pybootstrap.engine.options import MAX_MS


def test_defaults() -> None:
    options = make_parser().parse_args([])
    assert options.duration is None
    assert options.count is None
    assert not (options.json)
    assert not (options.args)
    assert not (options.verbose)
    assert not (options.version)


def test_good_values() -> None:
    options = make_parser().parse_args(["-d", str(MAX_MS), "-jav", "--count", "1"])
    assert options.duration == MAX_MS
    assert options.count == 1
    assert options.json
    assert options.args
    assert options.verbose


@pytest.mark.parametrize(
    "arguments",
    [
        *(["-d", v] for v in ("0", "-5", "10x", "", " 10", "1_0", "\u0661", "1.5", "0x10", "nan")),
        ["-d", str(MAX_MS + 1)],
        ["-d", "9" * 5000],
        ["-d"],
        ["-n", "0"],
        ["-n", "-1"],
        ["-n", "x"],
        ["--dur", "10"],
        ["--no-such-option"],
        ["word"],
    ],
)
def test_bad_values_are_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        make_parser().parse_args(arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bootstrap: ")
    assert err.count("\n") == 1
