# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What every tool shares: nothing here knows what a program traces."""
