# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Sends what a command shows as OTLP log records over HTTP, with OpenTelemetry's own SDK.

Batches, the queue and retries are the SDK's. This module makes log records, bounds the memory of
those that wait, and counts what the receiver acknowledged, because the SDK does not tell. At the
end `sent == delivered + dropped`.

HTTP instead of gRPC, because proxies and load balancers pass it, and grpcio would add megabytes of
native code and threads of its own.
"""

from __future__ import annotations

import http.client
import io
import json
import logging
import os
import re
import signal
import threading
import time
from collections import deque
from urllib.parse import urlsplit

from pybootstrap._typing import TYPE_CHECKING
from pybootstrap.engine.decoder import LostEvent
from pybootstrap.engine.errors import SettingError
from pybootstrap.engine.names import OtelNames
from pybootstrap.engine.output import in_a_hurry, say
from pybootstrap.engine.render import Renderer, escape
from pybootstrap.engine.render_json import JsonRenderer

try:
    # These are imported when they are first used. By then we may be a user who cannot read them.
    import encodings.idna  # noqa: F401
    import netrc  # noqa: F401

    import requests
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError
    from opentelemetry._logs import SeverityNumber
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import (
        BatchLogRecordProcessor,
        LogRecordExporter,
        LogRecordExportResult,
    )
    from opentelemetry.sdk.resources import Resource
    from urllib3.connection import HTTPConnection
except ImportError as error:
    raise SettingError(
        f"--otlp needs OpenTelemetry's SDK ({error}): pip install 'pybootstrap-bpf[otlp]'"
    ) from None

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence
    from typing import Any

    from opentelemetry.sdk._logs import ReadableLogRecord

    from pybootstrap.engine.events import Event
    from pybootstrap.engine.report import Report

__all__ = ["OtlpRenderer"]

_QUEUE = 16384  # records; the SDK's 2048 are fewer than a ring of 2 MiB can hold
_MEMORY = 64 << 20  # bytes; what the records that wait may take
_PATIENCE_S = 5  # how long the end waits for the receiver
_EVERY_S = 60  # between two complaints
_LONGEST = 65536  # bytes of an answer
_RESOURCE = ("host.name", "service.name", "service.version", "service.instance.id")


def endpoint(url: str) -> str:
    """The address for log records under a base URL, which may have its path already.

    Raises SettingError for what is not such a URL.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # of the port, an IPv6 address or a name
        good = False
    if not good or re.search(r"[\s\x00-\x1f]", url) or parts.query or parts.fragment:
        raise SettingError(f"--otlp needs a URL such as http://collector:4318, not {url!r}")
    if parts.username is not None:
        raise SettingError(
            "--otlp takes no password, because every user could read it: set "
            "OTEL_EXPORTER_OTLP_HEADERS"
        )
    base = url.rstrip("/")
    return base if base.endswith("/v1/logs") else f"{base}/v1/logs"


def _bad_variable(error: Exception) -> SettingError:
    return SettingError(f"--otlp: a variable OTEL_... is bad: {error}")


# ---- The receiver's answers ----


class _Timed(io.RawIOBase):
    """Bytes from a socket, all of them within its timeout, which otherwise is that of each read."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._end = time.monotonic() + (sock.gettimeout() or 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer that has to be complete within the timeout."""

    def __init__(self, sock: socket.socket, *arguments: Any, **settings: Any) -> None:
        super().__init__(sock, *arguments, **settings)
        self.fp = io.BufferedReader(_Timed(self.fp.detach(), sock))


HTTPConnection.response_class = _Answer  # else one byte per second would keep the SDK's only thread


class _Session(requests.Session):
    """Keeps why the last request failed, and refuses answers that acknowledge nothing.

    The exporter looks only at the status of an answer. A login page with status 200 would count as
    delivered, and so would the records that a receiver rejects in a partial success.
    """

    problem = ""
    rejected = 0

    def send(self, request: requests.PreparedRequest, **settings: Any) -> requests.Response:
        """Sends one request; never follows a redirect, which would turn it into a GET."""
        self.rejected, self.problem = 0, "no answer"
        try:
            settings = {**settings, "allow_redirects": False, "stream": True}
            response = super().send(request, **settings)
            self.problem = f"{response.status_code} {response.reason}"
            body = _body(response)
            if 200 <= response.status_code < 400:
                self._judge(response, body)
        except requests.RequestException as error:
            self.problem = _reason(error)
            raise
        return response

    def _judge(self, response: requests.Response, body: bytes | None) -> None:
        answer = None
        if response.status_code < 300 and body is not None:
            answer = _decoded(response.headers.get("Content-Type", ""), body)
        if answer is None:
            self.problem += ", but no OTLP answer: is the URL right?"
            response.status_code = 400  # not to be retried
            return
        partial = answer.partial_success
        self.rejected = max(0, partial.rejected_log_records)
        self.problem = partial.error_message or "the receiver rejected some"


def _body(response: requests.Response) -> bytes | None:
    """Reads the body; None if it is too long, however little of it was compressed."""
    body = b""
    for part in response.iter_content(4096):
        body += part
        if len(body) > _LONGEST:
            response.close()
            return None
    return body


def _decoded(kind: str, body: bytes) -> ExportLogsServiceResponse | None:
    """The answer; None if it is something else. Some receivers answer in JSON whatever they get."""
    answer = ExportLogsServiceResponse()
    try:
        if "json" in kind:
            json_format.Parse(body, answer)
        elif kind and "protobuf" not in kind:  # a page, perhaps empty
            return None
        else:
            answer.ParseFromString(body)
    except (DecodeError, json_format.ParseError, UnicodeDecodeError):
        return None
    return answer


def _reason(error: Exception) -> str:
    """What went wrong, in a few words."""
    found = re.search(r"\[Errno -?\d+\] ([\w ,]+)", str(error))
    if found:
        return found[1]
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    return f"{type(error).__name__}: {error}"[:300]


class _Exporter(LogRecordExporter):
    """The SDK's exporter, with counters. Only the SDK's thread changes them."""

    def __init__(self, name: str, url: str) -> None:
        self._name = name
        self._url = url
        self._session = _Session()
        self._exporter = OTLPLogExporter(endpoint=url, session=self._session)
        self._silent_until = 0.0  # time.monotonic()
        self._unreported = 0
        self._lock = threading.Lock()  # of the two above
        self._closed = False
        self.taken = 0  # from the queue
        self.sizes: deque[int] = deque()  # of what is queued; the main thread appends
        self.freed = 0  # bytes, of what was exported
        self.delivered = 0
        self.dropped = 0

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Exports a batch, with retries; it takes at most the timeout of the exporter."""
        size = sum([self.sizes.popleft() for _ in batch])
        self.taken += len(batch)
        self._session.rejected, self._session.problem = 0, "the end came first"
        result = LogRecordExportResult.FAILURE
        try:
            result = self._exporter.export(batch)
        except Exception as error:  # noqa: BLE001 - the SDK would print a traceback
            self._session.problem = _reason(error)
        good = 0
        if result is LogRecordExportResult.SUCCESS:
            good = max(0, len(batch) - self._session.rejected)
        if not self._closed:
            self.delivered += good
            self.dropped += len(batch) - good
            self.complain(len(batch) - good, self._session.problem)
        self.freed += size
        return result

    def complain(self, count: int, problem: str) -> None:
        """Reports records that were dropped, at most once a minute; in any thread."""
        with self._lock:
            self._unreported += count
            count, now = self._unreported, time.monotonic()
            if not count or now < self._silent_until:
                return
            self._unreported, self._silent_until = 0, now + _EVERY_S
        reason = escape(" ".join(problem.split()))[:300]  # may be the receiver's text
        say(
            self._name,
            f"{count} log records were not delivered to {self._url}: {reason}",
            wait=False,
        )

    def shutdown(self) -> None:
        """Ends waiting for the next attempt, and fails at once from here on."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Counts nothing from here on."""
        self._closed = True

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002
        """Nothing is buffered here."""
        return True


# ---- Log records ----


def _size(line: str) -> int:
    """About how many bytes the attributes of a JSON object take; a short string takes up to 100."""
    return 2 * len(line) + 50 * line.count('"')


class OtlpRenderer(Renderer):
    """Sends each event, loss and report as a log record; lines are those of another renderer.

    The attributes of a record are the members of its JSON object with OpenTelemetry's names, but
    not those that are null. Threads start with `start()`, after privileges were dropped.

    Args:
        name: the command's name, for messages and names.
        url: base URL of the receiver.
        events: all classes of events.
        lines: makes the lines; None: there are none.

    Raises SettingError for a bad URL, and for settings of the SDK in the environment that are bad.
    """

    def __init__(
        self, name: str, url: str, events: Iterable[type[Event]], lines: Renderer | None
    ) -> None:
        events = tuple(events)
        self.header = lines.header if lines else ""
        self.kinds = {event.KIND: event for event in events}  # type: ignore[misc]
        self._name = name
        self._url = endpoint(url)
        self._lines = lines
        self._json = JsonRenderer(events, OtelNames(name))
        self._sent = self._emitted = 0  # records
        self._size = 0  # bytes, of the emitted
        self._provider: LoggerProvider | None = None
        logging.getLogger().addHandler(logging.NullHandler())  # else the SDK's go to stderr
        try:
            self._queue = int(os.environ.get("OTEL_BLRP_MAX_QUEUE_SIZE") or _QUEUE)
            self._exporter = _Exporter(name, self._url)
            self._resource = Resource.create()  # with OTEL_RESOURCE_ATTRIBUTES
        except (ValueError, RuntimeError, OSError) as error:
            raise _bad_variable(error) from None

    def take(self, made: list[Any]) -> list[Any]:
        """Sends the events among these; returns their lines, with the losses between them."""
        lines = self._lines.kinds if self._lines else {}
        before = self._sent - self._emitted
        taken: list[Any] = []
        for event in made:
            if isinstance(event, LostEvent):  # comes to `lost`
                taken.append(event)
                continue
            self._send(event.time_ns, self._json.kinds[event.KIND](event.record))
            taken.append(lines[event.KIND](event.record) if lines else "")
        if dropped := self._sent - self._emitted - before:
            self._exporter.complain(dropped, "the queue is full")
        return taken

    def lost(self, event: LostEvent) -> str:
        """Sends a loss."""
        self._send(event.time_ns, self._json.lost(event), SeverityNumber.WARN)
        return self._lines.lost(event) if self._lines else ""

    def start(self, report: Report) -> str:
        """Starts the SDK's thread, and sends that tracing has begun."""
        told = json.loads(self._json.start(report))
        resource = self._resource.merge(Resource({name: told[name] for name in _RESOURCE}))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:  # a thread that took our signals would not end a write that blocks the main thread
            self._provider = LoggerProvider(resource, shutdown_on_exit=False)
            self._provider.add_log_record_processor(
                BatchLogRecordProcessor(self._exporter, max_queue_size=self._queue)
            )
            self._logger = self._provider.get_logger(self._name, report.version)
        except ValueError as error:
            raise _bad_variable(error) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._report("start", report)

    def status(self, report: Report) -> str:
        """Sends the counters."""
        return self._report("status", report)

    def end(self, report: Report) -> str:
        """Sends that tracing has ended, waits for the receiver, and returns the final line."""
        self._send(report.time_ns, self._json.end(self._counted(report)), must=True)
        self._shut_down()
        return self._lines.end(self._counted(report)) if self._lines else ""

    def _report(self, kind: str, report: Report) -> str:
        report = self._counted(report)
        self._send(report.time_ns, getattr(self._json, kind)(report))
        line: str = getattr(self._lines, kind)(report) if self._lines else ""
        return line

    def _counted(self, report: Report) -> Report:
        return report._replace(counters={**report.counters, **self._counters()})

    def _counters(self) -> dict[str, int]:
        """Log records so far. While it runs, `dropped` has what is known: the rest is queued."""
        sent, delivered = self._sent, self._exporter.delivered
        dropped = sent - delivered
        if self._provider is not None:  # still running
            dropped = sent - self._emitted + self._exporter.dropped
        return {"otlp_sent": sent, "otlp_delivered": delivered, "otlp_dropped": dropped}

    def _send(
        self,
        time_ns: int,
        line: str,
        severity: SeverityNumber = SeverityNumber.INFO,
        must: bool = False,
    ) -> None:
        """Sends a JSON object unless the queue is full; with `must` also then, as the last one."""
        self._sent += 1
        exporter, size = self._exporter, _size(line)
        full = self._emitted - exporter.taken >= self._queue  # before the SDK drops silently
        if (full or self._size + size - exporter.freed > _MEMORY) and not must:
            return
        self._emitted += 1
        self._size += size
        exporter.sizes.append(size)
        members = json.loads(line)
        del members["time"]
        name = members.pop("event_name")
        self._logger.emit(
            timestamp=time_ns or None,
            event_name=name,
            severity_number=severity,
            attributes={
                key: float(value) if type(value) is int and not -(2**63) <= value < 2**63 else value
                for key, value in members.items()
                if value is not None and key not in _RESOURCE
            },
        )

    def _shut_down(self) -> None:
        """Lets the SDK send what it has, for a bounded time; what is left then was dropped."""
        provider, self._provider = self._provider, None
        if provider is None:
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        flusher = threading.Thread(target=provider.shutdown, daemon=True)
        flusher.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        end = time.monotonic() + _PATIENCE_S
        while flusher.is_alive() and time.monotonic() < end and not in_a_hurry():
            flusher.join(0.05)
        if flusher.is_alive():
            self._exporter.shutdown()
            flusher.join(0.2)
        self._exporter.close()

    @property
    def undelivered(self) -> int:
        """How many records were dropped."""
        return self._counters()["otlp_dropped"]

    def close(self) -> list[str]:
        """Ends it if `end` did not; returns what is to be reported."""
        self._shut_down()
        if not self.undelivered:
            return []
        return [f"{self.undelivered} of {self._sent} log records were not delivered to {self._url}"]
