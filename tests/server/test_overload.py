"""Servers that are asked for more than they can do: refusals come before any work, and cost nobody anything."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from roseinfer.core.errors import OverloadedError, RateLimitedError
from roseinfer.core.messages import AddRequest
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.server.worker import LongWork
from tests.fake_model import RecitingProgram
from tests.server.answering import TEMPLATE
from tests.server.live import LiveServer, StartServer, assert_error, serving

HELLO = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "Hello"},
    "/v1/completions": {"prompt": ["Hello", "Hi", "You"], "n": 2, "max_tokens": 1},
    "/v1/chat/completions": {"messages": HELLO, "n": 3, "max_tokens": 1},
    "/v1/messages": {"model": "fake", "messages": HELLO, "max_tokens": 1},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 1},
}
NUM_SEQUENCES = dict(zip(BODIES, (1, 6, 3, 1, 1), strict=True))
BEARER = {"Authorization": "Bearer one"}


@pytest.fixture(scope="module")
def guarded() -> Iterator[LiveServer]:
    with serving(chat_template=TEMPLATE, api_keys=["one", "two"]) as server:
        yield server


@pytest.mark.parametrize("path", BODIES)
def test_room_is_asked_for_before_any_work(guarded: LiveServer, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    asked: list[tuple[int, str]] = []

    def refuse(num_requests: int = 1, tenant: str = "") -> None:
        asked.append((num_requests, tenant))
        raise OverloadedError("full", 7)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(guarded.engine.client, "check_room", refuse)
    monkeypatch.setattr(guarded.engine.tokenizer, "encode", fail)
    monkeypatch.setattr(guarded.engine.tokenizer, "encode_prompt", fail)
    monkeypatch.setattr(guarded.engine.tokenizer.chat_template, "render", fail)
    reply = guarded.client.post(path, json=BODIES[path], headers=BEARER)
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "7"
    (num_requests, tenant), *again = asked
    assert (num_requests, again) == (NUM_SEQUENCES[path], [])
    assert tenant


@pytest.mark.parametrize("path", BODIES)
def test_a_request_belongs_to_the_key_it_came_with(
    guarded: LiveServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    make, made = guarded.engine.client.make_request, []

    def make_request(ids: list[int], params: SamplingParams, **options: Any) -> AddRequest:
        made.append(options["tenant"])
        return make(ids, params, **options)

    monkeypatch.setattr(guarded.engine.client, "make_request", make_request)
    for key in ("one", "two", "one"):
        reply = guarded.client.post(path, json=BODIES[path], headers={"Authorization": f"Bearer {key}"})
        assert reply.status_code == 200
    first, second, third = made[0], made[len(made) // 3], made[-1]
    assert first == third != second
    assert all(made)


def test_a_tenant_that_has_its_share_is_told_so(guarded: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(num_requests: int = 1, tenant: str = "") -> None:
        raise RateLimitedError("yours", 3)

    monkeypatch.setattr(guarded.engine.client, "check_room", refuse)
    reply = guarded.client.post("/v1/completions", json=BODIES["/v1/completions"], headers=BEARER)
    assert assert_error(reply, 429, code="rate_limit_exceeded") == "yours"
    assert reply.headers["retry-after"] == "3"


@pytest.mark.parametrize(("prompt", "n", "param"), [(["a"] * 9, 1, "prompt"), ("a", 9, "n")])
def test_more_than_ever_fits_is_no_overload(start_server: StartServer, prompt: object, n: int, param: str) -> None:
    server = start_server(max_running=4, max_queue=4)
    assert_error(server.complete(prompt=prompt, n=n, max_tokens=1), 400, param=param)


# -- texts --------------------------------------------------------------------------------------------------


@pytest.fixture
def chatty(start_server: StartServer) -> LiveServer:
    return start_server(chat_template=TEMPLATE)


LARGE = "x" * 5000
LONG_BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/tokenize", {"prompt": LARGE}),
    ("/tokenize", {"messages": [{"role": "user", "content": LARGE}]}),
    ("/detokenize", {"tokens": [65] * 5000}),
    ("/v1/chat/completions/render", {"messages": [{"role": "user", "content": LARGE[:400]}], "user": LARGE}),
    (
        "/v1/messages/count_tokens",
        {"model": "fake", "messages": [{"role": "user", "content": LARGE[:400]}], "x": LARGE},
    ),
]


@pytest.mark.parametrize(("path", "body"), LONG_BODIES)
def test_too_many_texts_at_once_are_refused(
    chatty: LiveServer, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    assert chatty.client.post(path, json=body).status_code == 200

    def is_full(self: LongWork, num_chars: int) -> None:
        raise OverloadedError("texts are waiting", 4)

    monkeypatch.setattr(LongWork, "_enter", is_full)
    reply = chatty.client.post(path, json=body)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "4")
    small = {"messages": HELLO} if "messages" in body else {name: value[:5] for name, value in body.items()}
    assert chatty.client.post(path, json={"model": "fake", **small}).status_code == 200


def test_large_texts_do_not_hold_up_a_chat(chatty: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, is_free = chatty.engine.tokenizer.encode, threading.Event()

    def slow_encode(text: str, **options: Any) -> list[int]:
        if len(text) == len(LARGE):
            is_free.wait(10)
        return encode(text, **options)

    monkeypatch.setattr(chatty.engine.tokenizer, "encode", slow_encode)

    async def main() -> None:
        async with httpx.AsyncClient(base_url=chatty.url, timeout=30) as client:
            texts = [asyncio.create_task(client.post("/tokenize", json={"prompt": LARGE})) for _ in range(20)]
            await asyncio.sleep(0.2)
            started_at = time.monotonic()
            chat = await client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1})
            assert time.monotonic() - started_at < 2
            assert chat.status_code == 200
            assert not any(text.done() for text in texts)
            is_free.set()
            assert {reply.status_code for reply in await asyncio.gather(*texts)} == {200}

    asyncio.run(main())


def test_a_full_queue_refuses_quickly() -> None:
    """Ten times as many as fit, all at once."""
    program = RecitingProgram()
    program.step_seconds = 0.01
    body = {"prompt": "Hello", "max_new_tokens": 30, "stop_on_eos": False}
    with serving(max_running=2, max_queue=6, program=program) as server:

        async def ask(client: httpx.AsyncClient) -> httpx.Response:
            return await client.post("/generate", json=body)

        async def main() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=server.url, timeout=30, limits=httpx.Limits()) as client:
                return await asyncio.gather(*[ask(client) for _ in range(80)])

        replies = asyncio.run(main())
        served = [reply for reply in replies if reply.status_code == 200]
        refused = [reply for reply in replies if reply.status_code == 503]
        assert len(served) + len(refused) == 80
        assert len(served) >= 8
        assert len({reply.text for reply in served}) == 1
        assert all(1 <= int(reply.headers["retry-after"]) <= 60 for reply in refused)
        server.engine.client.check_room(8)  # all places are free again
