"""Compiles the BPF program; everything else is in pyproject.toml."""

from setuptools import setup

from pybootstrap.engine.build import bpf_objects

setup(cmdclass=bpf_objects("bpf/mytool.bpf.c", into="mytool"))
