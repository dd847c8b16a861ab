# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""JSON Schema (2020-12) of what a command prints with `--json`, from the declarations of fields.

    python -m pybootstrap.engine.schema pybootstrap.tracer:Tracer bootstrap pybootstrap/

writes `json.schema.json` and `json-otel.schema.json` for the command `bootstrap` into a directory.
"""

from __future__ import annotations

import re
import sys

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine.decoder import LostEvent
from pybootstrap.engine.names import Names, OtelNames
from pybootstrap.engine.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from pybootstrap.engine.events import Event, Field

__all__ = ["schema"]

_TIME = {"$ref": "#/$defs/time"}
_DIGITS_ONLY = {"pattern": "^-?[0-9]{16,20}$"}
_DEFS = {
    "time": {
        "type": "string",
        "pattern": r"^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]\.[0-9]{9}Z$",
    },
    "base64": {"type": "string", "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]*={0,2}$"},
    "digits": {"type": "string", **_DIGITS_ONLY},
}
_BASE64, _DIGITS = {"$ref": "#/$defs/base64"}, {"$ref": "#/$defs/digits"}
_PLAIN: dict[str, dict[str, Any]] = {
    "int": {"type": "integer"},
    "float": {"type": ["number", "null"]},
    "bool": {"type": "boolean"},
    "str": {"type": "string"},
    "bytes": _BASE64,
    "tuple[str, ...]": {"type": "array", "items": {"type": "string"}},
    "list[str]": {"type": "array", "items": {"type": "string"}},
    "tuple[int, ...]": {"type": "array", "items": {"type": "integer"}},
    "list[int]": {"type": "array", "items": {"type": "integer"}},
    "dict[str, int]": {"type": "object", "additionalProperties": {"type": "integer"}},
}

_OPEN: dict[str, dict[str, Any]] = {
    "settings": {"type": ["array", "boolean", "number", "string", "null"]},
    "counters": {"type": ["integer", "string"], "minimum": 0, **_DIGITS_ONLY},
}


class _Object:
    """The schema of an object, member by member."""

    def __init__(self, names: Names, title: str = "") -> None:
        self._names = names
        self._title = title
        self.properties: dict[str, Any] = {}
        self.patterns: dict[str, Any] = {}
        self.required: list[str] = []

    def add(self, name: str, found: dict[str, Any], *, required: bool = True) -> None:
        """Adds a member."""
        self.properties[name] = found
        if required:
            self.required.append(name)

    def add_value(
        self, name: str, annotation: str, scope: Any = None, doc: str = "", *, second: bool = True
    ) -> None:
        """Adds the members that `render_json.member` makes of a value with this annotation.

        `scope` is the module where the annotation's names are defined. `second`: whether text may
        not be UTF-8, or an integer so large, that there is a second member.
        """
        base, _, rest = annotation.partition(" | ")
        parts = getattr(scope, base, None)
        if hasattr(parts, "_fields"):
            self._add_parts(name, parts, doc)
            return
        if base not in _PLAIN:  # any value, with its second member or its parts
            self.patterns[f"^{re.escape(name)}([._].*)?$"] = {}
            return
        found = dict(_PLAIN[base])
        if rest == "None":
            found = _nullable(found)
        if doc:
            found["description"] = doc
        self.add(name, found)
        if second and not base.startswith("dict"):
            self._add_second(name, base)

    def _add_second(self, name: str, base: str) -> None:
        for kind, suffix, found in (("str", "base64", _BASE64), ("int", "exact", _DIGITS)):
            if kind in base:
                several = {"type": "array", "items": found}
                self.add(f"{name}_{suffix}", found if kind == base else several, required=False)

    def _add_parts(self, name: str, kind: Any, doc: str) -> None:
        """Adds a named tuple."""
        scope = sys.modules[kind.__module__]
        inner = _Object(self._names, doc) if self._names.NESTED else self
        for part in kind._fields:
            path = part if self._names.NESTED else f"{name}.{part}"
            inner.add_value(path, kind.__annotations__[part], scope)
        if inner is not self:
            self.add(name, inner.schema())

    def schema(self) -> dict[str, Any]:
        """The finished schema."""
        made: dict[str, Any] = {"description": self._title} if self._title else {}
        made.update(type="object", properties=self.properties, required=self.required)
        if self.patterns:
            made["patternProperties"] = self.patterns
        made["additionalProperties"] = False
        return made


def _nullable(found: dict[str, Any]) -> dict[str, Any]:
    if "type" in found:
        return {**found, "type": [found["type"], "null"]}
    return {"anyOf": [found, {"type": "null"}]}


def _first_sentence(doc: str | None) -> str:
    text = " ".join((doc or "").split("\n\n")[0].split())
    return text.replace("`", "")


def _begun(names: Names, kind: str, doc: str | None, time: dict[str, Any]) -> _Object:
    made = _Object(names, _first_sentence(doc))
    made.add(names.EVENT, {"const": names.event(kind)})
    made.add("time", time)
    return made


def _event(event: type[Event], names: Names) -> dict[str, Any]:
    made = _begun(names, event.NAME, event.__doc__, _TIME)
    for name, field in event.FIELDS.items():
        if name != "time_ns":
            scope = sys.modules[_declaring(event, name).__module__]
            made.add_value(
                names.member(name, field.otel),
                field.annotation,
                scope,
                _first_sentence(field.doc),
                second=_may_need_second(field),
            )
    return made.schema()


def _may_need_second(field: Field) -> bool:
    """Whether a field is made of text, or of integers of 8 bytes."""
    sizes = [kind.size for _, kind in field.places]
    return field.tail or not sizes or max(sizes) >= 8


def _declaring(event: type[Event], name: str) -> type[Event]:
    return next(base for base in event.__mro__ if name in vars(base).get("_own", {}))


def _lost(names: Names) -> dict[str, Any]:
    made = _begun(names, "lost", LostEvent.__doc__, _nullable(_TIME))
    made.add(names.member("since"), _nullable(_TIME))
    made.add_value(names.member("count"), "int")
    return made.schema()


def _report(kind: str, names: Names) -> dict[str, Any]:
    made = _begun(names, kind, Report.__doc__, _TIME)
    for name in Report._fields:
        if name in ("settings", "counters"):
            _add_open(made, names.report(name), names, _OPEN[name])
        elif name == "reason" and kind == "trace_end":
            made.add(names.report(name), {"enum": ["signal", "count", "error"]})
        elif name not in ("time_ns", "reason"):
            annotation = str(Report.__annotations__[name])
            made.add_value(names.report(name), annotation, second=name == "host")
    return made.schema()


def _add_open(made: _Object, name: str, names: Names, value: dict[str, Any]) -> None:
    """Adds a dictionary with keys of the tool's own."""
    if names.NESTED:
        inner = _Object(names)
        inner.patterns["^[A-Za-z0-9_]+$"] = value
        made.add(name, inner.schema())
    else:
        made.patterns[f"^{re.escape(name)}[.][A-Za-z0-9_]+$"] = value


def schema(events: Iterable[type[Event]], names: Names | None = None) -> dict[str, Any]:
    """The schema of every object that `JsonRenderer(events, names)` writes."""
    names = names or Names()
    made = [_event(event, names) for event in events]
    made.append(_lost(names))
    made += [_report(kind, names) for kind in ("trace_start", "trace_status", "trace_end")]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "oneOf": made,
        "$defs": _DEFS,
    }


def _write(tracer: str, tool: str, directory: str) -> None:
    import json
    from importlib import import_module
    from pathlib import Path

    module, _, name = tracer.partition(":")
    events = getattr(import_module(module), name).events()
    for file, names in (("json", Names()), ("json-otel", OtelNames(tool))):
        text = json.dumps(schema(events, names), indent=1, ensure_ascii=False)
        Path(directory, f"{file}.schema.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    _write(*sys.argv[1:])
