# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Build the initramfs of a guest: busybox, this Python, the wheel, and an init that runs a script.

No step needs root: the archive is written here, entry by entry, and every file in it belongs to
root, whoever owns it outside.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from machines import AMD64

SITE = "/site"
SUITE = "/suite"
# Parts of the standard library that no guest needs: folders by name (most of its size), and
# extension modules by how the name begins.
LEFT_OUT = (
    "config-*", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "tkinter", "turtledemo", "venv",
)  # fmt: skip
LEFT_OUT_MODULES = re.compile(r"_test|_ctypes_test|_tkinter|_?xx")

# No tracefs and no debugfs, because the package must work without them. Results go to a serial port
# to which neither the kernel nor the firmware ever writes; the console is another.
INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root LC_ALL=C.UTF-8 PYTHONPATH={site}:{suite}
chmod 755 /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
ln -s /proc/self/fd /dev/fd
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for place in /dev/shm /run /tmp; do mount -t tmpfs -o mode=1777 tmpfs $place; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
hostname guest
cd /root
{command} </dev/null >/dev/{results} 2>/dev/console
echo "guest script ended with status $?"
reboot -f
"""

PASSWD = "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/tmp:/bin/sh\n"
GROUP = "root:x:0:\nguest:x:1000:\n"


@dataclass(frozen=True)
class Entry:
    """What one path of the guest is: a directory, a link (with text) or a file."""

    mode: int
    text: bytes = b""
    source: Path | None = None
    mtime: int = 0

    def content(self) -> bytes:
        """Return the entry's bytes: a file's content or a link's target."""
        return self.text if self.source is None else self.source.read_bytes()


Tree = dict[str, Entry]


def add_file(tree: Tree, place: str, source: Path) -> None:
    """Put a file, or the target of a symbolic link, at a place of the guest."""
    status = source.stat()
    mode = stat.S_IFREG | stat.S_IMODE(status.st_mode)
    tree[place] = Entry(mode, source=source, mtime=int(status.st_mtime))


def add_text(tree: Tree, place: str, text: str, mode: int = 0o644) -> None:
    """Put a file made of `text` at a place of the guest."""
    tree[place] = Entry(stat.S_IFREG | mode, text.encode())


def add_folder(tree: Tree, place: str, source: Path, left_out: Iterable[str] = ()) -> None:
    """Put a folder with its contents at a place of the guest, except folders in `left_out`."""
    excluded = re.compile("|".join(map(fnmatch.translate, left_out)) or "(?!)")
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if not excluded.match(name))
        below = os.path.relpath(folder, source)
        where = os.path.normpath(os.path.join(place, below))
        tree[where] = Entry(stat.S_IFDIR | 0o755)
        for name in sorted(files):
            path = Path(folder, name)
            if path.is_file():
                add_file(tree, os.path.join(where, name), path)


def add_python(tree: Tree) -> str:
    """Put the running interpreter and its standard library at the same paths; return its path.

    There it finds its library without any configuration. The compiled modules beside the sources
    are included, because without them each start under emulation takes seconds.
    """
    python = os.path.realpath(sys.executable)  # in a virtual environment, the base interpreter
    add_file(tree, python, Path(python))
    library = Path(os.__file__).parent
    add_folder(tree, str(library), library, LEFT_OUT)
    for place in [place for place in tree if LEFT_OUT_MODULES.match(os.path.basename(place))]:
        del tree[place]
    tree["/bin/python3"] = Entry(stat.S_IFLNK | 0o777, python.encode())
    return python


def elf_files(tree: Tree) -> Iterator[Path]:
    """Yield the programs and shared libraries among the files of the guest."""
    for entry in tree.values():
        if entry.source is not None:
            with entry.source.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield entry.source


def add_libraries(tree: Tree) -> None:
    """Put every shared library that something in the guest needs into its /usr/lib.

    The loader searches that folder without a cache of ldconfig, which the guest lacks. Libraries
    already in the guest (a wheel has its own) are found by the path in the file that needs them.
    """
    programs = sorted(set(elf_files(tree)))
    # A non-zero status only means that some program is static, as busybox is.
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    here = {os.path.realpath(program) for program in programs}
    for line in done.stdout.splitlines():
        if found := re.fullmatch(r"\t(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)", line):
            library = found.group(1)
            if os.path.realpath(library) in here:
                continue
            name = os.path.basename(library)
            # Every program has the full path of the loader itself.
            place = library if name.startswith("ld-linux") else f"/usr/lib/{name}"
            add_file(tree, place, Path(library))


def add_parents(tree: Tree) -> Tree:
    """Return the tree with an entry for every folder, each before its contents."""
    whole: Tree = {}
    for place in sorted(tree):
        for parent in reversed(Path(place).parents):
            if str(parent) != "/" and str(parent) not in tree:
                whole.setdefault(str(parent), Entry(stat.S_IFDIR | 0o755))
        whole[place] = tree[place]
    return whole


def write_entry(out: BinaryIO, number: int, name: str, entry: Entry) -> None:
    """Write one entry in the cpio format that the kernel reads ("newc")."""
    content = entry.content()
    encoded = os.fsencode(name) + b"\0"
    links = 1
    fields = (
        number,
        entry.mode,
        0,
        0,
        links,
        entry.mtime,
        len(content),
        0,
        0,
        0,
        0,
        len(encoded),
        0,
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    out.write(header + encoded + b"\0" * (-(len(header) + len(encoded)) % 4))
    out.write(content + b"\0" * (-len(content) % 4))


def write_archive(tree: Tree, target: Path) -> None:
    """Write an uncompressed archive, because under emulation unpacking costs more than reading."""
    with target.open("wb") as out:
        entries = add_parents(tree).items()
        for number, (place, entry) in enumerate(entries, start=1):
            write_entry(out, number, place.lstrip("/"), entry)
        write_entry(out, 0, "TRAILER!!!", Entry(0))


def build(target: Path, site: Path, suite: Path, command: str, additions: list[str]) -> None:
    """Write the initramfs, whose init runs a script of `suite` with the packages in `site`."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("busybox is missing: install the package busybox-static")
    tree: Tree = {}
    for folder in ("dev", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/tmp"):
        tree["/" + folder] = Entry(stat.S_IFDIR | 0o755)
    add_file(tree, "/bin/busybox", Path(busybox))
    python = add_python(tree)
    add_folder(tree, SITE, site)
    add_folder(tree, SUITE, suite)
    for addition in additions:
        source, _, place = addition.partition(":")
        add = add_folder if Path(source).is_dir() else add_file
        add(tree, place, Path(source))
    add_libraries(tree)
    add_text(tree, "/etc/passwd", PASSWD)
    add_text(tree, "/etc/group", GROUP)
    command = f"{python} {SUITE}/{command}"
    init = INIT.format(site=SITE, suite=SUITE, command=command, results=AMD64.results)
    add_text(tree, "/init", init, mode=0o755)
    write_archive(tree, target)
