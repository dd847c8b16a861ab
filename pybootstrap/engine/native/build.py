# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Makes the C source of the extension module: build.py OUTPUT HEADER...

Python can use whatever the headers declare, so nothing is declared twice. cffi's parser cannot read
preprocessor lines; the headers have no others than their include guards, so these are dropped.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi
from cffi.recompiler import make_c_source


def declarations(header: str) -> str:
    """A header's text without its preprocessor lines."""
    return re.sub(r"^[ \t]*#.*$", "", header, flags=re.MULTILINE)


def write_binding(output: Path, headers: list[Path]) -> None:
    """Write the C source of pybootstrap.engine._native, which exposes what the headers declare."""
    ffi = cffi.FFI()
    for header in headers:
        ffi.cdef(declarations(header.read_text()))
    includes = "".join(f'#include "{header.name}"\n' for header in headers)
    make_c_source(ffi, "pybootstrap.engine._native", includes, str(output))


if __name__ == "__main__":
    write_binding(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
