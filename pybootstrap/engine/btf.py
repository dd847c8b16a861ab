# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The types of a BPF object, read from the object's own BTF.

    types = Btf.of_object(elf)
    offset, kind = types.variables(".rodata")["min_size"]
    data[offset : offset + kind.size] = kind.encode(4096, "min_size")

The format is described in the kernel's Documentation/bpf/btf.rst. Every start of a command reads
BTF, so that only builds an index; a `Type` is made when it is first used.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Mapping
from operator import index
from os import fsencode

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine.errors import ObjectError, RecordError, SettingError

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Btf", "Type", "layout", "section"]

# ---- ELF ----

_ELF_HEADER = struct.Struct("=4sBB10xHH20xQ10xHHH")
_SECTION_HEADER = struct.Struct("=II16xQQ24x")
_SYMBOL_VALUE = struct.Struct("=8xQ8x")
_RELOCATION = struct.Struct("=QQ")
_RELOCATABLE, _EM_BPF, _NOBITS = 1, 247, 8
_ORDERS = {1: "little", 2: "big"}


def _find_section(elf: bytes, name: str) -> bytes | None:
    """A section's contents, empty for .bss; None when there is no such section."""
    if elf[:4] != b"\x7fELF":
        raise ObjectError("not an object file: it is not in ELF format")
    if len(elf) < _ELF_HEADER.size:
        raise ObjectError(f"the object file is truncated: it has {len(elf)} bytes")
    _, bits, data, kind, machine, table, entry, count, names = _ELF_HEADER.unpack_from(elf)
    order = _ORDERS.get(data, "unknown")
    if order != sys.byteorder:
        raise ObjectError(
            f"the object file is for {order}-endian machines, but this one is "
            f"{sys.byteorder}-endian: compile it here, with clang -target bpf"
        )
    if (bits, kind, machine) != (2, _RELOCATABLE, _EM_BPF):
        raise ObjectError("this ELF file is not a BPF object: compile it with clang -target bpf -c")
    end = table + count * _SECTION_HEADER.size
    if entry != _SECTION_HEADER.size or names >= count or end > len(elf):
        raise ObjectError("the object file is truncated: its section table is missing")
    headers = list(_SECTION_HEADER.iter_unpack(elf[table:end]))
    strings, wanted = headers[names][2], name.encode() + b"\0"
    for at, kind, start, size in headers:
        if elf[strings + at : strings + at + len(wanted)] == wanted:
            end = start if kind == _NOBITS else start + size
            if end > len(elf):
                raise ObjectError(f"the object file is truncated: section {name} is not complete")
            return elf[start:end]
    return None


def section(elf: bytes, name: str) -> bytes:
    """The contents of a section of a BPF object; empty for one that has only a size (.bss).

    Raises ObjectError when the file is not a BPF object for this machine or lacks the section.
    """
    found = _find_section(elf, name)
    if found is None:
        hint = ": compile it with clang -g" if name == ".BTF" else ""
        raise ObjectError(f"the object file has no section {name}{hint}")
    return found


def _relocated_btf(elf: bytes) -> bytes:
    """The BTF with the offsets of variables filled in.

    Clang leaves them to relocations; `bpftool gen object` applies these and removes them.
    """
    btf = bytearray(section(elf, ".BTF"))
    relocations = _find_section(elf, ".rel.BTF") or b""
    symbols = _find_section(elf, ".symtab") or b""
    try:
        for at, info in _RELOCATION.iter_unpack(relocations):
            (value,) = _SYMBOL_VALUE.unpack_from(symbols, (info >> 32) * _SYMBOL_VALUE.size)
            (addend,) = struct.unpack_from("=I", btf, at)
            struct.pack_into("=I", btf, at, addend + value)
    except (struct.error, OverflowError, IndexError):
        raise ObjectError("the object file is damaged: a relocation of its BTF is wrong") from None
    return bytes(btf)


# ---- Types and values ----

# Codes of the struct module, by size.
_SIGNED = {1: "b", 2: "h", 4: "i", 8: "q"}
_UNSIGNED = {1: "B", 2: "H", 4: "I", 8: "Q"}
_FLOATS = {4: "f", 8: "d"}
_BOOLS = {1: "?"}
_STRUCTS = ("struct", "union")


class Type:
    """A C type, which encodes and decodes its values. Typedefs and qualifiers are resolved."""

    __slots__ = ("_weight", "code", "count", "element", "kind", "members", "name", "size")

    def __init__(self, kind: str, name: str, size: int, code: str = "") -> None:
        self.kind = kind
        """"int", "bool", "float", "enum", "pointer", "array", "struct", "union"; or "other" for
        types without values here: bitfields, functions, integers of 16 bytes."""
        self.name = name
        """As in C, such as "unsigned int", "struct filters" or "char[16]"."""
        self.size = size
        """Size in bytes."""
        self.code = code
        """Code of the struct module: "I" and the like for numbers, "16s" for arrays of bytes, else
        empty."""
        self.element: Type | None = None
        """The type of an array's elements."""
        self.count = 0
        """The number of an array's elements."""
        self.members: dict[str, tuple[int, Type]] = {}
        """Offset and type of a struct's members, including those of anonymous inner structs."""
        self._weight = 1  # how many types this one is made of

    def __repr__(self) -> str:
        return f"<{self.name}, {self.size} bytes>"

    def member(self, path: str) -> tuple[int, Type]:
        """Offset and type of the member at a path such as "process.pid" or "pid[3]".

        Raises SettingError if there is no such member.
        """
        at, found = 0, self
        for step in path.replace("[", ".[").lstrip(".").split("."):
            offset, found = found._step(step)
            at += offset
        if found.kind == "other":
            raise found._refusal()
        return at, found

    def _step(self, step: str) -> tuple[int, Type]:
        if self.element is not None:
            number = step[1:-1] if step[:1] + step[-1:] == "[]" else ""
            if number.isdecimal() and int(number[:10]) < self.count:
                return int(number) * self.element.size, self.element
        elif step in self.members:
            return self.members[step]
        raise self._no_member(step, self.name)

    def _no_member(self, key: object, owner: str) -> SettingError:
        known = ", ".join(self.members) or (f"{self.count} elements" if self.element else "none")
        return SettingError(f"{owner} has no member {_shown(key)}; it has {known}")

    def _refusal(self) -> SettingError:
        return SettingError(
            f"{self.name} cannot be read or set: use whole integers of 1 to 8 bytes"
        )

    def encode(self, value: object, name: str = "") -> bytes:
        """The bytes of a value; errors call it `name`.

        Takes integers and bools for numbers, str or bytes for arrays of bytes, sequences for
        arrays, mappings for structs and unions; missing members and elements are zero. Text that
        fills its array has no final NUL. If members of a union overlap, the last one given counts.

        Raises SettingError if the value does not fit.
        """
        buffer = bytearray(self.size)
        self._write(buffer, 0, value, name or self.name)
        return bytes(buffer)

    def _write(self, buffer: bytearray, at: int, value: object, name: str) -> None:
        if self.kind in _STRUCTS:
            if not isinstance(value, Mapping):
                raise SettingError(f"{name}: {self.name} takes a mapping, not {_shown(value)}")
            for key, item in value.items():
                if key not in self.members:
                    raise self._no_member(key, f"{name}: {self.name}")
                offset, member = self.members[key]
                member._write(buffer, at + offset, item, f"{name}.{key}")
        elif self.element is not None:
            items, size = self._items(value, name), self.element.size
            if isinstance(items, bytes):
                buffer[at : at + len(items)] = items
            else:
                for place, item in enumerate(items):
                    self.element._write(buffer, at + place * size, item, f"{name}[{place}]")
        else:
            struct.pack_into(f"={self.code}", buffer, at, self._number(value, name))

    def _items(self, value: object, name: str) -> bytes | list[object]:
        """The elements to write to an array: at most `count`."""
        items: bytes | list[object]
        if self.code and isinstance(value, (str, bytes, bytearray)):
            items = fsencode(value) if isinstance(value, str) else bytes(value)
        elif isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
            items = list(value)
        else:
            wanted = "text, bytes or a sequence" if self.code else "a sequence"
            raise SettingError(f"{name}: {self.name} takes {wanted}, not {_shown(value)}")
        if len(items) > self.count:
            raise SettingError(f"{name}: {self.name} has no room for {len(items)} elements")
        return items

    def _number(self, value: object, name: str) -> Any:
        if not self.code:
            raise self._refusal()
        if self.kind == "float":
            try:
                struct.pack(f"={self.code}", value)
            except (struct.error, OverflowError):
                raise SettingError(f"{name}: {self.name} cannot hold {_shown(value)}") from None
            return value
        bits = 1 if self.kind == "bool" else 8 * self.size
        low = -(1 << bits - 1) if self.code.islower() else 0
        high = low + (1 << bits) - 1
        try:
            number = index(value)  # type: ignore[arg-type]
        except TypeError:
            number = low - 1
        if not low <= number <= high:
            raise SettingError(f"{name}: {self.name} takes {low} to {high}, not {_shown(value)}")
        return number

    def decode(self, data: bytes) -> Any:
        """The value that `data` begins with: int, bool, float, bytes, list or dict.

        Raises RecordError if `data` is shorter than the type.
        """
        if len(data) < self.size:
            raise RecordError(f"{self.name} has {self.size} bytes, but only {len(data)} are there")
        return self._read(data, 0)

    def _read(self, data: bytes, at: int) -> Any:
        if self.code:
            return struct.unpack_from(f"={self.code}", data, at)[0]
        if self.kind in _STRUCTS:
            return {
                name: member._read(data, at + offset)
                for name, (offset, member) in self.members.items()
                if member.kind != "other"  # bitfields
            }
        if self.element is None:
            raise self._refusal()
        size = self.element.size
        return [self.element._read(data, at + place * size) for place in range(self.count)]


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python refuses to print a number of more than 4300 digits
        return f"a huge {type(value).__name__}"


def layout(record: Type, *paths: str) -> struct.Struct:
    """A precompiled `struct.Struct` for these members, given in the order of the record."""
    form, position = "=", 0
    for path in paths:
        offset, member = record.member(path)
        if not member.code:
            raise SettingError(f"{path} of {record.name} is {member.name}, not a single value")
        if offset < position:
            ordered = ", ".join(sorted(paths, key=lambda one: record.member(one)[0]))
            raise SettingError(
                f"{path} of {record.name} is out of the struct's order, which is {ordered}"
            )
        form += f"{offset - position}x{member.code}"
        position = offset + member.size
    return struct.Struct(form)


# ---- BTF ----

_BTF_HEADER = struct.Struct("=HBBIIIII")
_MAGIC, _SWAPPED_MAGIC = 0xEB9F, 0x9FEB
(
    _INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT,
    _FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64,
) = range(1, 20)  # fmt: skip
# How many words follow the first three of a type, by kind: once, and for each of its members.
_FIXED = (0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0)
_EACH = (0, 0, 0, 0, 3, 3, 2, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 3)
_MODIFIERS = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_IS_SIGNED, _IS_BOOL = 1, 4  # flags of an integer's encoding

# No real object comes near these limits. With them, reading damaged BTF fails soon.
_MAX_DEPTH = 64  # types within types; a type that contains itself exceeds it, too
_MAX_SIZE = 1 << 30  # bytes of one type
_MAX_WEIGHT = 1 << 16  # types that one type is made of


class Btf:
    """The types and variables of one object.

    Raises ObjectError if the bytes are not valid BTF, here or when a type is read.
    """

    def __init__(self, raw: bytes) -> None:
        try:
            magic, version, _, start, types, size, names, names_size = _BTF_HEADER.unpack_from(raw)
        except struct.error:
            raise ObjectError(f"the BTF is truncated: it has {len(raw)} bytes") from None
        if magic == _SWAPPED_MAGIC:
            raise ObjectError(
                f"the BTF is not for {sys.byteorder}-endian machines such as this one"
            )
        if magic != _MAGIC or version != 1:
            raise ObjectError("not BTF, or of an unknown version")
        if size % 4 or start + max(types + size, names + names_size) > len(raw):
            raise ObjectError(f"the BTF is truncated: it has {len(raw)} bytes")
        self._strings = raw[start + names : start + names + names_size]
        self._words = memoryview(raw)[start + types : start + types + size].cast("I")
        self._starts = [0]  # index of the first word of each type, by its id; 0 is void
        self._ids: list[list[int]] = [[] for _ in _FIXED]  # ids of types, by kind
        self._types: dict[int, Type] = {0: Type("other", "void", 0)}
        self._records: dict[int, Type] | None = None
        self._depth = 0
        self._index()

    @classmethod
    def of_object(cls, elf: bytes) -> Btf:
        """The BTF of a BPF object file, as clang or `bpftool gen object` wrote it."""
        return cls(_relocated_btf(elf))

    def struct(self, name: str) -> Type:
        """The struct or union of this name, or the one that a typedef of this name stands for.

        Raises SettingError if the object has none.
        """
        for kind in (_STRUCT, _UNION, _TYPEDEF):
            for type_id in self._named(kind, name):
                found = self._type(type_id)
                if found.kind in _STRUCTS:
                    return found
        known = ", ".join(self._names(_STRUCT) + self._names(_UNION)) or "none"
        raise SettingError(
            f"the object has no struct {name!r}; it has {known}. Clang drops types that no program "
            f"and no global variable uses: add `const struct {name} *unused_{name} "
            "__attribute__((unused));` to the BPF source"
        )

    def sections(self) -> list[str]:
        """The names of the sections that have variables, such as ".rodata"."""
        return self._names(_DATASEC)

    def variables(self, section: str) -> dict[str, tuple[int, Type]]:
        """Offset and type of each variable of a section; empty if there is no such section."""
        found = {}
        for section_id in self._named(_DATASEC, section):
            _, _, count, _, end = self._head(section_id)  # clang leaves the size of a section 0
            for variable_id, offset, _ in self._triples(section_id, count):
                kind, name, _, _, type_id = self._head(variable_id)
                if kind != _VAR:  # .ksyms has functions, too
                    continue
                variable = self._type(type_id)
                if end and offset + variable.size > end:
                    raise ObjectError(f"the BTF is damaged: a variable is outside of {section}")
                found[self._name(name)] = (offset, variable)
        return found

    def records(self) -> dict[int, Type]:
        """The structs of records, by the numbers that RECORD() in ring.bpf.h gives them.

        Raises ObjectError if two have the same number.
        """
        if self._records is not None:
            return self._records
        found: dict[int, Type] = {}
        for variable_id in self._ids[_VAR]:
            _, name_at, _, _, type_id = self._head(variable_id)
            before, _, name = self._name(name_at).partition("record_")
            kind, _, _, _, target_id = self._head(type_id)
            if before or kind != _PTR or self._type(target_id).name != f"struct {name}":
                continue
            number = self.constant(f"KIND_{name}")
            if number in found:
                raise ObjectError(
                    f"{found[number].name} and struct {name} are both of kind {number}"
                )
            found[number] = self._type(target_id)
        self._records = dict(sorted(found.items()))
        return self._records

    def constant(self, name: str) -> int:
        """The value of a 32-bit enumerator, taken as signed because clang before 15 does not say.

        Raises SettingError if the object has none of this name.
        """
        for type_id in self._ids[_ENUM]:
            _, _, count, _, _ = self._head(type_id)
            at = self._starts[type_id] + 3
            words = self._words[at : at + 2 * count]
            for name_at, value in zip(words[::2], words[1::2]):
                if self._name(name_at) == name:
                    return value - (value >> 31 << 32)
        raise SettingError(
            f"the object has no enumerator {name!r} of 32 bits. Clang drops types that no program "
            "and no global variable uses: add `const enum NAME *unused_NAME "
            "__attribute__((unused));` to the BPF source"
        )

    # ---- The index ----

    def _index(self) -> None:
        """Index all types, and check that each ends within the bytes: reading needs no checks."""
        words, starts, ids = self._words, self._starts, self._ids
        at, end = 0, len(words)
        try:
            while at + 2 < end:
                info = words[at + 1]
                kind = info >> 24 & 31
                ids[kind].append(len(starts))
                starts.append(at)
                at += 3 + _FIXED[kind] + _EACH[kind] * (info & 0xFFFF)
        except IndexError:
            raise ObjectError(
                f"the BTF is damaged: type {len(starts)} is of an unknown kind"
            ) from None
        if at != end:
            raise ObjectError(f"the BTF is truncated in type {len(starts) - 1}")

    def _head(self, type_id: int) -> tuple[int, int, int, int, int]:
        """Kind, offset of the name, number of members, kind_flag, and size or type id."""
        if type_id >= len(self._starts):
            raise ObjectError(f"the BTF is damaged: there is no type {type_id}")
        at = self._starts[type_id]
        name, info, size = self._words[at : at + 3]
        return info >> 24 & 31, name, info & 0xFFFF, info >> 31, size

    def _triples(self, type_id: int, count: int) -> Any:
        """The words after a type's first three, in groups of three."""
        at = self._starts[type_id] + 3
        words = iter(self._words[at : at + 3 * count])
        return zip(words, words, words)

    def _name(self, at: int) -> str:
        end = self._strings.find(b"\0", at)
        if end < 0:
            raise ObjectError("the BTF is damaged: a name is not among its strings")
        return self._strings[at:end].decode("utf-8", "replace")

    def _named(self, kind: int, name: str) -> Iterable[int]:
        """The ids of the types of this kind that have this name."""
        wanted = name.encode("utf-8", "replace") + b"\0"
        for type_id in self._ids[kind]:
            if self._strings.startswith(wanted, self._words[self._starts[type_id]]):
                yield type_id

    def _names(self, kind: int) -> list[str]:
        names = {self._name(self._words[self._starts[type_id]]) for type_id in self._ids[kind]}
        return sorted(names - {""})

    def plain_type(self, type_id: int, size: int) -> Type:
        """The type with this id; for 0 (unknown) an unsigned integer or bytes of this size."""
        if type_id:
            return self._type(type_id)
        if size in _UNSIGNED:
            return Type("int", f"{size} bytes", size, _UNSIGNED[size])
        plain = Type("array", f"unsigned char[{size}]", size, f"{size}s")
        plain.element, plain.count = Type("int", "unsigned char", 1, "B"), size
        return plain

    # ---- Making types ----

    def _type(self, type_id: int) -> Type:
        found = self._types.get(type_id)
        if found is None:
            if self._depth == _MAX_DEPTH:
                raise ObjectError(f"the BTF is damaged: type {type_id} is nested without end")
            self._depth += 1
            try:
                found = self._make(type_id)
            finally:
                self._depth -= 1
            if found.size > _MAX_SIZE:
                raise ObjectError(f"the BTF is damaged: {found.name} is too big")
            self._types[type_id] = found
        return found

    def _make(self, type_id: int) -> Type:
        kind, name_at, _, flag, size = self._head(type_id)
        if kind in _MODIFIERS:
            return self._type(size)
        if kind == _ARRAY:
            return self._make_array(type_id)
        if kind in (_STRUCT, _UNION):
            return self._make_struct(type_id)
        name, codes, what = self._name(name_at), _UNSIGNED, "other"
        if kind == _INT:
            what, codes = _int_codes(size, self._words[self._starts[type_id] + 3])
        elif kind in (_ENUM, _ENUM64):
            what, name, codes = "enum", f"enum {name}".strip(), _SIGNED if flag else _UNSIGNED
        elif kind == _FLOAT:
            what, codes = "float", _FLOATS
        elif kind == _PTR:
            what, name, size = "pointer", "a pointer", 8
        else:
            size = 0
        code = codes.get(size, "")
        return Type(what if code else "other", name or "a function", size, code)

    def _make_array(self, type_id: int) -> Type:
        ((element_id, _, count),) = self._triples(type_id, 1)
        element = self._type(element_id)
        name, bracket, inner = element.name.partition("[")
        made = Type("array", f"{name}[{count}]{bracket}{inner}", count * element.size)
        made.element, made._weight = element, element._weight + 1
        made.count = count if element.size else 0  # any number of empty elements would fit
        if element.kind == "int" and (element.code == "B" or element.name == "char"):
            made.code = f"{count}s"
        return made

    def _make_struct(self, type_id: int) -> Type:
        kind, name_at, count, flag, size = self._head(type_id)
        word = "struct" if kind == _STRUCT else "union"
        made = Type(word, f"{word} {self._name(name_at)}".strip(), size)
        for member_name, member_id, bits in self._triples(type_id, count):
            name, member = self._name(member_name), self._type(member_id)
            at, width = (bits & 0xFFFFFF, bits >> 24) if flag else (bits, 0)
            if width or at % 8:
                member = Type("other", f"{made.name}'s bitfield {name}", 0)
            offset = at // 8
            inner = member.members if member.kind in _STRUCTS and not name else {name: (0, member)}
            places = {
                key: (offset + inside, found) for key, (inside, found) in inner.items() if key
            }
            made._weight += member._weight
            if offset + member.size > size or made._weight > _MAX_WEIGHT:
                raise ObjectError(f"the BTF is damaged: {made.name} has no room for {name!r}")
            if not places.keys().isdisjoint(made.members):
                raise ObjectError(f"the BTF is damaged: {made.name} has two members {name!r}")
            made.members.update(places)
        return made


def _int_codes(size: int, word: int) -> tuple[str, dict[int, str]]:
    """Kind and codes of an integer; `word` has its encoding, and its offset and width in bits."""
    encoding, bits = word >> 24, word & 0xFFFFFF
    if bits != 8 * size:  # a bitfield, as older compilers write them
        return "other", {}
    if encoding & _IS_BOOL and size == 1:
        return "bool", _BOOLS
    return "int", _SIGNED if encoding & _IS_SIGNED else _UNSIGNED
