# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Make minimal Debian roots of any architecture: Python with venv, a shell, and nothing to compile.

The packages are unpacked, not configured: no script of theirs runs, so that another architecture
takes no emulator. A root is an archive that fills an initramfs or a tmpfs.
"""

from __future__ import annotations

import posixpath
import re
import stat
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from guest_image import GROUP, INIT, PASSWD, Entry, Tree, add_folder, add_text
from kernel_packages import NotAvailableError, Suite

PACKAGES = ("python3-venv", "coreutils", "dash")
# What mounts the file systems of an emulated machine.
GUEST_PACKAGES = ("busybox-static",)
MERGED = ("bin", "lib", "lib64", "sbin")  # links into /usr
LEFT_OUT = re.compile(r"/usr/share/(doc|i18n|info|locale|man|perl|zoneinfo)/|/usr/lib/[^/]+/gconv/")
# What ca-certificates puts together when it is configured.
AUTHORITIES, CERTIFICATES = (
    r"/usr/share/ca-certificates/.*\.crt",
    "/etc/ssl/certs/ca-certificates.crt",
)
SUITE = "/suite"
WHEELS = "/wheels"


@dataclass(frozen=True)
class Package:
    """A package as apt would install it."""

    name: str
    version: str

    def file_in(self, folder: Path) -> Path | None:
        """Return the downloaded package, if it is in the folder."""
        files = folder.glob(f"{self.name}_{self.version.replace(':', '%3a')}_*.deb")
        return next(files, None)


def resolve(suite: Suite, wanted: tuple[str, ...]) -> list[Package]:
    """Return the packages that apt would install on an empty system, with what they depend on."""
    said = suite.run("apt-get", "install", "--simulate", "--no-install-recommends", *wanted)
    found = re.findall(r"^Inst (\S+) \((\S+) ", said, re.MULTILINE)
    return [Package(name.partition(":")[0], version) for name, version in found]


def download(suite: Suite, packages: list[Package]) -> list[Path]:
    """Return the packages' files; only those that an earlier run left and is needed are kept."""
    folder = suite.root / "packages"
    folder.mkdir(exist_ok=True)
    missing = [package for package in packages if package.file_in(folder) is None]
    if missing:
        requests = [f"{package.name}={package.version}" for package in missing]
        suite.run("apt-get", "download", *requests, cwd=folder)  # checks size and SHA256
    files = [package.file_in(folder) for package in packages]
    for file in set(folder.iterdir()).difference(filter(None, files)):
        file.unlink()
    if None in files:
        raise NotAvailableError(f"{suite.name}: apt did not download all of {packages}")
    return [file for file in files if file]


def place_of(name: str) -> str:
    """Return the path of a package's member, with the top-level links into /usr resolved."""
    path = posixpath.normpath("/" + name)
    return f"/usr{path}" if path.split("/")[1] in MERGED else path


def add_package(tree: Tree, package: Path) -> None:
    """Put the files of a package into the root."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as unpacker:
        assert unpacker.stdout is not None
        with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
            for member in archive:
                add_member(tree, archive, member)
    if unpacker.returncode != 0:
        raise NotAvailableError(f"{package.name} could not be unpacked")


def add_member(tree: Tree, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """Put one member of a package into the root."""
    place = place_of(member.name)
    if LEFT_OUT.match(place):
        return
    if member.issym():
        tree[place] = Entry(stat.S_IFLNK | 0o777, member.linkname.encode())
    elif member.islnk():
        tree[place] = tree[place_of(member.linkname)]
    elif member.isfile():
        content = archive.extractfile(member)
        assert content is not None
        tree[place] = Entry(stat.S_IFREG | member.mode, content.read(), mtime=int(member.mtime))


def make_root(packages: list[Path], suite: Path, wheels: Path, command: str, results: str) -> Tree:
    """Return a root with the tests and the wheels in it, whose /init runs a command of the tests.

    The command's output goes to the serial port `results`.
    """
    tree: Tree = {}
    for package in packages:
        add_package(tree, package)
    for folder in ("dev", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/tmp"):
        tree["/" + folder] = Entry(stat.S_IFDIR | 0o755)
    tree["/tmp"] = Entry(stat.S_IFDIR | 0o1777)
    for name in MERGED:
        tree["/" + name] = Entry(stat.S_IFLNK | 0o777, f"usr/{name}".encode())
    authorities = [tree[place] for place in tree if re.fullmatch(AUTHORITIES, place)]
    # pip reads it even without an index.
    add_text(tree, CERTIFICATES, b"".join(one.content() for one in authorities).decode())
    add_folder(tree, SUITE, suite)
    add_folder(tree, WHEELS, wheels)
    add_text(tree, "/etc/passwd", PASSWD)
    add_text(tree, "/etc/group", GROUP)
    init = INIT.format(site=SUITE, suite=SUITE, command=command, results=results)
    add_text(tree, "/init", init, mode=0o755)
    return tree
