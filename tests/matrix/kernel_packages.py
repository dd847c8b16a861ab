# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Find, download and unpack Debian's kernels.

apt does the work, with a root directory of its own for each suite. So the mirror, proxy and
certificates are the machine's, signatures and checksums are verified as for any other package, and
the machine's own package lists do not change. No version is written here, because each suite's
metapackage names its kernel.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Oldest first. The index of each suite tells its kernel.
SUITES = ("bullseye", "bookworm", "trixie", "unstable")
# The cloud flavour boots faster and is a third of the size, with the same BPF configuration.
METAPACKAGES = ("linux-image-cloud-{}", "linux-image-{}")
# The archive's keys, from debian-archive-keyring; without that file, apt uses its trusted keys.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class NotAvailableError(Exception):
    """A kernel is not available here; the message says why."""


@dataclass(frozen=True)
class KernelPackage:
    """The package of one suite that holds the kernel image."""

    suite: str
    name: str
    version: str

    def matches(self, wanted: str) -> bool:
        """Return whether `wanted`, such as 5.10 or 5.10.223, means this kernel."""
        return re.match(re.escape(wanted) + r"(?![0-9])", self.version) is not None


def mirrors() -> list[str]:
    """Return the repositories that apt on this machine is configured to use, in its order."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return list(dict.fromkeys(done.stdout.split()))


class Suite:
    """One suite of the archive, read through an apt root of its own."""

    def __init__(self, name: str, cache: Path, architecture: str = "amd64") -> None:
        """Take the names of suite and architecture; everything of it is kept below `cache`."""
        self.name = name
        self.architecture = architecture
        self.root = cache / "apt" / f"{name}-{architecture}"
        for part in ("lists/partial", "archives/partial"):
            (self.root / part).mkdir(parents=True, exist_ok=True)

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run an apt command in this suite's root; return its output or raise NotAvailableError."""
        settings = {
            "Dir::State": self.root,
            "Dir::State::lists": "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": self.root,
            "Dir::Etc::sourcelist": self.root / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            # An outdated mirror is good enough for a kernel to test on.
            "Acquire::Check-Valid-Until": "false",
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        done = subprocess.run(
            [command[0], *options, *command[1:]],
            capture_output=True, text=True, check=False, timeout=300, cwd=cwd,
        )  # fmt: skip
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            raise NotAvailableError(
                " ".join(lines) or f"{' '.join(command)}: {done.stderr.strip()}"
            )
        return done.stdout

    def update(self, mirror: str) -> None:
        """Fetch the suite's index from `mirror`, or check that the local one is the newest."""
        signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        sources = f"deb {signed}{mirror} {self.name} main\n"
        (self.root / "sources.list").write_text(sources, encoding="utf-8")
        self.run("apt-get", "update")

    def fields(self, package: str) -> dict[str, str]:
        """Return the index's fields of a package's newest version."""
        text = self.run("apt-cache", "show", "--no-all-versions", package)
        return dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", text, re.MULTILINE))

    def find_kernel(self) -> KernelPackage:
        """Follow the metapackage to the package that holds the kernel image.

        Up to Debian 13 that is linux-image-VERSION itself; later that only depends on
        linux-binary-VERSION, which holds the image.
        """
        metapackages = [package.format(self.architecture) for package in METAPACKAGES]
        for metapackage in metapackages:
            try:
                fields = self.fields(metapackage)
            except NotAvailableError:
                continue
            name = metapackage
            while deeper := re.search(
                r"\blinux-(?:image|binary)-[^\s,]+", fields.get("Depends", "")
            ):
                name = deeper.group()
                fields = self.fields(name)
            return KernelPackage(self.name, name, fields["Version"])
        raise NotAvailableError(f"suite {self.name} has none of {', '.join(metapackages)}")


def find_kernel(suite: Suite, candidates: Sequence[str]) -> KernelPackage:
    """Return the kernel of a suite from the first mirror that has one."""
    refusals = []
    for mirror in candidates:
        try:
            suite.update(mirror)
            return suite.find_kernel()
        except (NotAvailableError, subprocess.TimeoutExpired) as error:
            refusals.append(str(error))
    reasons = "; ".join(refusals) or "apt on this machine has no repository configured"
    raise NotAvailableError(f"no kernel of suite {suite.name}: {reasons}")


def fetch_image(suite: Suite, package: KernelPackage, cache: Path) -> Path:
    """Return the kernel image of a package, downloaded unless an earlier run left it."""
    image = cache / f"{package.name}_{package.version}.vmlinuz"
    if image.exists():
        return image
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        request = f"{package.name}={package.version}"
        suite.run("apt-get", "download", request, cwd=Path(folder))  # checks size and SHA256
        (deb,) = Path(folder).glob("*.deb")
        unpacked = Path(folder) / "vmlinuz"
        unpacked.write_bytes(read_image(deb))
        unpacked.replace(image)  # atomic, so that no later run sees half a kernel
    return image


def read_image(deb: Path) -> bytes:
    """Return the kernel image that a package holds."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    # It complains that its output is closed, which happens once the image has been read.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacker:
        assert unpacker.stdout is not None
        with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
            for member in archive:
                if member.isfile() and Path(member.name).name.startswith("vmlinuz"):
                    content = archive.extractfile(member)
                    assert content is not None
                    return content.read()
    raise NotAvailableError(f"{deb.name} holds no kernel image")
