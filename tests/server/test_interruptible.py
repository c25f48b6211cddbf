from __future__ import annotations

import asyncio
import sys

import pytest

from roseinfer.server.interruptible import Interruptible


class StopError(Exception):
    pass


async def wait_and_be_interrupted(seconds: float = 0.01) -> None:
    with Interruptible(StopError()) as block:
        asyncio.get_running_loop().call_later(seconds, block.interrupt)
        await asyncio.sleep(10)


def test_an_interrupted_block_raises_its_error_where_it_waits() -> None:
    async def main() -> str:
        with pytest.raises(StopError):
            await wait_and_be_interrupted()
        await asyncio.sleep(0)  # the task itself goes on
        return "done"

    assert asyncio.run(asyncio.wait_for(main(), 5)) == "done"


def test_once_is_enough() -> None:
    async def interrupt_twice() -> None:
        with Interruptible(StopError()) as block:
            block.interrupt()
            block.interrupt()
            await asyncio.sleep(10)

    async def main() -> None:
        with pytest.raises(StopError):
            await interrupt_twice()
        await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), 5))


def test_behind_the_block_nothing_is_interrupted() -> None:
    async def main() -> str:
        with Interruptible(StopError()) as block:
            asyncio.get_running_loop().call_later(0.001, block.interrupt)
        await asyncio.sleep(0.02)
        return "done"

    assert asyncio.run(main()) == "done"


def test_other_errors_pass() -> None:
    async def main() -> None:
        with Interruptible(StopError()):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(main())


def test_a_cancelled_task_is_cancelled() -> None:
    async def main() -> None:
        task = asyncio.create_task(wait_and_be_interrupted(10))
        await asyncio.sleep(0.001)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is of Python 3.11")
def test_a_timeout_around_it_is_not_confused() -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with asyncio.timeout(10):
            with pytest.raises(StopError):
                await wait_and_be_interrupted()
        assert task.cancelling() == 0

    asyncio.run(main())
