# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Event classes: the struct of a record, declared once, as a read-only Python object.

    class Opened(Event, object=OBJECT, struct="opened"):
        __slots__ = ()
        pid: int = field(doc="Process id (`task_struct.tgid`).")
        comm: str
        flags: int = field("how.flags")
        path: str = field(tail=True, convert=os.fsdecode)

An event holds the bytes of its record and decodes a field when the field is read, so making an
event costs next to nothing. Offsets and types come from the object's BTF. The same declaration
gives `asdict()`, `repr()`, JSON (see render_json.py) and the layouts for code that must be fast.
"""

from __future__ import annotations

import struct
import sys
from functools import lru_cache
from os import fsdecode

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine.btf import layout
from pybootstrap.engine.decoder import Decoder, LostEvent
from pybootstrap.engine.errors import SettingError
from pybootstrap.engine.skeleton import types_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Callable, ClassVar

    from pybootstrap.engine.btf import Type

__all__ = ["Event", "Field", "LostEvent", "event_classes", "field", "make_decoder", "text"]

_HEADER = ("header.size", "header.time_ns", "header.lost")


def text(array: bytes) -> str:
    """The text in an array of char, up to its NUL, decoded like file names (`os.fsdecode`)."""
    return fsdecode(array.partition(b"\0")[0])


# ---- Fields ----


class Field:
    """A declared field and, once bound, its place in a struct."""

    __slots__ = (
        "annotation", "convert", "doc", "members", "name", "otel", "places", "sources", "tail",
    )  # fmt: skip

    def __init__(
        self,
        members: tuple[str, ...],
        convert: Callable[..., Any] | None,
        tail: bool,
        doc: str,
        otel: str = "",
    ) -> None:
        self.members = members
        self.convert = convert
        self.tail = tail
        self.doc = doc
        self.otel = otel
        self.name = self.annotation = ""
        self.places: list[tuple[int, Type]] = []  # of the members, once bound
        self.sources: struct.Struct | None = None  # unpacks them, if they all have a code

    def named(self, name: str, annotation: object) -> Field:
        """A copy with the name and annotation that the class gives it."""
        members = self.members or (() if self.tail else (name,))
        made = Field(members, self.convert, self.tail, self.doc, self.otel)
        made.name = name
        made.annotation = (getattr(annotation, "__name__", None) or str(annotation)).strip("'\"")
        return made

    def bound(self, record: Type) -> Field:
        """A copy bound to a struct. Raises SettingError if the field does not fit the struct."""
        made = self.named(self.name, self.annotation)
        made.places = [record.member(path) for path in self.members]
        for path, (_, member) in zip(self.members, made.places):
            if _has_no_size(member):
                raise SettingError(
                    f"{self.name}: {path} of {record.name} has no size: read it as the tail, with "
                    "field(tail=True, convert=...)"
                )
        if self.members and all(member.code for _, member in made.places):
            made.sources = layout(record, *self.members)
        elif len(self.members) + self.tail > 1:
            raise SettingError(
                f"{self.name}: only numbers and arrays of bytes can be converted together"
            )
        if self.convert is None:
            made.convert = _usual_conversion(made, record)
        return made

    @property
    def is_integer(self) -> bool:
        """Whether the value is a single integer member, not converted."""
        return self.convert is None and self.places[0][1].kind in ("int", "enum", "pointer")

    def value(self, *values: Any) -> Any:
        """The field's value, from the values of its members and from the tail if it uses that."""
        return values[0] if self.convert is None else self.convert(*values)

    def read(self, record: bytes) -> Any:
        """Reads a member that is neither a number nor an array of bytes."""
        ((offset, member),) = self.places
        return self.value(member.decode(record[offset : offset + member.size]))

    def reader(self, head_size: int) -> Callable[[Event], Any]:
        """The getter of the property, with as few steps as the field allows."""
        convert = self.convert
        if self.sources is None:
            if self.tail:
                return lambda event: self.value(event.record[head_size:])
            return lambda event: self.read(event.record)
        unpack = self.sources.unpack_from
        if convert is None:
            return lambda event: unpack(event.record)[0]
        if self.tail:
            return lambda event: convert(*unpack(event.record), event.record[head_size:])
        return lambda event: convert(*unpack(event.record))


def field(
    *members: str,
    convert: Callable[..., Any] | None = None,
    tail: bool = False,
    doc: str = "",
    otel: str = "",
) -> Any:
    """Declares a field of an event class, made of these members of the struct.

    Args:
        members: paths such as "process.pid" or "ports[0]", in the order of the struct. By default
            the member with the field's own name; with `tail`, none.
        convert: makes the field's value from those of the members: int, bool, float, or bytes for
            an array of char or unsigned char. It must return the same value for the same members,
            because the JSON renderer caches some. By default the annotation decides: `str` is text
            up to the NUL, `bytes` the whole array, `bool` whether a number is not 0.
        tail: pass `convert` the bytes after the struct, too, as its last argument.
        doc: docstring of the property; state unit and source.
        otel: the attribute of OpenTelemetry's semantic conventions that means exactly this, such as
            "process.pid"; "": none, so OpenTelemetry gets it in the tool's own namespace.
    """
    if (tail or len(members) > 1) and convert is None:
        raise SettingError(f"field({', '.join(map(repr, members))}) needs a convert=")
    return Field(members, convert, tail, doc, otel)


_USUAL: dict[str, Callable[..., Any] | None] = {
    "str": text,
    "bool": bool,
    "bytes": None,
    "int": None,
    "float": None,
}
_FIT = {
    "str": ("array",),
    "bytes": ("array",),
    "bool": ("int", "bool", "enum"),
    "int": ("int", "bool", "enum", "pointer"),
    "float": ("float", "int"),
}


def _usual_conversion(declared: Field, record: Type) -> Callable[..., Any] | None:
    """The conversion that the annotation of a field with one member asks for; None: none."""
    ((_, member),) = declared.places
    kinds = _FIT.get(declared.annotation)
    if kinds is not None and (member.kind not in kinds or not member.code):
        raise SettingError(
            f"{declared.name} is a {declared.annotation}, but {declared.members[0]} of "
            f"{record.name} is {member.name}: change the annotation, or give field() a convert="
        )
    return _USUAL.get(declared.annotation)


# ---- Events ----


def _annotations(cls: type) -> dict[str, object]:
    """The annotations of the class itself, without those of its bases."""
    own: dict[str, object] = vars(cls).get("__annotations__") or {}
    if not own and sys.version_info >= (3, 14):  # evaluated lazily there
        own = cls.__annotations__
    return own


def _unbound(event: Event) -> Any:
    raise AttributeError(f"{type(event).__name__} names no struct")


class Event:
    """A record of one kind. Derive a class for each kind, and name its struct.

    Class arguments:
        object: contents of the object file whose BTF has the struct (bytes); by default the object
            that is linked into the extension.
        struct: name of the struct, as in RECORD() (see ring.bpf.h). A class without it is a base
            for fields that several classes share.

    Raises SettingError if a field does not fit the struct. Two events are equal if the bytes of
    their records are; `record` holds these bytes, with `time_ns` converted to wall clock.
    """

    __slots__ = ("record",)
    KIND: ClassVar[int]
    """The number of this kind of record."""
    NAME: ClassVar[str]
    """The value of "event" in JSON: the name of the class, without "Event" and in lower case."""
    HEAD_SIZE: ClassVar[int]
    """Size of the struct in bytes, without the tail."""
    TAIL: ClassVar[tuple[str, ...]] = ()
    """Members that hold the lengths of the parts of the tail, in bytes. A record of another size is
    refused. Without any, only a struct that ends in a flexible array has a tail, of any length."""
    MIN_TAIL: ClassVar[int] = 0
    """Minimum length of the tail, in bytes."""
    FIELDS: ClassVar[dict[str, Field]] = {}
    """All fields by name, those of base classes first."""
    _own: ClassVar[dict[str, Field]] = {}  # the fields that the class itself declares
    _source: ClassVar[tuple[bytes | None, str] | None] = None  # object and struct, once known
    _struct: ClassVar[Type]
    _open_end: ClassVar[int | None]

    time_ns: int = field(
        "header.time_ns",
        doc="""When it happened: wall clock, ns since the epoch.

        The kernel's CLOCK_BOOTTIME at the event (`bpf_ktime_get_boot_ns`), converted by the offset
        between the two clocks when the record was read.
        """,
    )

    def __init__(self, record: bytes) -> None:
        """Wraps the bytes of one record, which `Decoder` has checked."""
        self.record = record

    def __init_subclass__(cls, *, object: bytes | None = None, struct: str = "") -> None:  # noqa: A002
        super().__init_subclass__()
        cls._own = _declared(cls)
        if struct:
            cls._source = object, struct
        elif cls._source is not None and not cls._own:
            return  # it adds only methods
        declared_by = (vars(base).get("_own", {}) for base in reversed(cls.__mro__))
        cls.FIELDS = {name: one for own in declared_by for name, one in own.items()}
        if cls._source is not None:
            cls._bind(*cls._source)
        else:
            for name, declared in cls._own.items():
                setattr(cls, name, property(_unbound, doc=declared.doc or None))

    @classmethod
    def _bind(cls, elf: bytes | None, struct_name: str) -> None:
        records = {
            found.name.partition(" ")[2]: (kind, found)
            for kind, found in types_of(elf).records().items()
        }
        if struct_name not in records:
            raise SettingError(
                f"the object has no record {struct_name!r}; it has {', '.join(records) or 'none'}: "
                f"add RECORD(1, {struct_name}); to the BPF source"
            )
        cls.KIND, cls._struct = records[struct_name]
        cls._open_end = _open_end(cls._struct)
        cls.HEAD_SIZE = cls._struct.size if cls._open_end is None else cls._open_end
        if "NAME" not in vars(cls):
            cls.NAME = cls.__name__.removesuffix("Event").lower()
        cls.FIELDS = {name: one.bound(cls._struct) for name, one in cls.FIELDS.items()}
        for name, bound in cls.FIELDS.items():
            setattr(cls, name, property(bound.reader(cls.HEAD_SIZE), doc=bound.doc or None))

    @classmethod
    def _kind(cls, make: Callable[[bytes], Any] | None) -> tuple[Any, ...]:
        """The entry for `Decoder`; `make`, if given, is called instead of the class."""
        unpack: Any = layout(cls._struct, *_HEADER, *cls.TAIL).unpack_from
        if len(cls.TAIL) != 2:
            any_length = not cls.TAIL and cls._open_end is not None
            unpack = _with_two_parts(unpack, cls.HEAD_SIZE if any_length else None)
        return make or cls, unpack, cls.HEAD_SIZE, cls.HEAD_SIZE + cls.MIN_TAIL

    @classmethod
    def unpacker(cls, members: Iterable[str]) -> Callable[[bytes], tuple[Any, ...]]:
        """A function that unpacks these members, given in the struct's order, at once.

        For code that must be fast. `FIELDS[name].members` lists the members of a field.
        """
        return layout(cls._struct, *members).unpack_from

    def asdict(self) -> dict[str, Any]:
        """All fields by name, in a fixed order; named tuples become dictionaries."""
        fields = {name: getattr(self, name) for name in self.FIELDS}
        for name, value in fields.items():
            if hasattr(value, "_asdict"):
                fields[name] = value._asdict()
        return fields

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.FIELDS)
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        if type(other) is type(self):
            return self.record == other.record
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.record)

    def __reduce__(self) -> tuple[type[Event], tuple[bytes]]:
        return type(self), (self.record,)


def _declared(cls: type) -> dict[str, Field]:
    """The fields that a class declares: `field()` calls, and public annotations without a value."""
    annotated = {
        name: annotation
        for name, annotation in _annotations(cls).items()
        if not name.startswith("_") and "ClassVar" not in str(annotation)
    }
    for name, value in vars(cls).items():
        if isinstance(value, Field):
            annotated.setdefault(name, "Any")
    found = {}
    for name, annotation in annotated.items():
        value = vars(cls).get(name) or Field((), None, False, "")
        if not isinstance(value, Field):
            raise SettingError(f"{cls.__name__}.{name} is not a field: annotate it as a ClassVar")
        if _is_taken(name):
            raise SettingError(
                f"events already have a {name}: use another name, and field({name!r})"
            )
        found[name] = value.named(name, annotation)
    for name in cls.FIELDS:  # type: ignore[attr-defined]
        if name in vars(cls) and name not in found:
            raise SettingError(
                f"{cls.__name__}.{name} is a field of a base class: declare it with field(), or "
                "use another name"
            )
    return found


def _is_taken(name: str) -> bool:
    """Whether an event or its JSON object already uses this name."""
    return name in vars(Event) or name in ("event", "time")


Event._own = {"time_ns": vars(Event)["time_ns"].named("time_ns", "int")}


def _open_end(record: Type) -> int | None:
    """The offset of the flexible array that ends a struct, if there is one."""
    members = record.members.values()
    end = max((at + found.size for at, found in members), default=0)
    return next((at for at, found in members if _has_no_size(found) and at >= end), None)


def _has_no_size(found: Type) -> bool:
    return found.kind == "array" and found.size == 0


def _with_two_parts(
    unpack: Callable[[bytes, int], tuple[int, ...]], head_size: int | None
) -> Callable[[bytes, int], tuple[int, ...]]:
    """Adapts `unpack` to a tail without exactly two parts: it returns the total length, and 0.

    With a head_size the tail is everything that follows the head.
    """

    def unpack_two(batch: bytes, at: int) -> tuple[int, ...]:
        size, time_ns, lost, *parts = unpack(batch, at)
        return size, time_ns, lost, sum(parts) if head_size is None else size - head_size, 0

    return unpack_two


def make_decoder(
    events: Iterable[type[Event]], makers: Mapping[int, Callable[[bytes], Any]] | None = None
) -> Decoder:
    """A Decoder for these classes; `makers` has, by kind, functions to call instead of a class."""
    makers = makers or {}
    return Decoder({event.KIND: event._kind(makers.get(event.KIND)) for event in events})


# ---- Classes made from BTF ----


@lru_cache(maxsize=8)
def event_classes(elf: bytes | None) -> tuple[type[Event], ...]:
    """A class for each kind of record of an object, made from its BTF, with its members as fields.

    Arrays of char become text up to the NUL, arrays of unsigned char bytes, other arrays lists,
    inner structs dictionaries. A flexible array at the end becomes the rest of the record, as
    bytes. Bitfields and members whose names begin with "_" are left out; a name that events already
    use gets a "_" appended. These events cannot be pickled.
    """
    return tuple(_made(elf, found) for found in types_of(elf).records().values())


def _made(elf: bytes | None, record: Type) -> type[Event]:
    name = record.name.partition(" ")[2]
    body: dict[str, Any] = {"__slots__": (), "NAME": name, "__annotations__": {}}
    end = _open_end(record)
    for member, (at, found) in record.members.items():
        is_tail = _has_no_size(found) and at == end
        if member == "header" or member.startswith("_") or found.kind == "other":
            continue
        if _has_no_size(found) and not is_tail:  # it only marks an offset
            continue
        own = member
        while own in body or _is_taken(own):
            own += "_"
        body[own] = field(tail=True, convert=bytes) if is_tail else field(member)
        body["__annotations__"][own] = _annotation(found)
    title = "".join(part.capitalize() for part in name.split("_"))
    body["__doc__"] = f"A record of {record.name}."
    return type(title, (Event,), body, object=elf, struct=name)


def _annotation(found: Type) -> str:
    if found.kind == "array" and found.code:
        return "str" if "unsigned" not in found.name else "bytes"
    return {"int": "int", "enum": "int", "pointer": "int", "bool": "bool"}.get(found.kind, "Any")
