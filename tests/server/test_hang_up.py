"""Work whose caller hangs up."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from roseinfer.server.disconnect import ClientGoneError, run_while_connected


async def never() -> Message:
    return await asyncio.get_running_loop().create_future()


def test_work_gives_its_result() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert asyncio.run(run_while_connected(never, work())) == 7


def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        asyncio.run(run_while_connected(never, work()))


def test_who_waited_for_the_caller_to_read_does_nothing_more_when_it_hangs_up() -> None:
    """The end of a connection tells first that it is gone, and then lets go whoever waits to write to it."""
    gone, may_write = asyncio.Event(), asyncio.Event()
    went_on = False

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def work() -> None:
        nonlocal went_on
        await may_write.wait()
        went_on = True

    async def hang_up() -> None:
        running = asyncio.create_task(run_while_connected(receive, work()))
        await asyncio.sleep(0.01)
        gone.set()
        may_write.set()
        with pytest.raises(ClientGoneError):
            await running

    asyncio.run(hang_up())
    assert not went_on
