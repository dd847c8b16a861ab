# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The libraries whose code is in the wheels: which sources, and where they come from.

Each is pinned by checksum, so it does not matter who serves it. To bundle another version, change
it here and run `make wheels`.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Source(NamedTuple):
    """A release of a library."""

    name: str
    version: str
    path: str
    """Of its archive on a mirror of Debian, below pool/main/."""
    sha256: str
    """Of the archive, in hex."""
    licence: str
    """An SPDX expression for what the wheels contain of it."""
    home: str

    @property
    def archive(self) -> str:
        """The file name of its archive."""
        return self.path.rpartition("/")[2]


# The submodule's commit: what the archive contains is identical to it.
LIBBPF_COMMIT = "f5dcbae736e5d7f83a35718e01be1a8e3010fa39"
LIBBPF = Source(
    "libbpf",
    "1.7.0",
    "libb/libbpf/libbpf_1.7.0.orig.tar.gz",
    "7ab5feffbf78557f626f2e3e3204788528394494715a30fc2070fcddc2051b7b",
    "LGPL-2.1-only OR BSD-2-Clause",
    "https://github.com/libbpf/libbpf",
)
ELFUTILS = Source(
    "elfutils",
    "0.192",
    "e/elfutils/elfutils_0.192.orig.tar.bz2",
    "616099beae24aba11f9b63d86ca6cc8d566d968b802391334c91df54eab416b4",
    "GPL-2.0-or-later OR LGPL-3.0-or-later",  # of libelf; elfutils' programs have another
    "https://sourceware.org/elfutils/",
)
ZLIB = Source(
    "zlib",
    "1.3.1",
    "z/zlib/zlib_1.3.dfsg+really1.3.1.orig.tar.gz",
    "60dd315c07f616887caa029408308a018ace66e3d142726a97db164b3b8f69fb",
    "Zlib",
    "https://zlib.net/",
)
SOURCES = (LIBBPF, ELFUTILS, ZLIB)


def unpack(source: Source, cache: Path, into: Path) -> None:
    """Unpack the source into the new directory `into`; download it first if `cache` lacks it.

    libbpf comes from the submodule if that is checked out. Ends the program with a sentence when
    there is no such source.
    """
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    if source is LIBBPF and (ROOT / "libbpf/src/Makefile").exists():
        _export_submodule(into)
        return
    with tarfile.open(_fetch(source, cache)) as archive:
        for member in archive.getmembers():
            _, _, member.name = member.name.partition("/")  # the directory that holds everything
            if member.name and (member.isfile() or member.isdir()):
                archive.extract(member, into)


def _export_submodule(into: Path) -> None:
    """Copy the submodule's commit, without what was changed or built in it."""
    git = ["git", "-C", str(ROOT / "libbpf")]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    if head.stdout.strip() != LIBBPF_COMMIT:
        sys.exit(
            f"wheels: libbpf/ is at {head.stdout.strip()[:12]}, packaging/sources.py names "
            f"{LIBBPF_COMMIT[:12]}: run 'git submodule update', or change it there"
        )
    archive = subprocess.Popen([*git, "archive", "HEAD"], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(into)], stdin=archive.stdout, check=True)
    if archive.wait() != 0:
        sys.exit("wheels: git archive failed in libbpf/")


def _fetch(source: Source, cache: Path) -> Path:
    """The archive, below `cache`; from the mirrors that apt uses on this machine."""
    target = cache / source.archive
    if target.exists():
        found = _sha256(target)
        if found != source.sha256:
            sys.exit(f"wheels: {target} has the SHA-256 {found}, not {source.sha256}: remove it")
        return target
    cache.mkdir(parents=True, exist_ok=True)
    part, tried = target.with_suffix(".part"), ""
    for mirror in _mirrors():
        url = f"{mirror.rstrip('/')}/pool/main/{source.path}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except OSError as error:
            tried += f"\n  {url}: {getattr(error, 'reason', error)}"
            continue
        if _sha256(part) == source.sha256:
            return part.rename(target)
        tried += f"\n  {url}: another file, or a part of it"
    sys.exit(
        f"wheels: cannot download {source.name} {source.version}: put {source.archive} "
        f"(SHA-256 {source.sha256}) into {cache}{tried}"
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _mirrors() -> list[str]:
    """The repositories that apt is configured to use."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return list(dict.fromkeys(line for line in done.stdout.split() if line.startswith("http")))
