# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""--otlp: a receiver of its own counts what arrives, and a workload what wait4(2) returned."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from pybootstrap import __version__
from tests.support import DEADLINE_S, Command, join, ns_of, status_of, wait_until

Start = Callable[..., Command]


class Receiver:
    """The receiver, which can be killed and started again on the same port."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._port = "0"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("otlp_receiver.py"), self._port, self._file],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self._port = self.process.stdout.readline().strip()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def answer(self, how: str) -> None:
        Path(f"{self._file}.answer").write_text(how)

    def kill(self) -> None:
        with self.process:  # closes its pipe
            self.process.kill()

    @property
    def records(self) -> list[dict[str, Any]]:
        """What was received, each once; a line that is being written is left out."""
        text = self._file.read_text() if self._file.exists() else ""
        return [json.loads(line) for line in sorted(set(text.splitlines(keepends=True)))
                if line.endswith("\n")]  # fmt: skip

    def events(self) -> list[dict[str, Any]]:
        names = ("bootstrap.exec", "bootstrap.exit")
        return [record for record in self.records if record["name"] in names]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    started = Receiver(tmp_path / "received")
    try:
        yield started
    finally:
        started.kill()


class Workload:
    """Runs processes; their parent is one process with this pid, which waits for each."""

    CODE = (
        "import os, sys\n"
        "for line in sys.stdin:\n"
        "    count, more = map(int, line.split())\n"
        "    words = ['true', 'é', b'\\xff', *[b'\\xff'] * more]\n"
        "    for _ in range(count):\n"
        "        pid = os.posix_spawn('/bin/true', words, {})\n"
        "        print(os.wait4(pid, 0)[0])\n"
        "    print(flush=True)\n"
    )

    def __init__(self) -> None:
        command = [sys.executable, "-c", self.CODE]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pids: list[int] = []

    def run(self, count: int, more: int = 0) -> None:
        """Runs processes with 2 arguments and more."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count} {more}\n")
        self.process.stdin.flush()
        self.pids += [int(line) for line in iter(self.process.stdout.readline, "\n")]


@pytest.fixture
def workload() -> Iterator[Workload]:
    started = Workload()
    with started.process:
        yield started
        assert started.process.stdin is not None
        started.process.stdin.close()


class Sender(Command):
    """bootstrap --otlp for the workload, with plain JSON beside it in a file."""

    def __init__(
        self, url: str, workload: Workload, file: Path, *arguments: str, **variables: str
    ) -> None:
        self._file = file
        words = ["--otlp", url, "-j", "-o", str(file), "--ppid", str(workload.process.pid)]
        super().__init__(*words, *arguments, env={**os.environ, **variables})
        self.wait_for_tracing()

    @property
    def lines(self) -> list[dict[str, Any]]:
        lines = self._file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for_events(self, count: int) -> None:
        wait_until(lambda: sum(line["event"] in ("exec", "exit") for line in self.lines) >= count)

    @property
    def counters(self) -> dict[str, int]:
        """The final counters."""
        (last,) = (line["counters"] for line in self.lines if line["event"] == "trace_end")
        assert isinstance(last, dict)
        return last


@pytest.fixture
def send(workload: Workload, tmp_path: Path) -> Iterator[Callable[..., Sender]]:
    with contextlib.ExitStack() as stack:

        def start(url: str, *arguments: str, **variables: str) -> Sender:
            sender = Sender(url, workload, tmp_path / "lines", *arguments, **variables)
            return stack.enter_context(sender)  # type: ignore[return-value]

        yield start


Send = Callable[..., Sender]
REPORTS = 2  # trace_start and trace_end


def assert_accounted(sender: Sender, workload: Workload, receiver: Receiver) -> int:
    """Every process has two events, and each was received or counted. Returns how many were not."""
    counters = sender.counters
    sent, dropped = counters["otlp_sent"], counters["otlp_dropped"]
    assert counters["lost"] == 0
    assert sent == 2 * len(workload.pids) + REPORTS
    assert sent == counters["otlp_delivered"] + dropped
    assert sent == len(receiver.records) + dropped
    assert {record["attributes"]["process.pid"] for record in receiver.events()} <= set(
        workload.pids
    )
    return dropped


def test_every_event_arrives_with_the_values_of_json(
    receiver: Receiver, bootstrap: Start, workload: Workload, tmp_path: Path
) -> None:
    file = tmp_path / "lines"
    words = ["--otlp", receiver.url, "--json=otel", "-o", str(file), "-n", "19"]
    command = bootstrap(*words, "--ppid", str(workload.process.pid))
    command.wait_for_tracing()
    workload.run(20)  # more than -n wants
    status, out, err = command.end()
    assert (status, out, err) == (0, "", "")
    started, *events, ended = (json.loads(line) for line in file.read_text().splitlines())
    assert len(events) == 19
    received = {
        (record["name"], record["attributes"]["process.pid"]): record
        for record in receiver.events()
    }
    assert len(received) == len(receiver.events()) == 19
    for event in events:
        record = received[event.pop("event_name"), event["process.pid"]]
        assert record["time_ns"] == ns_of(event.pop("time"))
        assert record["attributes"] == {k: v for k, v in event.items() if v is not None}
        assert record["attributes"]["process.command_args"] == ["true", "é", "\ufffd"]
        assert record["attributes"]["process.command_args_base64"] == ["dHJ1ZQ==", "w6k=", "/w=="]
    names = [record["name"] for record in receiver.records]
    assert names.count("bootstrap.trace_start") == names.count("bootstrap.trace_end") == 1
    assert ended["bootstrap.counters.otlp_dropped"] == 0
    for record in receiver.records:
        assert record["scope"] == ["bootstrap", __version__]
        resource = record["resource"]
        assert resource["service.name"] == "bootstrap"
        assert resource["service.version"] == __version__
        assert resource["service.instance.id"] == started["service.instance.id"]
        assert resource["host.name"] == os.uname().nodename


def test_it_prints_nothing_unless_asked(receiver: Receiver, bootstrap: Start) -> None:
    command = bootstrap("--otlp", receiver.url)
    command.wait_for_tracing()
    wait_until(lambda: receiver.records)  # its first report
    assert command.end(signal.SIGTERM) == (0, "", "")


def test_a_receiver_is_killed_and_comes_back(
    receiver: Receiver, send: Send, workload: Workload
) -> None:
    sender = send(receiver.url)
    running = threading.Event()

    def load() -> None:
        for _ in range(10):
            workload.run(50)
            running.set()

    thread = threading.Thread(target=load)
    thread.start()
    assert running.wait(DEADLINE_S)
    wait_until(receiver.events)
    receiver.kill()
    join(thread)
    sender.wait_for_events(2 * len(workload.pids))
    receiver.start()
    workload.run(1)
    last = workload.pids[-1]
    wait_until(lambda: last in {one["attributes"]["process.pid"] for one in receiver.events()})
    status, _, err = sender.end(signal.SIGTERM)
    assert status == 0
    dropped = assert_accounted(sender, workload, receiver)
    assert bool(dropped) == ("log records were not delivered" in err)


def test_a_receiver_that_is_not_there_does_not_keep_the_command_from_ending(
    receiver: Receiver, send: Send, workload: Workload
) -> None:
    receiver.kill()
    sender = send(receiver.url, "--strict")
    workload.run(3)
    sender.wait_for_events(6)
    sender.process.send_signal(signal.SIGTERM)
    status, _, err = sender.end()
    assert status == 1
    assert assert_accounted(sender, workload, receiver) == 8
    url = f"{receiver.url}/v1/logs"
    assert f"bootstrap: 8 of 8 log records were not delivered to {url}\n" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("400", "400 Bad Request"),
        ("garbage", "200 OK, but no OTLP answer: is the URL right?"),
        ("empty page", "200 OK, but no OTLP answer: is the URL right?"),
        ("other json", "200 OK, but no OTLP answer: is the URL right?"),
        ("long", "200 OK, but no OTLP answer: is the URL right?"),
        ("redirect", "302 Found, but no OTLP answer: is the URL right?"),
        ("silence", "no answer in time"),
    ],
)
def test_what_the_receiver_does_not_acknowledge_is_counted(
    receiver: Receiver, send: Send, workload: Workload, answer: str, reason: str
) -> None:
    receiver.answer(answer)
    sender = send(receiver.url, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert sender.process.stderr is not None
    told = sender.process.stderr.readline().decode()  # about the first report
    url = f"{receiver.url}/v1/logs"
    assert told == f"bootstrap: 1 log records were not delivered to {url}: {reason}\n"
    workload.run(3)
    sender.wait_for_events(6)
    status, _, err = sender.end(signal.SIGTERM)
    assert (status, err) == (0, f"bootstrap: 8 of 8 log records were not delivered to {url}\n")
    assert assert_accounted(sender, workload, receiver) == 8


def test_rejected_records_of_a_partial_success_are_counted(
    receiver: Receiver, send: Send, workload: Workload
) -> None:
    receiver.answer("partial")
    sender = send(receiver.url)
    wait_until(lambda: receiver.records)  # the first report
    workload.run(10)
    sender.wait_for_events(20)
    status, _, err = sender.end(signal.SIGTERM)
    assert status == 0
    assert "only \\x1b[1mone!!" in err
    assert "!" * 300 not in err
    assert assert_accounted(sender, workload, receiver) > 0


@pytest.mark.parametrize("answer", ["503 once", "json"])
def test_a_receiver_may_be_busy_or_answer_in_json(
    receiver: Receiver, send: Send, workload: Workload, answer: str
) -> None:
    receiver.answer(answer)
    sender = send(receiver.url, OTEL_EXPORTER_OTLP_COMPRESSION="gzip")
    workload.run(3)
    wait_until(lambda: len(receiver.events()) == 6)
    status, _, err = sender.end(signal.SIGTERM)
    assert (status, err) == (0, "")
    assert assert_accounted(sender, workload, receiver) == 0


def test_an_answer_that_never_ends_is_given_up(
    receiver: Receiver, send: Send, workload: Workload
) -> None:
    receiver.answer("drip once")
    sender = send(receiver.url, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert sender.process.stderr is not None
    assert sender.process.stderr.readline().endswith(b": no answer in time\n")
    workload.run(3)
    wait_until(lambda: len(receiver.events()) == 6)
    sender.end(signal.SIGTERM)
    assert assert_accounted(sender, workload, receiver) == 1


def test_what_a_full_queue_drops_is_counted(
    receiver: Receiver, send: Send, workload: Workload
) -> None:
    variables = {"OTEL_BLRP_MAX_QUEUE_SIZE": "64", "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "32"}
    sender = send(receiver.url, **variables)
    wait_until(lambda: receiver.records)  # the first report
    receiver.process.send_signal(signal.SIGSTOP)
    workload.run(200)
    sender.wait_for_events(400)
    assert sender.process.stderr is not None
    assert sender.process.stderr.readline().endswith(b": the queue is full\n")
    receiver.process.send_signal(signal.SIGCONT)
    status, _, err = sender.end(signal.SIGTERM)
    assert status == 0
    dropped = assert_accounted(sender, workload, receiver)
    assert dropped >= 400 - 64 - 2 * 32
    assert f"bootstrap: {dropped} of 402 log records were not delivered to " in err


def test_records_that_wait_take_bounded_memory(
    receiver: Receiver, send: Send, workload: Workload
) -> None:
    """Anybody can run commands with many short arguments: each is two objects in a record."""
    receiver.kill()
    sender = send(receiver.url)
    before = int(status_of(sender.pid)["VmHWM"].split()[0])
    for _ in range(20):
        workload.run(15, 2700)  # so few that the ring holds them
        sender.wait_for_events(2 * len(workload.pids))
    assert int(status_of(sender.pid)["VmHWM"].split()[0]) - before < 200_000  # KiB
    sender.process.send_signal(signal.SIGTERM)
    sender.end()
    assert assert_accounted(sender, workload, receiver) == 602


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("collector:4318", "--otlp needs a URL such as http://collector:4318, not"),
        ("ftp://collector", "--otlp needs a URL"),
        ("http://a..b", "--otlp needs a URL"),
        ("http://", "--otlp needs a URL"),
        ("http://[::1", "--otlp needs a URL"),
        ("http://collector:x", "--otlp needs a URL"),
        ("http://collector:99999", "--otlp needs a URL"),
        ("http://collector/ v1", "--otlp needs a URL"),
        ("http://me:secret@collector", "--otlp takes no password"),
    ],
)
def test_a_bad_url_is_one_sentence(bootstrap: Start, url: str, said: str) -> None:
    status, out, err = bootstrap("--otlp", url).end()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"bootstrap: {said}")


@pytest.mark.parametrize("size", ["many", "5"])  # 5 are fewer than a batch has
def test_a_bad_variable_is_one_sentence(bootstrap: Start, size: str) -> None:
    variables = {**os.environ, "OTEL_BLRP_MAX_QUEUE_SIZE": size}
    status, _, err = bootstrap("--otlp", "http://127.0.0.1:9", env=variables).end()
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("bootstrap: --otlp: a variable OTEL_... is bad: ")


def test_without_the_sdk_it_says_what_to_install(bootstrap: Start) -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import pybootstrap.cli as c; c.main()"
    with Command("--otlp", "http://x", program=("-c", code)) as command:
        _, out, err = command.end()
    assert out == ""
    assert err.endswith(": pip install 'pybootstrap-bpf[otlp]'\n")
    assert err.count("\n") == 1


LOADS = """
import sys
from pybootstrap.engine import privileges
from pybootstrap.cli import main
give_up = privileges.give_up
def note(become):
    global before
    give_up(become)
    before = set(sys.modules)
privileges.give_up = note
status = main()
print(*set(sys.modules) - before)
"""


def test_nothing_is_imported_after_privileges_were_dropped(receiver: Receiver) -> None:
    """The user it becomes may not be able to read modules."""
    url = receiver.url.replace("127.0.0.1", "localhost")
    words = ["--otlp", url, "--run-as", "nobody", "-o", os.devnull]
    with Command(*words, program=("-c", LOADS)) as command:
        wait_until(lambda: receiver.records)
        assert command.end(signal.SIGTERM) == (0, "\n", "")


def test_none_of_its_threads_keeps_privileges(receiver: Receiver, bootstrap: Start) -> None:
    command = bootstrap("--otlp", receiver.url, "--run-as", "nobody")
    command.wait_for_tracing()
    wait_until(lambda: receiver.records)
    nobody = str(pwd.getpwnam("nobody").pw_uid)
    threads = [int(path.name) for path in Path(f"/proc/{command.pid}/task").iterdir()]
    assert len(threads) >= 2
    for thread in threads:
        fields = status_of(f"{command.pid}/task/{thread}")
        assert set(fields["Uid"].split()) == {nobody}
        assert {int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
    assert command.end(signal.SIGTERM) == (0, "", "")
