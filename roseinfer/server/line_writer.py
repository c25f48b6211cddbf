"""Lines of a log, written by a thread of their own: whoever reads them slowly, or not at all, holds nobody up."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

MAX_LINES = 4096  # that wait; more are dropped
PAUSE_SECONDS = 0.05  # for more lines to come, which are written together: a thread that wakes takes time from others


class LineWriter:
    """`write` gets some lines at a time, and where lines were dropped one more, which `on_dropped` makes.

    `pause_seconds`: how long a line waits for others.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        on_dropped: Callable[[int], str],
        *,
        max_lines: int = MAX_LINES,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._write = write
        self._on_dropped = on_dropped
        self._max_lines = max_lines
        self._pause_seconds = pause_seconds
        self._lines: deque[str] = deque()
        self._num_dropped = 0
        self._lock = threading.Lock()  # guards the number
        self._has_lines = threading.Event()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """From any thread; never waits for the reader."""
        if len(self._lines) >= self._max_lines:
            with self._lock:
                self._num_dropped += 1
            return
        self._lines.append(line)
        if not self._has_lines.is_set():
            self._has_lines.set()

    def close(self, seconds: float = 1.0) -> None:
        """Writes what waits; gives up after `seconds`. Idempotent."""
        self._is_closing.set()
        self._has_lines.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._is_closing.is_set() or self._lines:
            self._has_lines.wait()
            self._is_closing.wait(self._pause_seconds)
            self._has_lines.clear()
            self._write_some(len(self._lines))

    def _write_some(self, count: int) -> None:
        lines = [self._lines.popleft() for _ in range(count)]
        with self._lock:
            num_dropped, self._num_dropped = self._num_dropped, 0
        if num_dropped:
            lines.append(self._on_dropped(num_dropped))
        if lines:
            self._write("".join([line + "\n" for line in lines]))


def write_text(stream: TextIO | None, text: str) -> None:
    """Waits until all of it is written; a stream that is closed or was never there takes nothing.

    Past the stream's buffer where it has a file: a thread that waits with the buffer's lock would keep the interpreter
    from ending.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            file = stream.fileno()  # type: ignore[union-attr]
        except (OSError, ValueError, AttributeError):
            stream.write(text)  # type: ignore[union-attr]
            stream.flush()  # type: ignore[union-attr]
        else:
            _write_all(file, text.encode())


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(file, rest) :]
        except BlockingIOError:  # somebody has made the pipe non-blocking
            select.select([], [file], [])
