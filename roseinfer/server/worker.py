"""Work that is short mostly and long sometimes: long work must not hold the event loop, nor the work of others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from roseinfer.core.errors import OverloadedError

T = TypeVar("T")

# Tokenising, or rendering, up to here takes no longer than the event loop may be held.
MAX_INLINE_CHARS = 2048
MAX_PENDING_CHARS = 16 * 2**20  # two bodies of the largest size, or many small ones


async def run_sized(num_chars: int, work: Callable[[], T]) -> T:
    """The result of `work` on so many characters, here if they are few and in another thread if not."""
    return work() if num_chars <= MAX_INLINE_CHARS else await asyncio.to_thread(work)


class LongWork:
    """A thread for work that no context length bounds. All of it takes turns, so a chat has one rival at most.

    Work counts until its thread is done with it, also if its caller has gone: hanging up makes no room.
    """

    def __init__(self, max_pending_chars: int = MAX_PENDING_CHARS) -> None:
        self._max_pending_chars = max_pending_chars
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="roseinfer-long-work")
        self._lock = threading.Lock()  # guards what follows
        self._num_pending_chars = 0
        self._seconds_per_char = 0.0  # of the last one

    @property
    def num_pending_chars(self) -> int:
        return self._num_pending_chars

    async def run_sized(self, num_chars: int, work: Callable[[], T]) -> T:
        """`run`, but here if it is short."""
        return work() if num_chars <= MAX_INLINE_CHARS else await self.run(num_chars, work)

    async def run_rendering(self, num_chars: int, work: Callable[[], T]) -> T:
        """`run`, but beside it if it is short. Never here: the first rendering of a template compiles it."""
        return await (asyncio.to_thread(work) if num_chars <= MAX_INLINE_CHARS else self.run(num_chars, work))

    async def run(self, num_chars: int, work: Callable[[], T]) -> T:
        """The result of `work`. Raises OverloadedError where so much is pending that this does not fit."""
        self._enter(num_chars)
        future = self._executor.submit(self._run, num_chars, work)
        future.add_done_callback(lambda _: self._leave(num_chars))
        return await asyncio.wrap_future(future)

    def _enter(self, num_chars: int) -> None:
        with self._lock:
            pending = self._num_pending_chars
            if pending and pending + num_chars > self._max_pending_chars:
                seconds = max(1.0, pending * self._seconds_per_char)
                raise OverloadedError(f"texts of {pending} characters are waiting to be tokenised", seconds)
            self._num_pending_chars += num_chars

    def _run(self, num_chars: int, work: Callable[[], T]) -> T:
        started_at = time.perf_counter()
        try:
            return work()
        finally:
            self._seconds_per_char = (time.perf_counter() - started_at) / max(num_chars, 1)

    def _leave(self, num_chars: int) -> None:
        with self._lock:
            self._num_pending_chars -= num_chars
