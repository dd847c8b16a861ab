# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What `import pybootstrap` offers, although it loads each part only when it is used."""

from __future__ import annotations

import pickle
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import pybootstrap
from pybootstrap import LostEvent, Stats, Usage, events, tracer
from pybootstrap.engine import errors
from pybootstrap.engine.privileges import Account


@pytest.mark.parametrize("name", pybootstrap.__all__)
def test_public_names_are_those_of_their_modules(name: str) -> None:
    homes = [vars(module) for module in (errors, events, tracer)]
    if name != "__version__":
        assert any(getattr(pybootstrap, name) is home.get(name) for home in homes)
    assert name in dir(pybootstrap)


def test_errors_and_modules_export_nothing_that_the_package_lacks() -> None:
    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert raised <= set(pybootstrap.__all__)
    assert set(tracer.__all__) | set(events.__all__) - {"make_decoder"} <= set(pybootstrap.__all__)


def test_star_import_gives_every_public_name() -> None:
    names: dict[str, object] = {}
    exec("from pybootstrap import *", names)
    assert set(pybootstrap.__all__) <= set(names)


def test_unknown_names_raise_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pybootstrap' has no attribute 'tracing'"):
        pybootstrap.tracing  # type: ignore[attr-defined]  # noqa: B018


def test_modules_are_attributes_without_being_imported() -> None:
    code = "import pybootstrap; print(pybootstrap.tracer.Tracer is pybootstrap.Tracer)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def _loaded_by(code: str) -> set[str]:
    """The modules that this code loads in a new interpreter."""
    script = f"import sys; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_parts_of_the_command_load_nothing_slow() -> None:
    parts = ("tracer", "render", "engine.privileges", "engine.btf")
    loaded = _loaded_by("import " + ", ".join(f"pybootstrap.{part}" for part in parts))
    assert {"pybootstrap.tracer", "enum"} <= loaded
    assert not loaded & {"typing", "json", "asyncio", "pathlib", "inspect", "socket"}


def test_options_load_the_standard_library_only() -> None:
    """Because man pages are built before the extension module exists."""
    loaded = _loaded_by("import pybootstrap.engine.options")
    assert loaded - _loaded_by("import __future__, argparse, collections, re") == {
        "pybootstrap",
        "pybootstrap._lazy",
        "pybootstrap._typing",
        "pybootstrap._version",
        "pybootstrap.engine",
        "pybootstrap.engine.options",
    }


@pytest.mark.parametrize("kind", [Stats, Usage, LostEvent, Account])
def test_named_tuples_equal_those_of_typing(kind: typing.Any) -> None:
    make: typing.Any = typing.NamedTuple
    twin = make(kind.__name__, list(typing.get_type_hints(kind).items()))
    values = range(len(kind._fields))
    value, twins = kind(*values), twin(*values)
    assert (value, repr(value), value._asdict()) == (twins, repr(twins), twins._asdict())
    assert set(dir(kind)) >= set(dir(twin)) - {"__orig_bases__"}
    assert pickle.loads(pickle.dumps(value)) == value
    assert type(value) is kind
    with pytest.raises(TypeError):
        kind(*values, 1)


def test_the_build_refuses_a_free_threaded_python() -> None:
    code = (
        "import runpy, sys, sysconfig; sysconfig.get_config_vars()['Py_GIL_DISABLED'] = 1; "
        "sys.argv = ['setup.py', '-q', 'build_ext', '--inplace']; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("pybootstrap: free-threaded Python")
