# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The output of a command, to descriptors that may be full, shared, non-blocking or without reader.

For commands only, because a signal to the process limits how long writes wait: `told_to_end()`.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time
from errno import EIO

from pybootstrap._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Callable

__all__ = [
    "NoReaderError",
    "Output",
    "OutputError",
    "forget_stdout",
    "in_a_hurry",
    "open_output",
    "say",
    "stdout",
    "told_to_end",
]


class OutputError(Exception):
    """The output cannot be written; the message says why."""


class NoReaderError(Exception):
    """Nobody reads the output any more."""


def open_output(path: str | None) -> Output:
    """The file at `path`, created or truncated; None: standard output. Raises OutputError."""
    if path is None:
        return stdout()
    # Non-blocking, because opening a FIFO that nobody reads would block. Output can handle that.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return Output(os.open(path, flags, 0o666), "utf-8")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from None


_PIECE = 4096  # PIPE_BUF: a pipe that polls as writable takes it, unless others write to it, too
_PATIENCE_S = 1  # how long to wait for a reader that takes nothing, once we were told to end
_TICK_S = 0.25

_give_up_at: float | None = None  # time.monotonic() at the end of that wait
_hurry = False  # we were told twice
_writing = False


def told_to_end() -> None:
    """To be called when a signal asks us to end: limits from here on how long a write may block."""
    global _give_up_at, _hurry  # noqa: PLW0603
    _hurry = _give_up_at is not None
    _give_up_at = time.monotonic() + (0 if _hurry else _PATIENCE_S)
    if not _hurry:
        signal.signal(signal.SIGALRM, _tick)
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)


def is_ending() -> bool:
    """Whether a signal asked us to end."""
    return _give_up_at is not None


def in_a_hurry() -> bool:
    """Whether signals asked us twice to end."""
    return _hurry


def _tick(*_: object) -> None:
    """Interrupts a write to a terminal or a shared pipe, which may block in spite of poll(2)."""
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
    """An unbuffered descriptor; unless it is a file, written in pieces that do not block.

    Python's own file objects lose data when a signal interrupts a blocked write or another process
    makes the pipe non-blocking; and they do not return while the reader takes nothing.
    """

    def __init__(self, fd: int, encoding: str) -> None:
        self._fd = fd
        self._encoding = encoding
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._is_terminal = os.isatty(fd)
        # Called while a write lasts, with whether the reader takes nothing.
        self.on_wait: Callable[[bool], None] | None = None
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        self._poll = poller.poll

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def is_ready(self, timeout_s: float) -> bool:
        """Whether it takes a piece now, or within this time."""
        return self._is_file or bool(self._poll(timeout_s * 1000))

    def write(self, text: str) -> None:
        """Raises NoReaderError when nobody reads any more, OutputError for any other failure."""
        data = whole = text.encode(self._encoding, "backslashreplace")
        try:
            while data:
                ready = self.is_ready(_TICK_S)
                if ready:
                    data = data[self._write_some(data) :]
                elif _out_of_patience():
                    raise OutputError("its reader takes nothing")
                if data and self.on_wait is not None:
                    self.on_wait(not ready)
        except BrokenPipeError:
            raise NoReaderError from None
        except OSError as error:
            if error.errno == EIO and self._is_terminal:  # the terminal was closed
                raise NoReaderError from None
            self._remove_part_of_line(whole[: len(whole) - len(data)])
            raise OutputError(error.strerror) from None

    def _remove_part_of_line(self, written: bytes) -> None:
        """Removes the part of a line that fitted on a full disk: the next run may append to it."""
        size = len(written) - (written.rfind(b"\n") + 1)
        if not (self._is_file and size):
            return
        import contextlib

        with contextlib.suppress(OSError):
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            if end == os.fstat(self._fd).st_size:  # else somebody else has written, too
                os.ftruncate(self._fd, end - size)
                os.lseek(self._fd, -size, os.SEEK_CUR)

    def _write_some(self, data: bytes) -> int:
        global _writing  # noqa: PLW0603
        _writing = True
        try:
            written = os.write(self._fd, data if self._is_file else data[:_PIECE])
        except BlockingIOError:  # non-blocking, and another writer has filled it
            return 0
        finally:
            _writing = False
        if _give_up_at is not None:
            _be_patient_again()
        return written


def stdout() -> Output:
    """Standard output, in its encoding. Raises OutputError if it is closed."""
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    return Output(sys.stdout.fileno(), sys.stdout.encoding)


def forget_stdout() -> None:
    """Keeps the interpreter from failing again when it flushes standard output at exit."""
    if sys.stdout is not None:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def say(name: str, message: object, wait: bool = True) -> None:
    """Prints a line of the command `name` to standard error; ignores failures.

    Without `wait`, drops it if its reader takes nothing, so that tracing goes on.
    """
    if sys.stderr is None:
        return
    import contextlib  # here, because many commands print no message

    with contextlib.suppress(OSError, OutputError, NoReaderError):
        output = Output(sys.stderr.fileno(), "utf-8")
        if wait or output.is_ready(0):
            output.write(f"{name}: {message}\n")
