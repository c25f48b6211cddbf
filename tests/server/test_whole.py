"""Replies that are sent when they are whole: who hangs up gets none, and what was sent is not kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from roseinfer.server.middleware.access_log import CLIENT_CLOSED_REQUEST
from roseinfer.server.whole import JSONPieces, json_reply, sized_reply
from roseinfer.server.worker import MAX_INLINE_CHARS, LongWork

LARGE = MAX_INLINE_CHARS + 1


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Open in the end, whatever happens: the interpreter waits for threads that wait for it."""
    event = threading.Event()
    yield event
    event.set()


class Caller:
    """Sends nothing more, and may hang up."""

    def __init__(self) -> None:
        self.long_work = LongWork()
        self.has_gone = asyncio.Event()
        app = SimpleNamespace(state=SimpleNamespace(long_work=self.long_work))
        self.request = Request({"type": "http", "app": app, "state": {}}, self._receive)

    async def _receive(self) -> Message:
        await self.has_gone.wait()
        return {"type": "http.disconnect"}


@pytest.mark.parametrize("size", [0, LARGE])
def test_a_reply_is_made_once_and_sent_as_json(size: int) -> None:
    async def main() -> list[Message]:
        request, sent = Caller().request, list[Message]()

        async def send(message: Message) -> None:
            sent.append(message)

        reply = await json_reply(sized_reply(request, size, lambda: {"items": iter(range(3))}))
        await reply(request.scope, request.receive, send)
        return sent

    start, *bodies = asyncio.run(main())
    assert start["status"] == 200
    assert b"".join(body["body"] for body in bodies) == b'{"items":[0,1,2]}'


def test_a_reply_that_waits_for_its_turn_is_not_made_for_who_hangs_up(gate: threading.Event) -> None:
    async def main() -> None:
        caller, made = Caller(), list[str]()
        running = asyncio.create_task(caller.long_work.run_reply(LARGE, gate.wait))
        replying = asyncio.create_task(json_reply(sized_reply(caller.request, LARGE, lambda: made.append("reply"))))
        await asyncio.sleep(0.01)
        caller.has_gone.set()
        reply = await asyncio.wait_for(replying, 5)
        assert reply.status_code == CLIENT_CLOSED_REQUEST
        gate.set()
        await running
        assert await caller.long_work.run_reply(LARGE, lambda: "next") == "next"
        assert not made

    asyncio.run(main())


def test_who_hangs_up_does_not_wait_for_a_reply_that_is_being_made(gate: threading.Event) -> None:
    async def main() -> None:
        caller = Caller()
        replying = asyncio.create_task(json_reply(sized_reply(caller.request, LARGE, gate.wait)))
        await asyncio.sleep(0.01)
        caller.has_gone.set()
        assert (await asyncio.wait_for(replying, 5)).status_code == CLIENT_CLOSED_REQUEST

    asyncio.run(main())


def test_an_error_passes() -> None:
    async def main() -> None:
        await json_reply(sized_reply(Caller().request, LARGE, lambda: 1 // 0))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


class Piece(bytes):
    """Says when it is dropped."""

    num_left = 0

    def __init__(self, content: bytes) -> None:
        Piece.num_left += 1

    def __del__(self) -> None:
        Piece.num_left -= 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pieces_are_dropped_as_they_are_sent(count: int) -> None:
    reply, sent, left = JSONPieces(Piece(b"%d" % index) for index in range(count)), list[Message](), list[int]()

    async def send(message: Message) -> None:
        await asyncio.sleep(0)
        left.append(Piece.num_left)
        if "body" in message:
            message["body"] = bytes(bytearray(message["body"]))
        sent.append(message)

    unused: Any = {}
    asyncio.run(reply(unused, unused, send))
    assert left == [count, *range(count, 0, -1)]
    assert Piece.num_left == 0
    start, *bodies = sent
    assert dict(start["headers"])[b"content-length"] == b"%d" % count
    assert [body["body"] for body in bodies] == [b"%d" % index for index in range(count)]
    assert [body["more_body"] for body in bodies] == [True] * (count - 1) + [False]
