# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The version of pybootstrap: written here and nowhere else."""

__version__ = "0.1.0"
