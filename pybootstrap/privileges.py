# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Giving up root, once what needs it is done. It concerns the whole process: commands only."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from errno import EPERM

from pybootstrap._native import lib
from pybootstrap._typing import NamedTuple
from pybootstrap.errors import PrivilegeError, SettingError

_KEEP = 2**32 - 1  # as setresuid(2) has it: no change


class Account(NamedTuple):
    """Whom to become: user id, group id, supplementary groups."""

    uid: int
    gid: int
    groups: list[int]


def account(name: str) -> Account:
    """The account of this name or number; raises SettingError when there is none."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, ValueError, OverflowError):
        raise SettingError(f"there is no user {name!r} on this machine") from None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Account(entry.pw_uid, entry.pw_gid, groups)


def invoking_account(environ: Mapping[str, str]) -> Account | None:
    """Who called sudo(8), by SUDO_UID and SUDO_GID; None without sudo, or when root did.

    Raises SettingError when they are no numbers: sudo has not written that.
    """
    if os.geteuid() != 0 or "SUDO_UID" not in environ:
        return None
    uid, gid = environ["SUDO_UID"], environ.get("SUDO_GID", "")
    if not (uid.isdecimal() and gid.isdecimal()):
        raise SettingError(
            f"SUDO_UID={uid!r} and SUDO_GID={gid!r} are not both numbers: unset them"
        )
    if int(uid) == 0:
        return None
    try:
        groups = os.getgrouplist(pwd.getpwuid(int(uid)).pw_name, int(gid))
    except KeyError:  # a user without an entry has no more groups
        groups = [int(gid)]
    return Account(int(uid), int(gid), groups)


def give_up(to: Account | None) -> None:
    """Becomes the account, if one is given, and drops all capabilities, for good.

    What is attached and open stays so. Raises PrivilegeError when not all of it is possible: then
    the process must not go on.
    """
    uid, gid = (to.uid, to.gid) if to is not None else (_KEEP, _KEEP)
    try:
        if to is not None:
            os.setgroups(to.groups)
        code = lib.shim_give_up_privileges(uid, gid)
    except OSError as error:
        code = -(error.errno or EPERM)
    if code < 0:
        raise PrivilegeError(f"cannot give up privileges: {os.strerror(-code)}")
