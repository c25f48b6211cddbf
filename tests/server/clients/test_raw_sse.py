"""A reader of lines that knows no more of a stream than its framing, as many clients are."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.clients.conftest import RealServer

CHAT = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, "n": 2, "seed": 1}


def read_lines(url: str, body: dict[str, Any]) -> Iterator[str]:
    with httpx.stream("POST", url, json={**body, "stream": True}, timeout=60) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/event-stream"
        assert reply.headers["x-request-id"]
        yield from reply.iter_lines()


def read_chunks(url: str, body: dict[str, Any]) -> list[Any]:
    """An event is one line and an empty one; the last one is `[DONE]`."""
    lines = list(read_lines(url, body))
    assert not any(lines[1::2])
    *events, done = lines[::2]
    assert done == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_the_chunks_of_a_chat(real_server: RealServer) -> None:
    chunks = read_chunks(f"{real_server.url}/chat/completions", {**CHAT, "stream_options": {"include_usage": True}})
    for name in ("id", "created", "model", "system_fingerprint"):
        assert len({chunk[name] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["usage"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1]["choices"] == []
    by_choice = defaultdict(list)
    for chunk in chunks[:-1]:
        [choice] = chunk["choices"]
        by_choice[choice["index"]].append(choice)
    assert sorted(by_choice) == [0, 1]
    for first, *middle, last in by_choice.values():
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert (last["delta"], last["finish_reason"]) == ({}, "length")
        assert all(list(each["delta"]) == ["content"] and each["finish_reason"] is None for each in middle)


@pytest.mark.parametrize("options", [None, {"include_usage": False}])
def test_no_usage_unless_asked_for(real_server: RealServer, options: dict[str, bool] | None) -> None:
    body = {"prompt": "One, two,", "max_tokens": 4, "stream_options": options}
    chunks = read_chunks(f"{real_server.url}/completions", body)
    assert all(chunk["choices"] and not chunk.get("usage") for chunk in chunks)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
