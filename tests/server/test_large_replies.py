"""Replies with so many logprobs that they are written by another thread say what small ones do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from roseinfer.server import whole, worker
from roseinfer.server.openai import logprobs
from roseinfer.text.output_text import TokenInfo
from tests.server.live import LiveServer, serving

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "Hi there"}]
CHAT = "/v1/chat/completions"
PLAIN: dict[str, Any] = {"model": "fake", "prompt": "Hi there"}
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": MESSAGES, "n": 3, "max_tokens": 9, "logprobs": True, "top_logprobs": 4}),
    (CHAT, {"messages": MESSAGES, "max_tokens": 3, "prompt_logprobs": 2, "return_token_ids": True}),
    (CHAT, {"messages": MESSAGES, "n": 2, "max_tokens": 9, "logprobs": True, "top_logprobs": 4, "stream": True}),
    ("/v1/completions", {**PLAIN, "n": 2, "max_tokens": 5, "logprobs": 3, "echo": True, "prompt_logprobs": 1}),
    ("/v1/completions", {**PLAIN, "max_tokens": 5, "logprobs": 0}),
    ("/v1/completions", {**PLAIN, "n": 2, "max_tokens": 5, "logprobs": 3, "echo": True, "stream": True}),
]
CHANGING = ("id", "created", "timings")


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with serving(chat_template=TEMPLATE) as live:
        yield live


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The threads on which likely tokens were written down."""
    names: set[str] = set()

    def spy(name: str) -> None:
        write = getattr(logprobs, name)

        def noting(*args: Any) -> Any:
            names.add(threading.current_thread().name)
            return write(*args)

        monkeypatch.setattr(logprobs, name, noting)

    for name in ("_entry", "_finite"):
        spy(name)
    return names


def told(server: LiveServer, path: str, body: dict[str, Any]) -> list[Any]:
    """Whole or in parts, without what differs from one time to the next."""
    if body.get("stream"):
        return [told_in_parts(server.events(path, **body), index) for index in range(body["n"])]
    reply = server.client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert int(reply.headers["content-length"]) == len(reply.content)
    replies = [json.loads(reply.content)]
    plain = [{name: value for name, value in each.items() if name not in CHANGING} for each in replies]
    for each in plain:
        if each.get("usage"):
            each["usage"].pop("prompt_tokens_details")
    return plain


def told_in_parts(chunks: list[Any], index: int) -> dict[str, list[Any]]:
    """Of one choice, however it was cut: the text, and each list in the logprobs."""
    joined: dict[str, list[Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index):
        text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
        for name, items in {"text": list(text), **(choice["logprobs"] or {})}.items():
            joined.setdefault(name, []).extend(items or [])
    assert all(len(joined[name]) > 8 for name in joined if name != "refusal")
    return joined


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_large_reply_says_what_a_small_one_does(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, writers: set[str], path: str, body: dict[str, Any]
) -> None:
    body = {"temperature": 0, "ignore_eos": True, **body}
    expected = told(server, path, body)
    assert writers
    assert not any(name.startswith("roseinfer-short") for name in writers)
    writers.clear()
    for module in (whole, worker):
        monkeypatch.setattr(module, "MAX_INLINE_CHARS", 0)
    assert told(server, path, body) == expected
    assert {name.rpartition("_")[0] for name in writers} == {"roseinfer-short-reply"}


def test_a_reply_above_the_bound_is_written_by_a_thread(server: LiveServer, writers: set[str]) -> None:
    body = {"messages": MESSAGES, "n": 16, "max_tokens": 40, "logprobs": True, "top_logprobs": 4, "ignore_eos": True}
    (reply,) = told(server, CHAT, body)
    places = [place for choice in reply["choices"] for place in choice["logprobs"]["content"]]
    assert len(places) == 16 * 40
    assert all(len(place["top_logprobs"]) == 4 for place in places)
    assert {name.rpartition("_")[0] for name in writers} == {"roseinfer-short-reply"}


def test_an_entry_is_told_as_it_was_found() -> None:
    info = TokenInfo(token_id=1, token="é", token_bytes="é".encode(), logprob=-1e30, top=[], text_offset=0)
    entry = {"token": "é", "logprob": logprobs.LOWEST, "bytes": [195, 169], "top_logprobs": []}
    assert logprobs.chat_entry(info) == entry
