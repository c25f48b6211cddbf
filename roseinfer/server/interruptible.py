"""A piece of a task's work that something else may break off: a deadline, a caller who hangs up."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Interruptible:
    """A `with` block of the current task. `interrupt` lets it raise `error` where it waits; afterwards it does nothing.

    What `asyncio.timeout` does for time (Python 3.11), for any reason and without a task of its own.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._task: asyncio.Task[object] | None = None  # while it is inside the block
        self._is_interrupted = False

    def __enter__(self) -> Interruptible:
        self._task = asyncio.current_task()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is None or not self._is_interrupted:
            return
        if hasattr(task, "uncancel"):  # Python 3.11
            task.uncancel()
        if kind is asyncio.CancelledError:
            raise self._error from None

    def interrupt(self, *_: object) -> None:
        """From the task's event loop, while the task waits; fine as a callback of futures and timers."""
        if self._task is not None and not self._is_interrupted:
            self._is_interrupted = True
            self._task.cancel()
