"""Thousands of malformed bodies over HTTP: see `tests/chaos/malformed.py`."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from roseinfer.inference_engine import InferenceEngine
from tests.chaos.malformed import check, send_all
from tests.chaos.malformed_bodies import (
    ROUTES,
    STRANGE,
    Malformed,
    hostile_grammars,
    many_bodies,
    quick_bodies,
    strange_texts,
    written,
)
from tests.server.byte_server import TOOL_TEMPLATE, byte_engine
from tests.server.live import serve

NUM_SAMPLED = 1500  # of those that differ in a value
NUM_GRAMMARS = 60


@pytest.fixture(scope="module")
def engine() -> Iterator[InferenceEngine]:
    with byte_engine(template=TOOL_TEMPLATE) as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine: InferenceEngine) -> Iterator[str]:
    with serve(engine) as url:
        yield url


def test_there_are_thousands_and_none_twice() -> None:
    bodies = [*quick_bodies(), *many_bodies(), *hostile_grammars()]
    assert len(bodies) > 15_000
    assert len({(each.path, each.label) for each in bodies}) > 0.99 * len(bodies)
    assert {each.path for each in bodies} == set(ROUTES)


def test_each_gets_its_error_and_nothing_is_left_behind(engine: InferenceEngine, url: str) -> None:
    exchanges, problems = check(url, NUM_SAMPLED, num_grammars=NUM_GRAMMARS)
    assert problems == []
    assert len(exchanges) >= 2000
    statuses = Counter(exchange.status for exchange in exchanges)
    assert set(statuses) <= {200, 400, 404, 413}
    assert statuses[400] > 1000
    stats = engine.client.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_total_blocks


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("kind", ["sound", "small"])
def test_what_they_are_made_of_is_sound(url: str, path: str, kind: str) -> None:
    """Or nothing would be known of the value that was changed."""
    (exchange,) = send_all(url, [_plain(path, getattr(ROUTES[path], kind))])
    assert (exchange.status, exchange.problem) == (200, "")


@pytest.mark.parametrize("name", STRANGE)
def test_strange_texts_are_answered(url: str, name: str) -> None:
    """They are no error: any text may be continued."""
    bodies = [
        _plain(path, {**ROUTES[path].small, "prompt": STRANGE[name][:99]}) for path in ("/generate", "/v1/completions")
    ]
    assert [exchange.status for exchange in send_all(url, bodies)] == [200, 200]
    assert any(name in body.label for body in strange_texts())


def test_a_nul_ends_no_text(url: str) -> None:
    assert _post(url, "/tokenize", {"prompt": "a\0b", "add_special_tokens": False})["tokens"] == [97, 0, 98]
    assert _post(url, "/detokenize", {"tokens": [97, 0, 98]})["prompt"] == "a\0b"
    answer = {"prompt": "Hi", "max_tokens": 9, "temperature": 0, "echo": True}
    whole = _post(url, "/v1/completions", answer)["choices"][0]["text"]
    assert _post(url, "/v1/completions", {**answer, "stop": whole[4] + "\0"})["choices"][0]["text"] == whole


def test_a_checker_that_sees() -> None:
    """A server that says yes to all, with nothing in it, has a problem with each."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status = 500 if self.path == "/v1/messages" else 400 if self.path == "/tokenize" else 200
            self.send_response(status)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        bodies = [_plain(path, {})._replace(is_refused=True) for path in ("/v1/messages", "/tokenize", "/generate")]
        exchanges = send_all(f"http://127.0.0.1:{server.server_port}", bodies)
        server.shutdown()
        thread.join()
    for exchange, problem in zip(exchanges, ("status 500", "no error of ours", "was taken"), strict=True):
        assert problem in exchange.problem
        assert "no request id" in exchange.problem


def _plain(path: str, body: object) -> Malformed:
    return Malformed("plain", path, written(body, ""), {"Content-Type": "application/json"}, None)


def _post(url: str, path: str, body: object) -> dict:  # type: ignore[type-arg]
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    reply: dict = json.loads(connection.getresponse().read())  # type: ignore[type-arg]
    connection.close()
    return reply
