"""A live server on a free port, with a model of bytes behind it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import httpx

from roseinfer.inference_engine import GenerateParams, InferenceEngine
from roseinfer.server.app import create_app
from roseinfer.server.runner import bind, make_server
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


StartServer = Callable[..., LiveServer]


@contextlib.contextmanager
def serving(
    *,
    api_keys: Sequence[str] = (),
    defaults: GenerateParams | None = None,
    max_running: int = 64,
    max_queue: int = 256,
) -> Iterator[LiveServer]:
    program = RecitingProgram()
    ready = threading.Event()
    with fake_engine(program, max_running=max_running, max_queue=max_queue) as engine, bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = make_server(create_app(engine, defaults=defaults, api_keys=api_keys), "error", ready.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        assert ready.wait(30)
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=30) as client:
            try:
                yield LiveServer(url, port, engine, program, client)
            finally:
                server.should_exit = True
                thread.join(30)


def assert_error(reply: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    body = reply.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    assert body["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert (body["error"]["param"], body["error"]["code"]) == (param, code)
    message: str = body["error"]["message"]
    assert message
    return message
