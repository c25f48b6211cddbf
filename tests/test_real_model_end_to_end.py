"""SmolLM2 behind a live server: what the clients of one model do to each other, which is nothing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from roseinfer.core.messages import EngineStats
from roseinfer.inference_engine import GenerateParams, InferenceEngine
from roseinfer.server.app import create_app
from roseinfer.server.http_server import make_server
from roseinfer.server.runner import bind
from tests.text_samples import real_text

NUM_CLIENTS = 64
TEXT = real_text(20_000)

Body = dict[str, Any]


@pytest.fixture(scope="module")
def engine(smollm2_path: Path) -> Iterator[InferenceEngine]:
    with InferenceEngine(str(smollm2_path)) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: InferenceEngine) -> Iterator[httpx.Client]:
    ready = threading.Event()
    with bind("127.0.0.1", 0) as listener:
        server = make_server(create_app(engine), "error", ready.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert ready.wait(30)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            limits = httpx.Limits(max_connections=NUM_CLIENTS)
            with httpx.Client(base_url=url, timeout=120, limits=limits) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(30)


def ask(client: httpx.Client, body: Body) -> str:
    """The completion, in one piece."""
    reply = client.post("/generate", json=body)
    assert reply.status_code == 200, reply.text
    text: str = reply.json()["text"]
    return text.removeprefix(body["prompt"])


def ask_streaming(client: httpx.Client, body: Body) -> str:
    with client.stream("POST", "/generate", json={**body, "stream": True}) as reply:
        assert reply.status_code == 200
        return "".join(chunk.decode() for chunk in reply.iter_raw())


def make_body(i: int) -> Body:
    """Prompts of 1 to about 120 tokens, many with a common beginning; 1 to 32 new tokens, greedy and sampled."""
    start = 400 * i if i % 3 else 0
    body: Body = {"prompt": TEXT[start : start + 4 + 7 * i], "max_new_tokens": 1 + i % 32, "stop_on_eos": bool(i % 4)}
    if i % 2:
        body |= {
            "do_sample": True,
            "seed": i,
            "temperature": 0.6 + 0.02 * i,
            "top_k": (0, 40)[i % 5 == 0],
            "top_p": 0.95,
        }
    return body


def wait_for(is_reached: Callable[[EngineStats], bool], engine: InferenceEngine, seconds: float = 30) -> EngineStats:
    deadline = time.monotonic() + seconds
    while not is_reached(stats := engine.client.stats()):
        assert time.monotonic() < deadline, stats
        time.sleep(0.001)
    return stats


def assert_all_is_free(engine: InferenceEngine) -> None:
    stats = wait_for(lambda stats: stats.num_running == stats.num_waiting == 0, engine)
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_total_blocks


def test_many_streams_at_once_are_what_each_is_alone(client: httpx.Client, engine: InferenceEngine) -> None:
    bodies = [make_body(i) for i in range(NUM_CLIENTS)]
    before = engine.client.stats().num_steps
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        streamed = list(pool.map(lambda body: ask_streaming(client, body), bodies))
    assert engine.client.stats().num_steps - before < sum(body["max_new_tokens"] for body in bodies) / 4
    assert_all_is_free(engine)
    assert streamed == [ask(client, body) for body in bodies]
    assert len(set(streamed)) > NUM_CLIENTS / 2


def test_clients_that_hang_up_give_back_their_blocks(client: httpx.Client, engine: InferenceEngine) -> None:
    survivor: Body = {"prompt": "Once upon a time", "max_new_tokens": 150, "stop_on_eos": False}
    long: Body = {"max_new_tokens": 1000, "stop_on_eos": False, "stream": True}
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as leaving:
        text = pool.submit(ask, client, survivor)
        streams = []
        for i in range(8):
            body = {**long, "prompt": f"Number {i} is"}
            streams.append(leaving.enter_context(client.stream("POST", "/generate", json=body)).iter_raw())
            assert next(streams[-1])
        assert engine.client.stats().num_running >= 8
        leaving.close()
        num_steps = engine.client.stats().num_steps
        after = wait_for(lambda stats: stats.num_running <= 1, engine)
        # News of a closed socket has to reach the event loop first, while steps go on.
        assert after.num_steps - num_steps < 20
        assert after.num_total_blocks - after.num_free_blocks - after.num_cached_blocks <= (10 + 150) // 16
        survived = text.result()
    assert_all_is_free(engine)
    assert survived == ask(client, survivor)


def test_a_long_prompt_next_to_short_ones(client: httpx.Client, engine: InferenceEngine) -> None:
    """It takes several steps, in which the others go on."""
    long: Body = {"prompt": TEXT[:6800], "max_new_tokens": 12, "stop_on_eos": False}
    assert len(engine.tokenizer.encode_prompt(long["prompt"])) > 1500
    short = [{"prompt": f"{i} plus {i} is", "max_new_tokens": 24, "do_sample": True, "seed": i} for i in range(6)]
    bodies = [*short[:3], long, *short[3:]]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: ask_streaming(client, body), bodies))
    assert together == [ask(client, body) for body in bodies]
    assert_all_is_free(engine)


def test_the_library_from_several_threads(client: httpx.Client, engine: InferenceEngine) -> None:
    """Whole, streamed and in batches at the same time, and the same as over HTTP."""
    bodies = [make_body(i) for i in range(8, 20)]

    def generate(i: int) -> str:
        body = bodies[i]
        if i % 3 == 0:
            return engine.generate(**body)
        if i % 3 == 1:
            return str(body["prompt"]) + "".join(engine.stream_generate(**body))
        options = {name: value for name, value in body.items() if name != "prompt"}
        return engine.generate_batch([body["prompt"]] * 2, GenerateParams(**options))[1]

    with ThreadPoolExecutor(len(bodies)) as pool:
        texts = list(pool.map(generate, range(len(bodies))))
    assert texts == [body["prompt"] + ask(client, body) for body in bodies]
    assert_all_is_free(engine)


def test_threads_kernels_and_cache_do_not_change_the_text(engine: InferenceEngine, smollm2_path: Path) -> None:
    prompts = [TEXT[:300], TEXT[:320], "The"]
    params = GenerateParams(max_new_tokens=12, do_sample=True, seed=1)
    texts = engine.generate_batch(prompts, params)
    with InferenceEngine(str(smollm2_path), threads=1, prefix_cache=False, max_batch_tokens=33) as other:
        assert [other.generate_batch([prompt], params)[0] for prompt in prompts] == texts
