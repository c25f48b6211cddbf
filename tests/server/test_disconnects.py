"""Callers that hang up, at whatever moment: nothing of them stays behind, and nobody else notices."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from roseinfer.server.app import create_app
from tests.fake_model import RecitingProgram
from tests.server.byte_server import byte_engine
from tests.server.live import LiveServer, serve_app

NUM_RESETS = 200
HELLO = [{"role": "user", "content": "Hello"}]
LONG_TEXT = "one two three " * 25  # tokenised in a thread, because many come at once
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
LONG = {"max_tokens": 100, "ignore_eos": True}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompt": "Hello", "max_new_tokens": 100, "stop_on_eos": False}),
    ("/generate", {"prompt": LONG_TEXT, "max_new_tokens": 1}),
    ("/v1/completions", {"prompt": ["Hello", LONG_TEXT], "n": 2, **LONG}),
    ("/v1/completions", {"prompt": "Hello", "prompt_logprobs": 1, "logprobs": 2, "max_tokens": 2}),
    ("/v1/chat/completions", {"messages": HELLO, "n": 3, **LONG}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG_TEXT}], "stop": ["zz"], "max_tokens": 9}),
    ("/v1/messages", {"model": "bytes", "messages": HELLO, "max_tokens": 100}),
    ("/v1/responses", {"input": "Hello", "max_output_tokens": 100}),
    ("/tokenize", {"prompt": LONG_TEXT * 100}),
    ("/v1/chat/completions/render", {"messages": HELLO}),
]


@pytest.fixture(scope="module")
def busy() -> Iterator[LiveServer]:
    """Four requests run, the others wait."""
    program = RecitingProgram()
    program.step_seconds = 0.001
    with (
        byte_engine(program, max_running=4) as engine,
        serve_app(create_app(engine)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield LiveServer(url, client.base_url.port or 0, engine, program, client)


def any_request(chance: random.Random) -> bytes:
    path, body = chance.choice(REQUESTS)
    body = {**body, "stream": chance.random() < 0.6}
    if path == "/v1/chat/completions" and chance.random() < 0.3:  # no two grammars are alike
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {**SCHEMA, "title": str(chance.random())}},
        }
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def ask_and_reset(port: int, seed: int) -> None:
    """Hangs up within the request, before the reply, within it or behind it."""
    chance = random.Random(seed)
    request = any_request(chance)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        is_whole = chance.random() < 0.85
        connection.sendall(request if is_whole else request[: chance.randrange(len(request))])
        if chance.random() < 0.3 and is_whole:
            connection.recv(chance.choice([1, 200, 4000]))
        time.sleep(chance.random() ** 3 * 0.1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no goodbye


def wait_until_free(server: LiveServer, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    client = server.engine.client
    while (stats := client.stats()).num_running or stats.num_waiting:
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_total_blocks
    client.check_room(client.max_live)  # nobody holds a place any more


def test_resets_at_any_moment_leave_nothing_behind(busy: LiveServer) -> None:
    good = {"prompt": "Hello", "max_new_tokens": 60, "stop_on_eos": False}
    expected = busy.post(**good).json()
    is_over = threading.Event()
    answers: list[object] = []

    def survive() -> None:
        while not is_over.is_set():
            answers.append(httpx.post(f"{busy.url}/generate", json=good, timeout=30).json())

    survivor = threading.Thread(target=survive)
    survivor.start()
    try:
        with ThreadPoolExecutor(16) as pool:
            for reset in [pool.submit(ask_and_reset, busy.port, seed) for seed in range(NUM_RESETS)]:
                reset.result()
    finally:
        is_over.set()
        survivor.join()
    assert answers
    assert all(answer == expected for answer in answers)
    wait_until_free(busy)
    assert busy.post(**good).json() == expected


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_while_waiting_is_forgotten(busy: LiveServer, stream: bool) -> None:
    """Four others run for as long as it takes."""
    pieces = [busy.engine.stream_generate("Hello", max_new_tokens=400, stop_on_eos=False) for _ in range(4)]
    for each in pieces:
        next(each)
    body = json.dumps({"prompt": "Hello", "max_tokens": 5, "stream": stream}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    with socket.create_connection(("127.0.0.1", busy.port)) as connection:
        connection.sendall(head + b"%d\r\n\r\n" % len(body) + body)
        wait_for(busy, num_waiting=1)
    wait_for(busy, num_waiting=0)
    assert busy.engine.client.stats().num_running == 4
    for each in pieces:
        each.close()  # type: ignore[attr-defined]
    wait_until_free(busy)


def wait_for(server: LiveServer, num_waiting: int, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while server.engine.client.stats().num_waiting != num_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)
