# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""An OTLP receiver over HTTP, made of the official protocol package: python otlp_receiver.py PORT
FILE. It prints its port. Each log record becomes a line of JSON in FILE before it is acknowledged.

It answers as the file FILE.answer tells, which is read for each request; see `_ANSWERS`.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

_ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "": (200, {}, b""),
    "400": (400, {}, b"no"),
    "503": (503, {"Retry-After": "1"}, b""),
    "json": (200, {"Content-Type": "application/json"}, b'{"partialSuccess": {}}'),
    "other json": (200, {"Content-Type": "application/json"}, b'{"error": "no"}'),
    "empty page": (200, {"Content-Type": "text/html"}, b""),
    "garbage": (200, {}, b"<html>Log in, please</html>"),
    # Unknown fields of 1 MiB in all: a valid answer, but too long.
    "long": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"\x78\x00" * (1 << 19))),
    "redirect": (302, {"Location": "/login"}, b""),
}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _records(request: ExportLogsServiceRequest) -> list[dict[str, Any]]:
    return [
        {
            "resource": _attributes(resource.resource.attributes),
            "scope": [scope.scope.name, scope.scope.version],
            "name": record.event_name,
            "time_ns": record.time_unix_nano,
            "severity": record.severity_number,
            "attributes": _attributes(record.attributes),
        }
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert self.path == "/v1/logs", self.path
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            data = gzip.decompress(data)
        records = _records(ExportLogsServiceRequest.FromString(data))
        file = Path(sys.argv[2])
        answer = Path(f"{file}.answer")
        how = answer.read_text() if answer.exists() else ""
        if how == "silence":
            threading.Event().wait()
        if how == "drip once":
            answer.unlink()
            self._drip()
        if how == "503 once":
            answer.unlink()
            how = "503"
        status, headers, content = _ANSWERS.get(how, _ANSWERS[""])
        if how == "partial":  # takes one record of each request
            refused = len(records) - 1
            del records[1:]
            body = ExportLogsServiceResponse()
            body.partial_success.rejected_log_records = refused
            body.partial_success.error_message = "only \x1b[1mone" + 1000 * "!"
            content = body.SerializeToString()
        if status == 200 and how not in ("garbage", "empty page", "other json", "long"):
            with file.open("ab", buffering=0) as output:  # at once, because we may be killed
                output.write("".join(json.dumps(record) + "\n" for record in records).encode())
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _drip(self) -> None:
        """Sends headers until the client has enough."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"X")
            time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
