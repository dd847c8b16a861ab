# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Gives up root once it is not needed any more; for commands only: it affects the whole process."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator, Mapping
from errno import EPERM

from pybootstrap._typing import NamedTuple
from pybootstrap.engine._native import lib
from pybootstrap.engine.errors import PrivilegeError, SettingError

_KEEP = 2**32 - 1  # no change, as in setresuid(2)


class Account(NamedTuple):
    """An account to switch to: user id, group id, supplementary groups."""

    uid: int
    gid: int
    groups: list[int]


def account(name: str) -> Account:
    """The account of this name or number; raises SettingError if there is no such user."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, ValueError, OverflowError):
        raise SettingError(f"there is no user {name!r} on this machine") from None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Account(entry.pw_uid, entry.pw_gid, groups)


def invoking_account(environ: Mapping[str, str]) -> Account | None:
    """The account that called sudo(8), from SUDO_UID and SUDO_GID; None without sudo, or for root.

    Raises SettingError if they are not numbers, so sudo did not set them.
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
    except KeyError:  # not in the user database, so there are no other groups
        groups = [group]
    return Account(user, group, groups)


@contextlib.contextmanager
def acting_as(who: Account | None) -> Iterator[None]:
    """Has the kernel check access to files as for this account, if one is given.

    Raises PrivilegeError if that is not possible.
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

    Programs stay attached and descriptors open. Raises PrivilegeError if any part of it fails; then
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
