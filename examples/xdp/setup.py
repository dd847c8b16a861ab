# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Compiles the BPF program; everything else is in pyproject.toml."""

from setuptools import setup

from pybootstrap.engine.build import bpf_objects

setup(cmdclass=bpf_objects("bpf/xdpcount.bpf.c", into="xdpcount"))
