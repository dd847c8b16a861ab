# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The sources of the libraries in the wheels. `make wheels` and `make reproduce` check the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def unpack_zlib(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from pathlib import Path; import sources; "
        "cache = Path(sys.argv[1]); sources.unpack(sources.ZLIB, cache, cache / 'zlib')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(cache)], cwd=ROOT / "packaging", env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_pinned_libbpf_is_the_submodule() -> None:
    code = "import sources; print(sources.LIBBPF_COMMIT)"
    command = [sys.executable, "-c", code]
    pinned = subprocess.check_output(command, cwd=ROOT / "packaging", text=True).strip()
    tree = subprocess.check_output(["git", "ls-files", "-s", "libbpf"], cwd=ROOT, text=True)
    assert tree.split()[:2] == ["160000", pinned]


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "zlib_1.3.dfsg+really1.3.1.orig.tar.gz"
    archive.write_bytes(b"hostile")
    done = unpack_zlib(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"wheels: {archive} has the SHA-256 ")
    assert done.stderr.endswith(": remove it\n")


def test_an_archive_that_nobody_serves_can_be_put_in_place(tmp_path: Path) -> None:
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho http://127.0.0.1:9/debian/\n")
    (tmp_path / "apt-get").chmod(0o755)
    done = unpack_zlib(tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 1
    message = "put zlib_1.3.dfsg+really1.3.1.orig.tar.gz (SHA-256 60dd315c"
    assert done.stderr.startswith("wheels: cannot download zlib 1.3.1: " + message)
    assert "Connection refused" in done.stderr
    assert "Traceback" not in done.stderr
