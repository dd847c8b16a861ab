# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""What the members of JSON objects are called: as in Python, or as OpenTelemetry calls them."""

from __future__ import annotations

__all__ = ["Names", "OtelNames"]


class Names:
    """The names of the Python attributes."""

    EVENT = "event"
    """The member that tells the kind of event."""
    NESTED = True
    """Whether a value that has parts is an object; else its parts are members, NAME.PART."""

    def event(self, name: str) -> str:
        """The value of `EVENT` for this `Event.NAME`, or another kind of record."""
        return name

    def member(self, name: str, otel: str = "") -> str:  # noqa: ARG002
        """The member for an attribute; `otel` as in `field()`."""
        return name

    def report(self, name: str) -> str:
        """The member for an attribute of `Report`."""
        return self.member(name)


class OtelNames(Names):
    """The names of OpenTelemetry's semantic conventions; others are in the tool's own namespace.

    Args:
        tool: name of the command, which becomes the namespace.
    """

    EVENT = "event_name"  # EventName of the log data model
    NESTED = False  # many receivers index attributes with plain values only

    def __init__(self, tool: str) -> None:
        self._tool = tool

    def event(self, name: str) -> str:
        """For example "bootstrap.exec"."""
        return f"{self._tool}.{name}"

    def member(self, name: str, otel: str = "") -> str:
        """For example "process.pid", or "bootstrap.cgroup_id"."""
        return otel or f"{self._tool}.{name}"

    def report(self, name: str) -> str:
        """For example "service.name": a command is a service, and a run an instance of it."""
        return self.member(name, _OF_REPORT.get(name, ""))


_OF_REPORT = {
    "name": "service.name",
    "version": "service.version",
    "run_id": "service.instance.id",
    "host": "host.name",
}
