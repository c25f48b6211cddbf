"""Bodies of all requests share a bounded room, which is free again whatever becomes of a request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from roseinfer.server.middleware.body_limit import MAX_UNCOUNTED_BYTES, BodyLimitMiddleware

LARGE = MAX_UNCOUNTED_BYTES + 1


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def crash(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("oh")


async def request(app: BodyLimitMiddleware, *messages: Message, gate: asyncio.Event | None = None) -> dict[str, Any]:
    """The head of the reply; with a gate, its last message comes when the gate opens."""
    waiting, sent = list(messages), []

    async def receive() -> Message:
        if gate is not None and len(waiting) == 1:
            await gate.wait()
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "state": {"request_id": "r1"}}
    await app(scope, receive, send)
    return dict(sent[0]) if sent else {}


def part(num_bytes: int, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": b"a" * num_bytes, "more_body": more}


def test_a_large_body_that_does_not_fit_is_told_to_come_back() -> None:
    async def main() -> None:
        app, gate = BodyLimitMiddleware(answer, max_held_bytes=2 * LARGE), asyncio.Event()
        first = asyncio.create_task(request(app, part(LARGE, more=True), part(1), gate=gate))
        await asyncio.sleep(0)
        assert app.budget.num_bytes == LARGE
        refusal = await request(app, part(LARGE, more=True), part(LARGE))
        headers = dict(refusal["headers"])
        assert (refusal["status"], headers[b"retry-after"], headers[b"connection"]) == (503, b"1", b"close")
        assert (await request(app, part(MAX_UNCOUNTED_BYTES)))["status"] == 200
        gate.set()
        assert (await first)["status"] == 200
        assert app.budget.num_bytes == 0
        assert (await request(app, part(2 * LARGE)))["status"] == 200

    asyncio.run(main())


@pytest.mark.parametrize("end", ["hang up", "too large", "too slow", "cancelled", "crash"])
def test_no_end_of_a_request_keeps_room(end: str) -> None:
    async def main() -> None:
        app = BodyLimitMiddleware(crash, max_bytes=3 * LARGE, seconds=0.05)
        last = part(3 * LARGE) if end == "too large" else part(1)
        messages = [part(LARGE, more=True)] + ([] if end == "hang up" else [last])
        gate = asyncio.Event() if end in ("too slow", "cancelled") else None
        task = asyncio.create_task(request(app, *messages, gate=gate))
        await asyncio.sleep(0)
        assert app.budget.num_bytes == (LARGE if gate else 0)
        if end == "cancelled":
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert app.budget.num_bytes == 0

    asyncio.run(main())
