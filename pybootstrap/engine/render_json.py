# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Events as JSON, one object per line. Not in render.py, because importing json takes 2 ms.

Every value survives every parser. Two kinds of values would not, so a second member beside them has
the exact value where it is needed:

- text that is not UTF-8: invalid bytes become U+FFFD, and NAME_base64 has all bytes;
- integers from 2**53 on (or -2**53 down), which many parsers round: NAME_exact has the digits as a
  string.

Times are strings of RFC 3339, with nanoseconds.

`member()` defines what any value becomes. It is too slow for each value of each event, so a
function is generated and compiled for each event class. It formats numbers itself, and caches the
results of `member()` for short values that recur: names, statuses, arguments.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import groupby
from json.encoder import encode_basestring_ascii as quoted
from os import fsencode
from time import gmtime

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine.decoder import LostEvent
from pybootstrap.engine.errors import SettingError
from pybootstrap.engine.names import Names
from pybootstrap.engine.render import SHORT, Renderer, cached, of

if TYPE_CHECKING:
    from typing import Any, Callable

    from pybootstrap.engine.events import Event, Field
    from pybootstrap.engine.report import Report

__all__ = ["JsonRenderer", "member"]

_LOST, _START, _STATUS, _END = _NOT_EVENTS = "lost", "trace_start", "trace_status", "trace_end"

_EXACT = 2**53  # parsers that use doubles round from here on


# ---- Any value ----


def member(name: str, value: Any) -> str:
    """A member of a JSON object, such as '"pid":1', with a second member if it needs one.

    Takes what a field can be: int, bool, float, str, bytes (in Base64), None, lists and tuples of
    these, dictionaries and named tuples. Raises TypeError for anything else.
    """
    write = _writers.get(type(value)) or _writer_of(value)
    return write(name, value)


def _writer_of(value: Any) -> Callable[[str, Any], str]:
    """The function for a type that is seen for the first time, such as an IntEnum."""
    kind = type(value)
    if hasattr(value, "_asdict"):
        found = _named_tuple_writer(kind)
    else:
        known = [write for base, write in _writers.items() if isinstance(value, base)]
        if not known:
            raise TypeError(f"{value!r} has no form in JSON: give its field() another convert=")
        found = known[0]
    _writers[kind] = found
    return found


def _constant(name: str, value: bool | None) -> str:
    return f'"{name}":{_CONSTANTS[value]}'


_CONSTANTS = {None: "null", True: "true", False: "false"}


def _integer(name: str, value: int) -> str:
    if -_EXACT < value < _EXACT:
        return f'"{name}":{value:d}'
    return f'"{name}":{value:d},"{name}_exact":"{value:d}"'


def _float(name: str, value: float) -> str:
    shown = float.__repr__(value) if abs(value) < float("inf") else "null"
    return f'"{name}":{shown}'


def _encoded(value: str) -> bytes:
    """The bytes that text stands for: those of `os.fsencode`, or UTF-8 if that fails."""
    try:
        return fsencode(value)
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")


def _text(name: str, value: str) -> str:
    data = _encoded(value)
    exact = "" if _is_utf8(data) else f',"{name}_base64":{_base64(data)}'
    return f'"{name}":{_readable(data)}{exact}'


def _bytes(name: str, value: bytes) -> str:
    return f'"{name}":{_base64(value)}'


def _list(name: str, value: Iterable[Any]) -> str:
    """A list of texts or of integers has a second member with all items if one needs it."""
    items, second = list(value), ""
    if all(isinstance(item, str) for item in items):
        data = list(map(_encoded, items))
        if not all(map(_is_utf8, data)):
            second = f',"{name}_base64":[{",".join(map(_base64, data))}]'
    elif all(isinstance(item, int) and not isinstance(item, bool) for item in items) and (
        min(items) <= -_EXACT or max(items) >= _EXACT
    ):
        second = f',"{name}_exact":[{",".join(map(_digits, items))}]'
    return f'"{name}":[{",".join(map(_item, items))}]{second}'


def _item(value: Any) -> str:
    """An item of a list. Only the members of an object can have second members here."""
    if isinstance(value, str):
        return _readable(_encoded(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:d}"
    if isinstance(value, (list, tuple)) and not hasattr(value, "_asdict"):
        return f"[{','.join(map(_item, value))}]"
    return member("", value).removeprefix('"":')


def _object(name: str, value: Mapping[str, Any]) -> str:
    members = ",".join(member(_key(key), item) for key, item in value.items())
    return f'"{name}":{{{members}}}'


def _parts(name: str, value: Any) -> str:
    """Like `member`, but the parts of a dictionary or named tuple are members NAME.PART."""
    parts = value._asdict() if hasattr(value, "_asdict") else value
    if not isinstance(parts, dict) or not parts:
        return member(name, value)
    return ",".join(_parts(f"{name}.{_key(key)}", item) for key, item in parts.items())


def _key(key: object) -> str:
    """A name, escaped for use between quotes, because it may come from a record."""
    return quoted(str(key))[1:-1]


def _named_tuple_writer(kind: type[Any]) -> Callable[[str, Any], str]:
    """Formats a named tuple of small integers at once, any other member by member."""
    form = "{" + ",".join(f'"{name}":%d' for name in kind._fields) + "}"
    annotations = getattr(kind, "__annotations__", {})
    are_integers = bool(kind._fields) and all(
        str(annotations.get(name)) in ("int", "int | None", "<class 'int'>")
        for name in kind._fields
    )

    def write(name: str, value: Any) -> str:
        try:
            if are_integers and max(value) < _EXACT and min(value) > -_EXACT:
                return f'"{name}":{form % value}'
        except TypeError:  # None is among them
            pass
        return _object(name, value._asdict())

    return write


_writers: dict[type, Callable[[str, Any], str]] = {
    type(None): _constant,
    bool: _constant,
    int: _integer,
    float: _float,
    str: _text,
    bytes: _bytes,
    list: _list,
    tuple: _list,
    dict: _object,
}


def _digits(number: int) -> str:
    return f'"{number:d}"'


def _base64(data: bytes) -> str:
    return f'"{b2a_base64(data, newline=False).decode()}"'


def _readable(data: bytes) -> str:
    return quoted(data.decode("utf-8", "replace"))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---- Times ----


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    """A time up to the point before its fraction."""
    return "%04d-%02d-%02dT%02d:%02d:%02d." % gmtime(seconds)[:6]  # noqa: UP031


def _time(time_ns: int) -> tuple[str, int]:
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    return _second(seconds), fraction


def _stamp(time_ns: int) -> str:
    return '"%s%09dZ"' % _time(time_ns) if time_ns else "null"  # noqa: UP031


# ---- Event classes ----


class _Writer:
    """Writes the function for an event class: one format for all fields, and code for its values.

    The code calls the members' values v0, v1, ...; `_names` has its other names.
    """

    def __init__(self, event: type[Event], names: Names) -> None:
        self._event = event
        self._called = names
        self._paths = self._unpacked_at_once()
        unpack = event.unpacker(self._paths)
        self._names: dict[str, Any] = {"of": of, "time": _time, "unpack": unpack}
        self._tail = f"record[{event.HEAD_SIZE}:]"

    def _unpacked_at_once(self) -> list[str]:
        """Paths of the members that one layout can unpack, because they do not overlap."""
        fields = [field for field in self._event.FIELDS.values() if field.sources]
        places = {path: at for field in fields for path, at in zip(field.members, field.places)}
        paths, end = [], 0
        for path, (offset, kind) in sorted(places.items(), key=lambda place: place[1][0]):
            if offset >= end:
                paths.append(path)
                end = offset + kind.size
        return paths

    def function(self) -> Callable[[bytes], str]:
        """The function that turns the bytes of a record into a line."""
        kind = f"{{{quoted(self._called.EVENT)}:{quoted(self._called.event(self._event.NAME))}"
        forms, codes = [kind.replace("%", "%%")], []
        for _, group in groupby(self._event.FIELDS.values(), self._parted_by):
            form, code = self._part(list(group))
            forms.append(form)
            codes.append(code)
        self._names["form"] = ",".join(forms) + "}\n"
        values = "".join(f"v{number}," for number in range(len(self._paths)))
        code = f"def render(record):\n {values or '()'} = unpack(record)\n"
        code += f" return form % ({', '.join(codes)},)\n"
        exec(code, self._names)  # noqa: S102 - as namedtuple() does; all names in it are ours
        rendered: Callable[[bytes], str] = self._names["render"]
        return rendered

    def _parted_by(self, field: Field) -> object:
        """The key of a part: adjacent fields that are made of the same members share one."""
        alone = field.name == "time_ns" or not (field.sources or field.tail)
        return field.name if alone else (field.members, field.tail)

    def _part(self, fields: list[Field]) -> tuple[str, str]:
        """Format and code of a part."""
        first = fields[0]
        if first.name == "time_ns":
            return '"time":"%s%09dZ"', f"*time(v{self._paths.index('header.time_ns')})"
        if not all(path in self._paths for path in first.members):
            return "%s", self._call(self._apart(fields), ["record"])
        values = [f"v{self._paths.index(path)}" for path in first.members]
        if len(fields) == 1 and first.is_integer:
            return self._number(first, values[0])
        values += [self._tail] * first.tail
        make, through = self._member_of(fields), ""
        if len(values) == 1 and (first.tail or first.places[0][1].kind != "float"):
            make = cached(make)  # not for floats, because 0.0 == -0.0
            is_long = first.tail or first.places[0][1].size > SHORT
            through = "of" if is_long else ""
        return "%s", self._call(make, values, through)

    def _call(self, function: Callable[..., str], values: list[str], through: str = "") -> str:
        name = f"part_{len(self._names)}"
        self._names[name] = function
        arguments = ", ".join(values)
        return f"{through}({name}, {arguments})" if through else f"{name}({arguments})"

    def _apart(self, fields: list[Field]) -> Callable[[bytes], str]:
        """The function for members that are not single values, or that overlap others."""
        first, make, head_size = fields[0], self._member_of(fields), self._event.HEAD_SIZE
        sources = first.sources
        if sources is None:
            name, write = self._key_of(first), self._write
            return lambda record: write(name, first.read(record))
        tails = [slice(head_size, None)] * first.tail
        return lambda record: make(*sources.unpack_from(record), *(record[tail] for tail in tails))

    def _number(self, field: Field, value: str) -> tuple[str, str]:
        """Format and code of an integer; the code checks whether one of 8 bytes is large."""
        name, kind = self._key_of(field), field.places[0][1]
        form = f'"{name}":'.replace("%", "%%")
        if kind.size < 8:
            return f"{form}%d", value
        small = f"{value} < {_EXACT}" if kind.code.isupper() else f"{-_EXACT} < {value} < {_EXACT}"
        exact = self._call(lambda number: f'{number},"{name}_exact":"{number}"', [value])
        return f"{form}%s", f"{value} if {small} else {exact}"

    def _member_of(self, fields: list[Field]) -> Callable[..., str]:
        """A function that turns the values that these fields are made of into JSON members."""
        name, convert, write = self._key_of(fields[0]), fields[0].convert, self._write
        if len(fields) == 1:
            return lambda *values: write(name, convert(*values) if convert else values[0])
        named = [(self._key_of(field), field) for field in fields]

        def members(*values: Any) -> str:
            return ",".join(write(name, field.value(*values)) for name, field in named)

        return members

    def _key_of(self, field: Field) -> str:
        return _key(self._called.member(field.name, field.otel))

    @property
    def _write(self) -> Callable[[str, Any], str]:
        return member if self._called.NESTED else _parts


class JsonRenderer(Renderer):
    """One line of JSON for each event, with all its fields, in ASCII.

    The top of this file says which values have a second member; text without one is exact. Losses
    and reports are objects of their own. `names` says what members are called; by default as in
    Python. Raises SettingError for an event class with the name of another object.
    """

    def __init__(self, events: Iterable[type[Event]], names: Names | None = None) -> None:
        events = tuple(events)
        for event in events:
            if event.NAME in _NOT_EVENTS:
                raise SettingError(
                    f"{event.__name__} cannot be called {event.NAME!r}, because other JSON objects "
                    "are: give it another NAME"
                )
        self._names = names = names or Names()
        self.kinds = {event.KIND: _Writer(event, names).function() for event in events}

    def lost(self, event: LostEvent) -> str:
        """The object for a loss."""
        names = self._names
        since, count = (_key(names.member(name)) for name in ("since", "count"))
        members = f'"{since}":{_stamp(event.since_ns)},{member(count, event.count)}'
        return f"{_head(names, _LOST, event.time_ns)},{members}}}\n"

    def start(self, report: Report) -> str:
        """The first object."""
        return _report_line(self._names, _START, report)

    def status(self, report: Report) -> str:
        """The object of each minute."""
        return _report_line(self._names, _STATUS, report)

    def end(self, report: Report) -> str:
        """The last object."""
        return _report_line(self._names, _END, report)


def _head(names: Names, kind: str, time_ns: int) -> str:
    """The beginning of an object that is not of an event."""
    return f'{{"{names.EVENT}":{quoted(names.event(kind))},"time":{_stamp(time_ns)}'


def _report_line(names: Names, kind: str, report: Report) -> str:
    fields = report._asdict()
    head = _head(names, kind, fields.pop("time_ns"))
    if report.reason is None:
        del fields["reason"]
    write = member if names.NESTED else _parts
    members = (write(_key(names.report(name)), value) for name, value in fields.items())
    return f"{head},{','.join(members)}}}\n"
