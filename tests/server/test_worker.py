"""Long work on a thread of its own, in a bounded amount."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from roseinfer.core.errors import OverloadedError, RateLimitedError
from roseinfer.server.worker import MAX_INLINE_CHARS, MAX_SHORT_CHARS, LongWork

LARGE = MAX_INLINE_CHARS + 1


def thread_name() -> str:
    return threading.current_thread().name


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Open in the end, whatever happens: the interpreter waits for threads that wait for it."""
    event = threading.Event()
    yield event
    event.set()


def test_short_work_is_done_here_and_long_work_elsewhere() -> None:
    async def main() -> None:
        work, here = LongWork(), thread_name()
        assert await work.run_sized(MAX_INLINE_CHARS, thread_name) == here
        assert (await work.run_sized(LARGE, thread_name)).startswith("roseinfer-short-work")
        assert (await work.run_sized(MAX_SHORT_CHARS + 1, thread_name)).startswith("roseinfer-long-work")
        assert (await work.run_rendering(10, thread_name)).startswith("roseinfer-brief-work")
        assert (await work.run_rendering(LARGE, thread_name)).startswith("roseinfer-short-work")
        assert await work.run_reply(MAX_INLINE_CHARS, thread_name) == here
        assert (await work.run_reply(LARGE, thread_name)).startswith("roseinfer-short-reply")
        assert (await work.run_reply(MAX_SHORT_CHARS + 1, thread_name)).startswith("roseinfer-long-reply")

    asyncio.run(main())


def test_work_takes_turns_and_too_much_is_refused(gate: threading.Event) -> None:
    async def main() -> None:
        work = LongWork(max_pending_chars=100)
        first = asyncio.create_task(work.run(60, gate.wait))
        second = asyncio.create_task(work.run(40, thread_name))
        await asyncio.sleep(0.01)
        assert work.num_pending_chars == 100
        with pytest.raises(OverloadedError, match="100 characters") as refusal:
            await work.run(1, thread_name)
        assert refusal.value.retry_after == 1.0
        assert not second.done()
        gate.set()
        await asyncio.gather(first, second)
        assert await work.run(100, thread_name)
        assert work.num_pending_chars == 0

    asyncio.run(main())


def test_what_never_fits_is_done_when_nothing_else_is() -> None:
    work = LongWork(max_pending_chars=100)
    assert asyncio.run(work.run(1000, thread_name))


def test_hanging_up_makes_no_room_before_the_thread_is_done(gate: threading.Event) -> None:
    async def main() -> None:
        work = LongWork(max_pending_chars=100)
        running = asyncio.create_task(work.run(60, gate.wait))
        waiting = asyncio.create_task(work.run(40, thread_name))
        await asyncio.sleep(0.01)
        for task in (running, waiting):
            task.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert work.num_pending_chars == 60  # who had not begun is forgotten
        gate.set()
        while work.num_pending_chars:
            await asyncio.sleep(0.001)
        assert await work.run(100, thread_name)

    asyncio.run(main())


def test_a_reply_is_never_refused(gate: threading.Event) -> None:
    async def main() -> None:
        work = LongWork(max_pending_chars=100)
        text = asyncio.create_task(work.run(MAX_SHORT_CHARS + 1, gate.wait))
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError):
            await work.run(1, thread_name)
        assert await asyncio.wait_for(work.run_reply(LARGE, thread_name), 5)
        assert work.num_pending_chars == MAX_SHORT_CHARS + 1
        gate.set()
        await text

    asyncio.run(main())


def test_brief_renderings_take_turns_too(gate: threading.Event) -> None:
    async def main() -> None:
        work, order = LongWork(), list[str]()
        tasks = [asyncio.create_task(work.run_rendering(1, gate.wait))]
        for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b")):
            tasks.append(asyncio.create_task(work.run_rendering(1, lambda name=name: order.append(name), tenant)))
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(*tasks)
        assert order == ["a1", "b1", "a2"]

    asyncio.run(main())


def test_an_error_passes_and_makes_room() -> None:
    def fail() -> None:
        raise ValueError("oh")

    async def main() -> None:
        work = LongWork()
        with pytest.raises(ValueError, match="oh"):
            await work.run(10, fail)
        assert work.num_pending_chars == 0

    asyncio.run(main())


def test_tenants_take_turns(gate: threading.Event) -> None:
    async def main() -> None:
        work, order = LongWork(), list[str]()
        tasks = [asyncio.create_task(work.run(1, gate.wait))]
        for name, tenant in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")):
            tasks.append(asyncio.create_task(work.run(1, lambda name=name: order.append(name), tenant)))
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(*tasks)
        assert order == ["a1", "b1", "c1", "a2", "a3"]

    asyncio.run(main())


def test_no_tenant_holds_more_than_half_where_there_are_others(gate: threading.Event) -> None:
    async def main() -> None:
        work = LongWork(max_pending_chars=100)
        await work.run(1, thread_name, "b")
        tasks = [asyncio.create_task(work.run(count, gate.wait, "a")) for count in (30, 20)]
        await asyncio.sleep(0.01)
        with pytest.raises(RateLimitedError, match="50 characters of yours"):
            await work.run(1, thread_name, "a")
        tasks.append(asyncio.create_task(work.run(50, thread_name, "b")))
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(*tasks)
        assert await work.run(80, thread_name, "a")

    asyncio.run(main())


def test_what_is_rather_short_does_not_wait_for_what_is_long(gate: threading.Event) -> None:
    async def main() -> None:
        work = LongWork()
        texts = [asyncio.create_task(work.run(MAX_SHORT_CHARS + 1, gate.wait)) for _ in range(10)]
        await asyncio.sleep(0.01)
        assert await asyncio.wait_for(work.run(MAX_SHORT_CHARS, thread_name), 5)
        gate.set()
        await asyncio.gather(*texts)

    asyncio.run(main())


@pytest.mark.parametrize("size", [LARGE, MAX_SHORT_CHARS + 1])
def test_texts_and_replies_do_not_wait_for_each_other(gate: threading.Event, size: int) -> None:
    async def main() -> None:
        for one, other in ((LongWork.run, LongWork.run_reply), (LongWork.run_reply, LongWork.run)):
            work = LongWork()
            waiting = asyncio.create_task(one(work, size, gate.wait))
            await asyncio.sleep(0.01)
            assert await asyncio.wait_for(other(work, size, thread_name), 5)
            assert not waiting.done()
            gate.set()
            await waiting
            gate.clear()

    asyncio.run(main())


class Load:
    """Something that work refers to."""

    is_used = False

    def use(self) -> None:
        Load.is_used = True


@pytest.mark.parametrize("run", [LongWork.run, LongWork.run_reply])
def test_work_that_nobody_waits_for_is_forgotten_before_its_turn(
    gate: threading.Event, run: Callable[..., Coroutine[Any, Any, Any]]
) -> None:
    async def main() -> None:
        work, load = LongWork(), Load()
        held = weakref.ref(load)
        running = asyncio.create_task(run(work, LARGE, gate.wait))
        waiting = asyncio.create_task(run(work, LARGE, load.use))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        del waiting, load
        gc.collect()
        assert held() is None
        assert not running.done()
        gate.set()
        await running
        assert await run(work, LARGE, thread_name)
        assert not Load.is_used

    asyncio.run(main())
