# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""A machine with systemd as init, in namespaces on the running kernel.

Its root is this machine's, with all changes in memory. It has its own /etc/systemd/system, process
ids, cgroups, network and journal, and can write neither to /sys nor to /proc/sys.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "pivot_root", "systemctl", "journalctl", "systemd-analyze")
DEADLINE_S = 60

# $1: an empty directory. It gets the machine's root, which $2 (a shell command) prepares.
BOOT = """set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
rm -rf etc/systemd/system etc/fstab var/log/journal
mkdir -p etc/systemd/system old
echo 0123456789abcdef0123456789abcdef >etc/machine-id
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do cp -a "/dev/$device" dev; done
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs run
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t proc proc proc
eval "$2"
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs var/tmp
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
pivot_root . old
umount -l old
rmdir old
exec unshare --net env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin "$3" --system \\
    --unit=basic.target --show-status=0
"""


class Machine:
    """Boots in a `with` statement.

    Args:
        prepare: shell commands that run, in its future root and with network, before systemd does.
        log: gets what they and systemd print.
    """

    def __init__(self, prepare: str, log: Path) -> None:
        for tool in TOOLS:
            if shutil.which(tool) is None:
                raise SystemExit(f"{tool} is missing: install the packages systemd and util-linux")
        if not SYSTEMD.exists():
            raise SystemExit(f"{SYSTEMD} is missing: install the package systemd")
        if os.geteuid() != 0:
            raise SystemExit("this needs root, to make namespaces and mounts")
        self._prepare = prepare
        self._log = log
        self._place = Path(tempfile.mkdtemp(prefix="machine"))
        self._cgroup = _cgroup2() / f"pybootstrap-service-{os.getpid()}"

    def __enter__(self) -> Machine:
        self._cgroup.mkdir()
        namespaces = ["--mount", "--pid", "--ipc", "--uts", "--cgroup", "--propagation", "private"]
        # A process is in its cgroup before it makes the namespace whose root that is.
        enter = 'echo 0 >"$0/cgroup.procs"; exec "$@"'
        boot = ["sh", "-c", BOOT, "boot", str(self._place), self._prepare, str(SYSTEMD)]
        with self._log.open("wb") as log:
            self._unshare = subprocess.Popen(
                [
                    "sh",
                    "-c",
                    enter,
                    str(self._cgroup),
                    "unshare",
                    *namespaces,
                    "--fork",
                    "--kill-child",
                    *boot,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_until_running()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_until_running(self) -> None:
        end = time.monotonic() + 2 * DEADLINE_S  # it installs packages first
        while time.monotonic() < end:
            if self._unshare.poll() is not None:
                break
            if "running" in (state := self._state()):
                return
            time.sleep(0.1)
        raise SystemExit(f"systemd has not booted ({state}):\n{self._log.read_text()[-3000:]}")

    def _state(self) -> str:
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text()
        self._init = children.strip()
        if not self._init or Path(f"/proc/{self._init}/comm").read_text() != "systemd\n":
            return "preparing"
        asked = ["systemctl", "is-system-running"]
        return self.run(*asked, check=False)

    def __exit__(self, *exc_info: object) -> None:
        self._unshare.kill()  # and with it its child, which is init, and with that all processes
        self._unshare.wait()
        end = time.monotonic() + DEADLINE_S
        while not self._removed():
            assert time.monotonic() < end, f"cannot remove {self._cgroup}"
            time.sleep(0.05)
        self._place.rmdir()

    def _removed(self) -> bool:
        try:
            for directory, _, _ in os.walk(self._cgroup, topdown=False):
                Path(directory).rmdir()
        except OSError:  # a process in it has not ended yet
            return False
        return True

    def run(self, *words: str, check: bool = True) -> str:
        """Runs a program in the machine; returns what it prints."""
        enter = ["nsenter", "--target", self._init, "--mount", "--pid", "--ipc", "--uts", "--net"]
        done = subprocess.run(
            [*enter, "--cgroup", *words], capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()


def _cgroup2() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(mount)
    raise SystemExit("cgroup v2 is not mounted here")
