"""Handlers of `logging` that never wait for whoever reads the log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO

from roseinfer.server.line_writer import PAUSE_SECONDS, LineWriter, write_text


class LineHandler(logging.Handler):
    """Writes to the stream that `stream` returns, in a thread of its own; `on_dropped` makes a line of a number.

    Closed by `logging` when the process ends, which writes what waits.
    """

    def __init__(
        self,
        stream: Callable[[], TextIO | None],
        on_dropped: Callable[[int], str],
        *,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        super().__init__()
        self._writer = LineWriter(lambda text: write_text(stream(), text), on_dropped, pause_seconds=pause_seconds)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.put(self.format(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._writer.close()
        super().close()


def log_to_stderr() -> None:
    """Everybody's lines from warnings on, unless somebody has set logging up already.

    They are few, so none waits for the next: a process that is killed has told all but the last moment.
    """
    if not logging.getLogger().hasHandlers():
        handler = LineHandler(lambda: sys.stderr, _dropped_line, pause_seconds=0)
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", handlers=[handler])


def _dropped_line(count: int) -> str:
    return f"WARNING {count} lines of the log were dropped: nobody has read them"
