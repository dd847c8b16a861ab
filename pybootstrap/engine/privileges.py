# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Giving up root, once what needs it is done. It concerns the whole process: commands only."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator, Mapping
from errno import EPERM

from pybootstrap._typing import NamedTuple
from pybootstrap.engine._native import lib
from pybootstrap.engine.errors import PrivilegeError, SettingError

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
    user, group = (min(int(number[:20]), _KEEP) for number in (uid, gid))
    if _KEEP in (user, group):
        raise SettingError(f"SUDO_UID={uid!r} and SUDO_GID={gid!r} are not both ids: unset them")
    if user == 0:
        return None
    try:
        groups = os.getgrouplist(pwd.getpwuid(user).pw_name, group)
    except KeyError:  # a user without an entry has no more groups
        groups = [group]
    return Account(user, group, groups)


@contextlib.contextmanager
def acting_as(who: Account | None) -> Iterator[None]:
    """Has the kernel check access to files as for that account meanwhile, if one is given.

    Raises PrivilegeError when that is not possible.
    """
    if who is None:
        yield
        return
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    try:
        os.setgroups(who.groups)
        os.setegid(who.gid)
        os.seteuid(who.uid)
    except OSError as error:
        raise PrivilegeError(f"cannot act as user {who.uid}: {error.strerror}") from None
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


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
