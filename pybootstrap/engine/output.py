# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""Where a command's lines go: descriptors that may be full, shared, non-blocking or left by their
reader. For commands only, because patience ends with a signal to the process: `told_to_end()`.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time
from errno import EIO

__all__ = [
    "NoReaderError",
    "Output",
    "OutputError",
    "forget_stdout",
    "open_output",
    "say",
    "stdout",
    "told_to_end",
]


class OutputError(Exception):
    """The output takes no more; the message says why."""


class NoReaderError(Exception):
    """Whoever read the output has seen enough."""


def open_output(path: str | None) -> Output:
    """The file at `path`, made or emptied; None: standard output. Raises OutputError."""
    if path is None:
        return stdout()
    # Non-blocking, or a FIFO that nobody reads would hold us here; Output can deal with that.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return Output(os.open(path, flags, 0o666), "utf-8")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from None


_PIECE = 4096  # PIPE_BUF: what a pipe that polls as writable takes, unless others write to it too
_PATIENCE_S = 1  # with readers that take nothing, once we were told to end
_TICK_S = 0.25

_give_up_at: float | None = None  # time.monotonic() when that is over
_hurry = False  # we were told twice
_writing = False


def told_to_end() -> None:
    """A signal to end came: from here on patience has an end, and a blocked write(2) is ended."""
    global _give_up_at, _hurry  # noqa: PLW0603
    _hurry = _give_up_at is not None
    _give_up_at = time.monotonic() + (0 if _hurry else _PATIENCE_S)
    if not _hurry:
        signal.signal(signal.SIGALRM, _tick)
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)


def _tick(*_: object) -> None:
    """Interrupts a write to a terminal or a shared pipe, which may block although it polls."""
    if _writing and _out_of_patience():
        raise OutputError("its reader takes nothing")


def _out_of_patience() -> bool:
    return _give_up_at is not None and time.monotonic() >= _give_up_at


def _be_patient_again() -> None:
    """A reader has taken something after all."""
    global _give_up_at  # noqa: PLW0603
    if not _hurry:
        _give_up_at = time.monotonic() + _PATIENCE_S


class Output:
    """A descriptor that is written to at once; in pieces that do not block, unless it is a file.

    Python's own file objects lose data when a signal interrupts a blocked write, and when somebody
    has made the pipe non-blocking; and they do not return while the reader takes nothing.
    """

    def __init__(self, fd: int, encoding: str) -> None:
        self._fd = fd
        self._encoding = encoding
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._is_terminal = os.isatty(fd)
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        self._poll = poller.poll

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def write(self, text: str) -> None:
        """Raises NoReaderError when nobody reads any more, OutputError when it takes no more."""
        data = text.encode(self._encoding, "backslashreplace")
        try:
            while data:
                if self._is_file or self._poll(_TICK_S * 1000):
                    data = data[self._write_some(data) :]
                elif _out_of_patience():
                    raise OutputError("its reader takes nothing")
        except BrokenPipeError:
            raise NoReaderError from None
        except OSError as error:
            if error.errno == EIO and self._is_terminal:  # it was closed
                raise NoReaderError from None
            raise OutputError(error.strerror) from None

    def _write_some(self, data: bytes) -> int:
        global _writing  # noqa: PLW0603
        _writing = True
        try:
            written = os.write(self._fd, data if self._is_file else data[:_PIECE])
        except BlockingIOError:  # non-blocking, and somebody else has filled it meanwhile
            return 0
        finally:
            _writing = False
        if _give_up_at is not None:
            _be_patient_again()
        return written


def stdout() -> Output:
    """Standard output, in its encoding. Raises OutputError when it was closed."""
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    return Output(sys.stdout.fileno(), sys.stdout.encoding)


def forget_stdout() -> None:
    """Keeps the interpreter from failing again when it flushes standard output at its end."""
    if sys.stdout is not None:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def say(name: str, message: object) -> None:
    """A line of the command `name` to standard error; nothing where nobody can take it."""
    if sys.stderr is None:
        return
    import contextlib  # tracers have it; a command that says nothing need not

    with contextlib.suppress(OSError, OutputError):
        Output(sys.stderr.fileno(), "utf-8").write(f"{name}: {message}\n")
