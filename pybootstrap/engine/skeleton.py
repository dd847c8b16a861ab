# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""A BPF object: its variables, maps and programs by name; open, then load, then attach.

    skeleton = Skeleton(Path("mytool.bpf.o").read_bytes())     # open
    skeleton.rodata.port = 443
    skeleton.maps.rb.max_entries = 1 << 20
    skeleton.progs.on_packet.autoload = False
    skeleton.load()
    skeleton.attach()
    print(skeleton.bss.lost)
    skeleton.close()

Names, sizes and types of variables come from the object's own BTF. An unknown name is an error that
lists the known ones. A value that does not fit and a step out of order are errors, too.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from errno import EALREADY, ENODEV, ENOENT, ENOKEY, ESHUTDOWN
from functools import lru_cache

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine._native import ffi, lib
from pybootstrap.engine.btf import Btf
from pybootstrap.engine.errors import (
    LoadError,
    ObjectError,
    SettingError,
    StateError,
    UnknownNameError,
    start_error,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Callable

    from pybootstrap.engine.btf import Type

__all__ = ["Map", "Names", "Program", "Skeleton", "Variables", "types_of"]

_MAX_NS = 2**63 - 1


def linked_object() -> Any:
    """The object file that is linked into the extension, as a buffer: slices of it are bytes."""
    size = ffi.new("unsigned long long *")
    return ffi.buffer(lib.shim_linked_object(size), size[0])


@lru_cache(maxsize=8)
def types_of(elf: bytes | None) -> Btf:
    """The types of an object file, or of the object that is linked in (None).

    Raises ObjectError if the file is not a BPF object or has no BTF.
    """
    return Btf.of_object(linked_object() if elf is None else elf)


class _Handle:
    """What a skeleton shares with its maps, programs and variables.

    They must not refer to the skeleton: in a reference cycle, one that nobody closed would stay
    until the garbage collector runs.
    """

    __slots__ = ("loaded", "sections", "shim", "types")

    def __init__(self, shim: Any, types: Btf) -> None:
        self.shim = shim
        self.types = types
        self.loaded = False
        self.sections: dict[str, dict[str, tuple[int, Type]]] = {}

    def check(self, code: int) -> int:
        """Returns the code of a shim function; StateError if the skeleton was closed."""
        if code == -ESHUTDOWN:
            raise StateError("this skeleton was closed: make a new one")
        return code

    def check_setting(self, code: int, what: str) -> None:
        """Checks the code of a function that sets something before load."""
        self.check(code)
        if code < 0 and self.loaded:
            raise StateError(f"{what} can only be set before load()")
        if code < 0:
            raise SettingError(f"{what} cannot be set: {os.strerror(-code)}")

    def check_start(self, code: int, step: str) -> None:
        """Checks the code of a step of starting."""
        self.check(code)
        if code < 0:
            raise start_error(-code, step, self.log)

    @property
    def log(self) -> str:
        """All messages of libbpf and the kernel's verifier."""
        return ffi.string(lib.shim_log(self.shim)).decode(errors="replace")


class Names:
    """The maps or the programs of an object, as attributes; iteration yields them."""

    def __init__(self, what: str, parts: dict[str, Any]) -> None:
        self._what = what
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle ask before __init__ has run
            raise AttributeError(name)
        try:
            return self._parts[name]
        except KeyError:
            raise _unknown(self._what, name, self._parts) from None

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_"):
            raise StateError(f"the {self._what} {name} cannot be replaced: set its attributes")
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parts.values())

    def __len__(self) -> int:
        return len(self._parts)

    def __dir__(self) -> list[str]:
        return sorted(self._parts)


def _unknown(what: str, name: str, there_are: Any) -> UnknownNameError:
    return UnknownNameError(
        f"this object has no {what} {name!r}; it has {', '.join(sorted(there_are)) or 'none'}"
    )


class Variables:
    """The global variables of a section, as attributes.

    `const volatile` ones (rodata) can be set only before load, because the verifier treats them as
    constants. The others can be read and set at any time.
    """

    def __init__(self, handle: _Handle, section: str) -> None:
        known = handle.sections.get(section)
        if known is None:
            known = handle.sections[section] = handle.types.variables(section)
        vars(self).update(_handle=handle, _section=section, _known=known)

    def _find(self, name: str) -> Any:
        try:
            return self._known[name]
        except KeyError:
            raise _unknown(f"variable in {self._section}", name, self._known) from None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle ask before __init__ has run
            raise AttributeError(name)
        offset, kind = self._find(name)
        value = ffi.new("char[]", kind.size)
        where = (self._section.encode(), offset, value, kind.size)
        if self._handle.check(lib.shim_get(self._handle.shim, *where)) < 0:
            raise StateError(f"{name} cannot be read: {self._section} has no variables in memory")
        return kind.decode(ffi.buffer(value)[:])

    def __setattr__(self, name: str, value: object) -> None:
        offset, kind = self._find(name)
        encoded = kind.encode(value, name)
        where = (self._section.encode(), offset, encoded, len(encoded))
        code = lib.shim_set(self._handle.shim, *where)
        if code < 0 and code != -ESHUTDOWN:
            raise StateError(f"{name} is constant after load: set it before")
        self._handle.check(code)

    def __dir__(self) -> list[str]:
        return sorted(self._known)


class Map:
    """A map: its settings before load, its entries after.

    Entries are read and written like those of a dict. Keys and values have the types that the
    object declares (numbers, bytes for arrays of char, lists, dicts for structs). A per-CPU map has
    for each key a list of values, one for each possible CPU.
    """

    def __init__(self, handle: _Handle, name: str) -> None:
        self._handle = handle
        self.name = name
        self._key = name.encode()
        self._forms: tuple[Any, Type, Type] | None = None

    def _about(self) -> Any:
        about = ffi.new("struct shim_map *")
        self._handle.check(lib.shim_map(self._handle.shim, self._key, about))
        return about

    @property
    def type(self) -> int:
        """A value of enum bpf_map_type in linux/bpf.h."""
        kind: int = self._about().type
        return kind

    @property
    def max_entries(self) -> int:
        """The most entries that it can have; for a ring buffer, bytes. Set it before load."""
        count: int = self._about().max_entries
        return count

    @max_entries.setter
    def max_entries(self, count: int) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < 2**32:
            raise SettingError(
                f"{self.name}.max_entries must be a whole number from 1 to {2**32 - 1}, not "
                f"{count!r}"
            )
        code = lib.shim_set_max_entries(self._handle.shim, self._key, count)
        self._handle.check_setting(code, f"{self.name}.max_entries")

    def set_autocreate(self, on: bool) -> None:
        """Whether load creates the map; programs that use it need it. Call this before load."""
        code = lib.shim_set_autocreate(self._handle.shim, self._key, bool(on))
        self._handle.check_setting(code, f"{self.name}.set_autocreate()")

    # ---- Entries ----

    def _types(self) -> tuple[Any, Type, Type]:
        """The map's description and the types of keys and values, which load makes final."""
        if not self._handle.loaded:
            raise StateError(f"the map {self.name} has no entries before load()")
        if self._forms is None:
            about, types = self._about(), self._handle.types
            forms = (
                types.plain_type(about.key_type, about.key_size),
                types.plain_type(about.value_type, about.value_size),
            )
            if [form.size for form in forms] != [about.key_size, about.value_size]:
                raise ObjectError(f"the map {self.name} has sizes other than those of its types")
            self._forms = (about, *forms)
        return self._forms

    def _failed(self, code: int, key: object) -> Exception:
        """The error for the code of a shim function."""
        self._handle.check(code)
        if code == -ENODEV:
            return StateError(f"the map {self.name} was not created")
        return OSError(-code, f"map {self.name}, key {key!r}: {os.strerror(-code)}")

    def _key_of(self, key: object) -> tuple[bytes, int]:
        encoded = self._types()[1].encode(key)
        return encoded, len(encoded)

    def __getitem__(self, key: object) -> Any:
        about, _, value_type = self._types()
        value = ffi.new("char[]", about.entry_size)
        place = (*self._key_of(key), value, about.entry_size)
        code = lib.shim_map_lookup(self._handle.shim, self._key, *place)
        if code == -ENOENT:
            raise KeyError(key)
        if code < 0:
            raise self._failed(code, key)
        got = ffi.buffer(value)[:]
        if not about.per_cpu:
            return value_type.decode(got)
        step = (about.value_size + 7) // 8 * 8
        each = (got[i : i + about.value_size] for i in range(0, len(got), step))
        return list(map(value_type.decode, each))

    def __setitem__(self, key: object, value: Any) -> None:
        about, _, value_type = self._types()
        if about.per_cpu:
            if not hasattr(value, "__iter__"):
                value = [value]  # which are too few
            pad = bytes(-about.value_size % 8)
            encoded = b"".join(value_type.encode(one) + pad for one in value)
            if len(encoded) != about.entry_size:
                raise SettingError(
                    f"the map {self.name} takes a list of {lib.shim_possible_cpus()} values, one "
                    f"for each possible CPU, not {value!r}"
                )
        else:
            encoded = value_type.encode(value)
        place = (*self._key_of(key), encoded, len(encoded))
        code = lib.shim_map_update(self._handle.shim, self._key, *place)
        if code < 0:
            raise self._failed(code, key)

    def __delitem__(self, key: object) -> None:
        code = lib.shim_map_delete(self._handle.shim, self._key, *self._key_of(key))
        if code == -ENOENT:
            raise KeyError(key)
        if code < 0:
            raise self._failed(code, key)

    def __contains__(self, key: object) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[Any]:
        """Its keys. If entries are deleted meanwhile, some keys may come twice."""
        about, key_type, _ = self._types()
        size = about.key_size
        before, key = ffi.NULL, ffi.new("char[]", size)
        while True:
            code = lib.shim_map_next(self._handle.shim, self._key, before, key, size)
            if code == -ENOENT:
                return
            if code < 0:
                raise self._failed(code, "any")
            before = ffi.new("char[]", ffi.buffer(key)[:])
            yield key_type.decode(ffi.buffer(key)[:])

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Keys and values, without entries that are deleted meanwhile."""
        for key in self:
            with suppress(KeyError):
                yield key, self[key]

    def total(self, key: object) -> int:
        """The sum of a per-CPU counter over all CPUs."""
        return sum(self[key])

    def __repr__(self) -> str:
        return f"<map {self.name}>"


class Program:
    """A program: whether it is loaded, where it is attached."""

    def __init__(self, handle: _Handle, name: str) -> None:
        self._handle = handle
        self.name = name
        self._key = name.encode()

    @property
    def autoload(self) -> bool:
        """Whether load loads it, and attach attaches it. Set it before load."""
        return bool(self._handle.check(lib.shim_autoload(self._handle.shim, self._key)))

    @autoload.setter
    def autoload(self, on: bool) -> None:
        code = lib.shim_set_autoload(self._handle.shim, self._key, bool(on))
        self._handle.check_setting(code, f"{self.name}.autoload")

    @property
    def skipped(self) -> int | None:
        """How often the kernel skipped it, because it was already running on that CPU.

        `recursion_misses` of bpf_prog_info; None if it is not loaded or the query fails.
        """
        count: int = lib.shim_skipped(self._handle.shim, self._key)
        return count if count >= 0 else None

    def attach_xdp(self, interface: str) -> None:
        """Attaches it to a network interface. Raises SettingError if there is no such interface."""
        import socket  # few programs need it, and it takes 3 ms

        try:
            index = socket.if_nametoindex(interface)
        except (OSError, ValueError):
            raise SettingError(f"there is no network interface {interface!r}") from None
        self._attach(lib.SHIM_XDP, index, interface)

    def attach_cgroup(self, path: str | os.PathLike[str]) -> None:
        """Attaches it to a cgroup (v2), by its directory.

        Raises SettingError if that cannot be opened, LoadError if the kernel refuses it.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SettingError(f"cannot open the cgroup {path!r}: {reason}") from None
        try:
            self._attach(lib.SHIM_CGROUP, descriptor, os.fspath(path))
        finally:
            os.close(descriptor)

    def _attach(self, place: int, target: int, name: str) -> None:
        if not self._handle.loaded:
            raise StateError(f"{self.name} can only be attached after load()")
        code = lib.shim_attach_program(self._handle.shim, self._key, place, target)
        if code == -EALREADY:
            raise StateError(f"{self.name} is already attached")
        self._handle.check(code)
        if code < 0:
            raise LoadError(
                f"cannot attach {self.name} to {name}: {os.strerror(-code)}", self._handle.log
            )

    def __repr__(self) -> str:
        return f"<program {self.name}>"


_skeletons: weakref.WeakSet[Skeleton] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Closes, in a child of fork(2), the descriptors that it got from its parent."""
    lib.shim_after_fork(True)
    for skeleton in list(_skeletons):
        lib.shim_close_in_child(skeleton._shim)


os.register_at_fork(
    before=lib.shim_before_fork,
    after_in_parent=lambda: lib.shim_after_fork(False),
    after_in_child=_leave_to_parent,
)


class Skeleton:
    """An open BPF object.

    Args:
        elf: contents of the object file; None: the object that is linked into the extension.
        verbose: print libbpf's messages to stderr, with those for debugging.

    Attributes:
        maps: the maps by name, such as `skeleton.maps.rb` (`Map`).
        progs: the programs by name, such as `skeleton.progs.on_packet` (`Program`).

    Raises ObjectError if the file is not a BPF object, or has no BTF. Open only files that you
    trust: their programs run in the kernel, and libbpf can crash on a damaged one.

    Only one thread at a time may use a skeleton, except to read variables, map entries and
    `skipped`. In a child of fork(2) it is closed.
    """

    def __init__(self, elf: bytes | None = None, *, verbose: bool = False) -> None:
        types = types_of(elf)
        # Every function accepts it, even after close(); the last reference frees it.
        self._shim = ffi.gc(lib.shim_new(), lib.shim_free)
        if not self._shim:
            raise MemoryError
        self._handle = handle = _Handle(self._shim, types)
        _skeletons.add(self)
        try:
            data, size = (ffi.NULL, 0) if elf is None else (ffi.from_buffer(elf), len(elf))
            self._handle.check_start(lib.shim_open(self._shim, data, size, bool(verbose)), "open")
        except BaseException:
            self.close()
            raise
        maps, programs = (
            _names(self._shim, lib.shim_map_name),
            _names(self._shim, lib.shim_program_name),
        )
        self.maps = Names("map", {name: Map(handle, name) for name in maps if "." not in name})
        self.progs = Names("program", {name: Program(handle, name) for name in programs})

    def section(self, name: str) -> Variables:
        """The global variables of any section, such as ".data.mine"."""
        return Variables(self._handle, name)

    @property
    def rodata(self) -> Variables:
        """The `const volatile` variables."""
        return Variables(self._handle, ".rodata")

    @property
    def bss(self) -> Variables:
        """The variables whose initial value is 0."""
        return Variables(self._handle, ".bss")

    @property
    def data(self) -> Variables:
        """The variables with another initial value."""
        return Variables(self._handle, ".data")

    @property
    def log(self) -> str:
        """All messages of libbpf and the kernel's verifier (str)."""
        return self._handle.log

    # ---- Steps ----

    def load(self, max_latency_ns: int = 0) -> None:
        """Creates the maps and has the verifier check the programs.

        Args:
            max_latency_ns: how long a record of the ring may wait for others.

        Raises PrivilegeError, UnsupportedKernelError or LoadError; StateError if it was loaded.
        """
        if self._handle.loaded:
            raise StateError("this skeleton was loaded before: make a new one")
        self._handle.check_start(self._try_to_load(max_latency_ns), "load")

    def _try_to_load(self, max_latency_ns: int) -> int:
        """Like `load()`, but returns the shim's code."""
        if not 0 <= max_latency_ns <= _MAX_NS:
            raise SettingError(
                f"max_latency_ns must be from 0 to {_MAX_NS}, not {max_latency_ns!r}"
            )
        code: int = lib.shim_load(self._shim, max_latency_ns)
        if code == -ENOKEY:
            raise LoadError(
                'the object has a map "rb", but lacks the variables of ring.bpf.h: include that '
                "file, or rename the map"
            )
        self._handle.loaded = code == 0
        return code

    def attach(self) -> None:
        """Attaches each loaded program where its section says. Raises the errors of `load()`."""
        if not self._handle.loaded:
            raise StateError("load() comes before attach()")
        self._handle.check_start(lib.shim_attach(self._shim), "attach")

    def detach(self) -> None:
        """Detaches all programs; returns when none of them is running any more."""
        self._handle.check(lib.shim_detach(self._shim))

    def close(self) -> None:
        """Detaches and frees everything. May be called again."""
        lib.shim_close(self._shim)

    def __enter__(self) -> Skeleton:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _names(shim: Any, get: Callable[[Any, int], Any]) -> list[str]:
    names: list[str] = []
    while (name := get(shim, len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode(errors="replace"))
    return names
