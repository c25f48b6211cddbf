"""A live server on a free port, with a model of bytes behind it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from roseinfer.inference_engine import GenerateParams, InferenceEngine
from roseinfer.server.app import create_app
from roseinfer.server.http_server import make_server
from roseinfer.server.runner import bind
from roseinfer.text.chat_template import ChatTemplate
from tests.fake_model import RecitingProgram, fake_engine


@dataclass
class LiveServer:
    url: str
    port: int
    engine: InferenceEngine
    program: RecitingProgram
    client: httpx.Client

    def post(self, **body: object) -> httpx.Response:
        return self.client.post("/generate", json=body)

    def complete(self, **body: object) -> httpx.Response:
        return self.client.post("/v1/completions", json=body)

    def chat(self, **body: object) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=body)

    def events(self, path: str, **body: object) -> list[Any]:
        """The data of a stream's events, read as JSON, and its end checked."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as reply:
            text = reply.read().decode()
            assert reply.status_code == 200, text
        assert reply.headers["content-type"] == "text/event-stream"
        *events, end = [part.removeprefix("data: ") for part in text.split("\n\n")[:-1]]
        assert end == "[DONE]"
        return [json.loads(each) for each in events]


StartServer = Callable[..., LiveServer]


@contextlib.contextmanager
def serving(
    *,
    api_keys: Sequence[str] = (),
    defaults: GenerateParams | None = None,
    max_running: int = 64,
    max_queue: int = 256,
    program: RecitingProgram | None = None,
    chat_template: str | None = None,
) -> Iterator[LiveServer]:
    program = program or RecitingProgram()
    with fake_engine(program, max_running=max_running, max_queue=max_queue) as engine:
        if chat_template is not None:
            engine.tokenizer.chat_template = ChatTemplate(chat_template)
        with (
            serve(engine, defaults=defaults, api_keys=api_keys) as url,
            httpx.Client(base_url=url, timeout=30) as client,
        ):
            yield LiveServer(url, client.base_url.port or 0, engine, program, client)


@contextlib.contextmanager
def serve(engine: InferenceEngine, **settings: Any) -> Iterator[str]:
    """Yields the server's address; the engine is the caller's to close. `settings` are those of `create_app`."""
    with serve_app(create_app(engine, **settings)) as url:
        yield url


@contextlib.contextmanager
def serve_app(app: FastAPI) -> Iterator[str]:
    ready = threading.Event()
    with bind("127.0.0.1", 0) as listener:
        server = make_server(app, "error", ready.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert ready.wait(30)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def assert_error(reply: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    assert ("x-should-retry" in reply.headers) == (status < 500 and status not in (408, 429))
    body = reply.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    assert body["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert (body["error"]["param"], body["error"]["code"]) == (param, code)
    message: str = body["error"]["message"]
    assert message
    return message
