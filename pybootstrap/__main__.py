# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""`python -m pybootstrap` is the command `bootstrap`."""

import sys

from pybootstrap.cli import main

if __name__ == "__main__":
    sys.exit(main())
