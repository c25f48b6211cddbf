"""Work that is short mostly and long sometimes: long work must not hold the event loop, nor the work of others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from roseinfer.core.errors import OverloadedError, RateLimitedError

T = TypeVar("T")

# Tokenising, rendering, or writing logprobs, up to here takes no longer than the event loop may be held.
MAX_INLINE_CHARS = 2048
MAX_PENDING_CHARS = 16 * 2**20  # two bodies of the largest size, or many small ones
# What is up to here long does not wait for what is longer.
MAX_SHORT_CHARS = 64 * 1024


class _Lane:
    """A thread whose work takes turns: one piece of each tenant's, in the order in which it came.

    What is cancelled before its turn is not done, and is forgotten at once, with all that it refers to.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"roseinfer-{name}")
        self._lock = threading.Lock()  # guards what follows
        self._waiting: dict[str, deque[Future[Any]]] = {}  # cancelled ones too
        self._work_of: dict[Future[Any], Callable[[], Any]] = {}

    def submit(self, tenant: str, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            self._waiting.setdefault(tenant, deque()).append(future)
            self._work_of[future] = work
        future.add_done_callback(self._forget)
        self._executor.submit(self._run_next)
        return future

    def _run_next(self) -> None:
        future = self._next()
        if not future.set_running_or_notify_cancel():
            return
        with self._lock:
            work = self._work_of.pop(future)
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _next(self) -> Future[Any]:
        with self._lock:
            tenant = next(iter(self._waiting))
            queue = self._waiting.pop(tenant)
            future = queue.popleft()
            if queue:
                self._waiting[tenant] = queue  # behind the others
        return future

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._work_of.pop(future, None)


class _Lanes:
    """One for what is rather short, one for the rest."""

    def __init__(self, name: str) -> None:
        self._short, self._long = _Lane(f"short-{name}"), _Lane(f"long-{name}")

    def submit(self, size: int, tenant: str, work: Callable[[], T]) -> Future[T]:
        lane = self._short if size <= MAX_SHORT_CHARS else self._long
        return lane.submit(tenant, work)


class LongWork:
    """Threads for work that no context length bounds: one for what is brief, two for texts, and two for replies, so
    that neither waits for the other.

    Work on a text counts until its thread is done with it, also if its caller has gone: hanging up makes no room.
    """

    def __init__(self, max_pending_chars: int = MAX_PENDING_CHARS) -> None:
        self._max_pending_chars = max_pending_chars
        self._brief, self._texts, self._replies = _Lane("brief-work"), _Lanes("work"), _Lanes("reply")
        self._lock = threading.Lock()  # guards what follows
        self._num_pending_chars = 0
        self._num_chars_of: Counter[str] = Counter()  # of every tenant seen, pending
        self._seconds_per_char = 0.0  # of the last one

    @property
    def num_pending_chars(self) -> int:
        return self._num_pending_chars

    async def run_sized(self, num_chars: int, work: Callable[[], T], tenant: str = "") -> T:
        """`run`, but here if it is short."""
        return work() if num_chars <= MAX_INLINE_CHARS else await self.run(num_chars, work, tenant)

    async def run_rendering(self, num_chars: int, work: Callable[[], T], tenant: str = "") -> T:
        """`run`, but beside it if it is short. Never here: the first rendering of a template compiles it."""
        if num_chars <= MAX_INLINE_CHARS:
            return await asyncio.wrap_future(self._brief.submit(tenant, work))
        return await self.run(num_chars, work, tenant)

    async def run_reply(self, size: int, work: Callable[[], T], tenant: str = "") -> T:
        """The result of `work` on `size` logprobs or characters, here if they are few.

        Never refused and never counted: the request was taken, and its answer has been computed. Where this is
        cancelled `work` is not begun any more, but if it has begun it goes on.
        """
        if size <= MAX_INLINE_CHARS:
            return work()
        return await asyncio.wrap_future(self._replies.submit(size, tenant, work))

    async def run(self, num_chars: int, work: Callable[[], T], tenant: str = "") -> T:
        """The result of `work`. Raises OverloadedError where so much is pending that this does not fit, and
        RateLimitedError where there are other tenants and this one would hold more than half of the room.
        """
        with self._lock:
            self._check_share(num_chars, tenant)
            self._enter(num_chars)
            self._num_chars_of[tenant] += num_chars
        future = self._texts.submit(num_chars, tenant, lambda: self._run(num_chars, work))
        future.add_done_callback(lambda _: self._leave(num_chars, tenant))
        return await asyncio.wrap_future(future)

    def _check_share(self, num_chars: int, tenant: str) -> None:
        held = self._num_chars_of[tenant]
        has_others = len(self._num_chars_of.keys() - {tenant}) > 0
        if has_others and held and held + num_chars > self._max_pending_chars // 2:
            message = f"{held} characters of yours are waiting to be processed, half of what this server keeps"
            raise RateLimitedError(message, self._seconds_for(held))

    def _enter(self, num_chars: int) -> None:
        pending = self._num_pending_chars
        if pending and pending + num_chars > self._max_pending_chars:
            raise OverloadedError(f"{pending} characters are waiting to be processed", self._seconds_for(pending))
        self._num_pending_chars += num_chars

    def _seconds_for(self, num_chars: int) -> float:
        return max(1.0, num_chars * self._seconds_per_char)

    def _run(self, num_chars: int, work: Callable[[], T]) -> T:
        started_at = time.perf_counter()
        try:
            return work()
        finally:
            self._seconds_per_char = (time.perf_counter() - started_at) / max(num_chars, 1)

    def _leave(self, num_chars: int, tenant: str) -> None:
        with self._lock:
            self._num_pending_chars -= num_chars
            self._num_chars_of[tenant] -= num_chars
