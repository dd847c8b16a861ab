# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Builds what is in dist/ again, in another place, under other circumstances, and compares.

The copy has another path, umask, time zone, locale and environment, other modification times, and
caches of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sources import ROOT

CIRCUMSTANCES = {
    "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": "/nonexistent", "V": "1",
    "CFLAGS": "-O0", "CPATH": "/usr/include", "CROSS_COMPILE": "none-",
    "PKG_CONFIG_PATH": "/usr/lib/x86_64-linux-gnu/pkgconfig",
}  # fmt: skip


def build_again(place: Path) -> str:
    """Build a copy of this checkout in `place`; returns the checksums."""
    again = place / "elsewhere"
    subprocess.run(["git", "clone", "-q", ROOT, again], check=True)
    names = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "-co", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in names:
        if (ROOT / name).is_file():
            (again / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, again / name)
            if os.access(ROOT / name, os.X_OK):
                (again / name).chmod(0o700)
    sources = again / "build/wheels/sources"
    shutil.copytree(ROOT / "build/wheels/sources", sources)
    if (ROOT / "libbpf/src").exists():
        shutil.copytree(ROOT / "libbpf", again / "libbpf", dirs_exist_ok=True, symlinks=True)
    command = [sys.executable, "packaging/wheels.py"]
    if subprocess.run(
        command, cwd=again, env={**os.environ, **CIRCUMSTANCES}, check=False
    ).returncode:
        sys.exit("reproduce: this build failed")
    return (again / "dist/SHA256SUMS").read_text(encoding="utf-8")


def main() -> None:
    """Compare, and end with status 1 if anything differs."""
    try:
        expected = (ROOT / "dist/SHA256SUMS").read_text(encoding="utf-8")
    except FileNotFoundError:
        sys.exit("reproduce: there is nothing in dist/: run 'make wheels'")
    os.umask(0o077)
    with tempfile.TemporaryDirectory() as place:
        again = build_again(Path(place))
    if different := sorted(set(expected.splitlines()) ^ set(again.splitlines())):
        sys.exit("reproduce: these differ:\n" + "\n".join(different))
    print("The same again, byte by byte:", again, sep="\n", end="")


if __name__ == "__main__":
    main()
