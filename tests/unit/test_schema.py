# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The schemas in the package: what they accept, and that they are made from the declarations."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import pybootstrap
from pybootstrap import LostEvent, Tracer
from pybootstrap.engine.names import Names, OtelNames
from pybootstrap.engine.render_json import JsonRenderer
from pybootstrap.engine.report import Report
from pybootstrap.engine.schema import schema
from tests.support import exec_record, exit_record, new_decoder

FORMS: dict[str, Names] = {"json": Names(), "json-otel": OtelNames("bootstrap")}
REPORT = Report(
    "bootstrap", "1.0", "b5", "h\udcff", None, 5, {"pid": [1], "user": None, "run_as": "\udcff"},
    {"produced": 2**60, "written": 3}, None,
)  # fmt: skip


def packaged(form: str) -> Any:
    path = Path(pybootstrap.__file__).with_name(f"{form}.schema.json")
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def validator(form: str) -> Draft202012Validator:
    return Draft202012Validator(packaged(form))


def lines(form: str) -> Iterator[dict[str, Any]]:
    """Objects of each kind, plain and hard ones."""
    renderer = JsonRenderer(Tracer.events(), FORMS[form])
    hard = {"process__comm": b"\xff", "process__start_boottime_ns": 2**60}
    large = {"duration_ns": 2**64 - 2, "usage__read_bytes": 2**63 + 1, "status": 0x8B}
    records = [
        exec_record(),
        exec_record(b"/\xe9", (b"\xff",), process__cgroup_id=2**64 - 1, **hard),
        exit_record(status=256),
        exit_record(b"/\xe9", (b"\xff",), **hard, **large),
        exit_record(None, None, usage__read_bytes=2**64 - 1),
    ]
    events = [*new_decoder().decode(b"".join(records)), LostEvent(0, 0, 3), LostEvent(7, 5, 2**60)]
    text = renderer.render(events) + renderer.start(REPORT) + renderer.status(REPORT)
    return map(json.loads, (text + renderer.end(REPORT._replace(reason="signal"))).splitlines())


@pytest.mark.parametrize("form", FORMS)
def test_the_schema_in_the_package_is_made_from_the_fields(form: str) -> None:
    """If not, run the command at the top of pybootstrap/engine/schema.py."""
    made = schema(Tracer.events(), FORMS[form])
    assert packaged(form) == made
    Draft202012Validator.check_schema(made)


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_object_is_valid(form: str) -> None:
    for line in lines(form):
        validator(form).validate(line)


values = st.binary(max_size=40).map(lambda b: b.replace(b"\0", b""))


@settings(deadline=None)
@given(
    filename=values,
    args=st.lists(values, max_size=3).map(tuple),
    large=st.integers(0, 2**64 - 1),
    status=st.integers(0, 2**16 - 1),
)
def test_any_event_is_valid(
    filename: bytes, args: tuple[bytes, ...], large: int, status: int
) -> None:
    fields: dict[str, Any] = {"process__cgroup_id": large, "process__start_boottime_ns": large}
    exited = {"status": status, "duration_ns": large, "usage__write_bytes": large}
    records = exec_record(filename, args, **fields)
    records += exit_record(filename, args, **fields, **exited)
    for form, names in FORMS.items():
        text = JsonRenderer(Tracer.events(), names).render(new_decoder().decode(records))
        for line in text.splitlines():
            validator(form).validate(json.loads(line))


def faults(line: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object with one thing wrong, and what that is."""
    yield "a new member", {**line, "new": 1}
    for name, value in line.items():
        if not name.endswith(("_exact", "_base64")) and ".settings." not in name:
            if ".counters." not in name:
                yield f"no {name}", {key: item for key, item in line.items() if key != name}
            yield f"{name} as an object", {**line, name: {"x": value}}
        else:
            yield f"{name} as a boolean", {**line, name: {}}
        if isinstance(value, dict) and name != "settings":
            for part in value:
                changed = copy.deepcopy(line)
                changed[name][part] = True
                yield f"{name}.{part} as a boolean", changed
    if "time" in line:
        yield "a time without fraction", {**line, "time": "2026-11-21T09:23:17Z"}


@pytest.mark.parametrize("form", FORMS)
def test_no_object_with_a_fault_is_valid(form: str) -> None:
    check = validator(form)
    tried = 0
    for line in lines(form):
        for what, wrong in faults(line):
            assert not check.is_valid(wrong), (what, wrong)
            tried += 1
    assert tried > 200
