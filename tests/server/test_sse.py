"""Server-sent events: when the headers go out, and how a stream ends."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message

from roseinfer.core.errors import EngineError, InvalidRequestError
from roseinfer.server.sse import DONE, EventStream, error_event, event


async def _events(*items: bytes | Exception) -> AsyncGenerator[bytes, None]:
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


def run(stream: EventStream, *, hangs_up: bool = False) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        if not hangs_up:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "state": {"request_id": "r1"}}
    asyncio.run(stream(scope, receive, send))
    return sent


def test_a_stream_ends_with_done() -> None:
    start, *bodies = run(EventStream(_events(event(b"1"), event(b"2"))))
    assert start["status"] == 200
    assert dict(start["headers"]) == {b"content-type": b"text/event-stream"}
    assert [body["body"] for body in bodies] == [b"data: 1\n\n", b"data: 2\n\n", DONE]
    assert [body["more_body"] for body in bodies] == [True, True, False]


def test_another_end() -> None:
    assert run(EventStream(_events(event(b"1")), end=b""))[-1]["body"] == b""


def test_an_error_before_the_first_event_is_raised() -> None:
    with pytest.raises(InvalidRequestError):
        run(EventStream(_events(InvalidRequestError("no"))))


def test_an_error_later_is_the_last_event() -> None:
    sent = run(EventStream(_events(event(b"1"), EngineError("out of ink"))))
    assert sent[-1]["body"] == error_event(EngineError("out of ink"))
    assert json.loads(sent[-1]["body"][6:])["error"]["message"] == "out of ink"
    assert DONE not in [message.get("body") for message in sent]


def test_a_crash_later_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        sent = run(EventStream(_events(event(b"1"), RuntimeError("a secret"))))
    assert b"a secret" not in sent[-1]["body"]
    assert json.loads(sent[-1]["body"][6:])["error"]["type"] == "server_error"
    assert "a secret" in caplog.text
    assert "r1" in caplog.text


def test_hanging_up_closes_the_events() -> None:
    closed = []

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                await asyncio.sleep(0.001)
                yield event(b"1")
        finally:
            closed.append(True)

    run(EventStream(endless()), hangs_up=True)
    assert closed == [True]
