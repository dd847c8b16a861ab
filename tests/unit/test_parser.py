# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The command line: good values, and one sentence for each bad one."""

from __future__ import annotations

import pytest

from pybootstrap import SettingError
from pybootstrap.cli import make_parser, make_tracer
from pybootstrap.engine import options
from pybootstrap.engine._native import lib
from pybootstrap.engine.options import MAX_MS


def test_defaults() -> None:
    given = make_parser().parse_args([])
    assert given.duration is None
    assert given.count is None
    assert not (given.json)
    assert not (given.args)
    assert not (given.verbose)
    assert not (given.version)


def test_good_values() -> None:
    given = make_parser().parse_args(["-d", str(MAX_MS), "-jav", "--count", "1"])
    assert given.duration == MAX_MS
    assert given.count == 1
    assert given.json
    assert given.args
    assert given.verbose


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], False),
        (["-j"], True),
        (["--json"], True),
        (["--json", "-n", "3"], True),
        (["--json=otel"], "otel"),
        (["--json=otel", "-n", "3"], "otel"),
        (["-j", "--json=otel"], "otel"),
    ],
)
def test_json_and_its_names(arguments: list[str], names: object) -> None:
    assert make_parser().parse_args(arguments).json == names


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
        ["--json=other"],
        ["--json", "otel"],
        *(["--ring-size", v] for v in ("3M", "32K", "2G", "0", "", "4m", "-64K", "9" * 5000)),
        ["-c", ""],
        ["--no-such-option"],
        ["word"],
    ],
)
def test_bad_values_get_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        make_parser().parse_args(arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bootstrap: ")
    assert err.count("\n") == 1


def test_the_parser_accepts_the_ring_sizes_of_the_tracer() -> None:
    assert (options.MIN_RING, options.MAX_RING) == (lib.SHIM_MIN_RING, lib.SHIM_MAX_RING)
    for size in ("64K", "65536", "1M", "1G"):
        assert make_parser().parse_args(["--ring-size", size]).ring_size >= lib.SHIM_MIN_RING


def test_the_error_for_a_bad_size_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--ring-size", "3M"])
    assert "argument --ring-size: '3M' is not a power of two" in capsys.readouterr().err


def test_long_and_json_exclude_each_other() -> None:
    with pytest.raises(SettingError, match="--long"):
        make_tracer(make_parser().parse_args(["-jl"]))
