"""Requests that take longer than the server lets them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from roseinfer.server.app import create_app
from roseinfer.server.deadline import Deadline, time_limit
from roseinfer.server.errors import RequestTimeoutError
from roseinfer.server.metrics import refusal_reason
from roseinfer.text.chat_template import ChatTemplate
from tests.fake_model import RecitingProgram, fake_engine
from tests.server.answering import TEMPLATE
from tests.server.live import LiveServer, serve_app

HELLO = [{"role": "user", "content": "Hello"}]
LONG = {"ignore_eos": True, "max_tokens": 300}  # six seconds of the program's
REQUESTS: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "Hello", "max_new_tokens": 300, "stop_on_eos": False},
    "/v1/completions": {"prompt": ["Hello", "Hi"], "n": 2, **LONG},
    "/v1/chat/completions": {"messages": HELLO, **LONG},
    "/v1/messages": {"model": "fake", "messages": HELLO, **LONG},
    "/v1/responses": {"input": "Hello", "ignore_eos": True, "max_output_tokens": 300},
}
SECONDS = 0.3


@contextlib.contextmanager
def timed_server(seconds: float | None, *, max_running: int = 16) -> Iterator[LiveServer]:
    program = RecitingProgram()
    program.step_seconds = 0.02
    with fake_engine(program, max_running=max_running) as engine:
        engine.tokenizer.chat_template = ChatTemplate(TEMPLATE)
        app = create_app(engine)
        app.state.request_timeout = seconds
        with serve_app(app) as url, httpx.Client(base_url=url, timeout=30) as client:
            yield LiveServer(url, client.base_url.port or 0, engine, program, client)


@pytest.fixture(scope="module")
def timed() -> Iterator[LiveServer]:
    with timed_server(SECONDS) as server:
        yield server


def wait_until_idle(server: LiveServer, seconds: float = 2.0) -> None:
    """Every place and every block is free again."""
    deadline = time.monotonic() + seconds
    client = server.engine.client
    while (stats := client.stats()).num_running or stats.num_waiting:
        assert time.monotonic() < deadline, stats
        time.sleep(0.005)
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_total_blocks
    client.check_room(client.max_live)


@pytest.mark.parametrize("path", REQUESTS)
def test_a_request_that_has_sent_nothing_is_refused(timed: LiveServer, path: str) -> None:
    started_at = time.monotonic()
    reply = timed.client.post(path, json=REQUESTS[path])
    assert SECONDS <= time.monotonic() - started_at < SECONDS + 3
    assert reply.status_code == 408
    assert reply.headers["x-should-retry"] == "false"
    error = reply.json()["error"]
    assert "0.3 seconds" in error["message"]
    if path == "/v1/messages":
        assert error["type"] == "timeout_error"
    else:
        assert (error["type"], error["code"]) == ("invalid_request_error", "request_timeout")
    wait_until_idle(timed)


@pytest.mark.parametrize("path", [path for path in REQUESTS if path != "/generate"])
def test_a_stream_that_has_begun_ends_with_an_error(timed: LiveServer, path: str) -> None:
    reply = timed.client.post(path, json={**REQUESTS[path], "stream": True})
    assert reply.status_code == 200
    events = [json.loads(line[6:]) for line in reply.text.split("\n") if line.startswith("data: ")]
    assert "[DONE]" not in reply.text
    assert len(events) > 2
    assert "within 0.3 seconds" in json.dumps(events[-1])
    if path == "/v1/responses":
        assert events[-1]["type"] == "response.failed"
    else:
        assert "error" in events[-1]
    wait_until_idle(timed)


def test_a_stream_of_text_is_cut(timed: LiveServer) -> None:
    with timed.client.stream("POST", "/generate", json={**REQUESTS["/generate"], "stream": True}) as reply:
        assert reply.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            reply.read()
    wait_until_idle(timed)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_waiting_counts(path: str, stream: bool) -> None:
    with timed_server(SECONDS, max_running=1) as server:
        pieces = server.engine.stream_generate("Hello", max_new_tokens=300, stop_on_eos=False)
        next(pieces)  # nobody limits it, and nobody else can run
        reply = server.client.post(path, json={**REQUESTS[path], "stream": stream})
        pieces.close()  # type: ignore[attr-defined]
        assert reply.status_code == 408
        wait_until_idle(server)


@pytest.mark.parametrize("seconds", [None, 0.0, 20.0])
def test_who_is_in_time_notices_nothing(seconds: float | None) -> None:
    with timed_server(seconds) as server:
        assert server.post(prompt="Hello", max_new_tokens=5).status_code == 200
        assert server.events("/v1/completions", prompt="Hello", max_tokens=5)[-1]["choices"][0]["finish_reason"]
        assert server.client.post("/tokenize", json={"prompt": "Hello"}).status_code == 200


def test_a_request_that_timed_out_was_not_refused() -> None:
    assert refusal_reason(408, "request_timeout") is None
    assert refusal_reason(408, None) == "body_too_slow"
    assert refusal_reason(429, "rate_limit_exceeded") == "rate_limited"


def test_a_deadline_that_has_passed_ends_the_next_wait() -> None:
    async def main() -> None:
        deadline = Deadline(asyncio.get_running_loop().time() - 1, 2.5)
        with time_limit({"state": {"deadline": deadline}}):
            done_at_once = True
        assert done_at_once
        with (
            pytest.raises(RequestTimeoutError, match=r"within 2\.5 seconds"),
            time_limit({"state": {"deadline": deadline}}),
        ):
            await asyncio.sleep(10)

    asyncio.run(main())


def test_without_a_deadline_there_is_no_limit() -> None:
    async def main() -> None:
        with time_limit({"state": {}}):
            await asyncio.sleep(0)

    asyncio.run(main())
