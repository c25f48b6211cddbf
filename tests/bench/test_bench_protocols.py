"""What replies say: completions as server-sent events, /generate as text, and what can be wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from roseinfer.bench.http_client import Response
from roseinfer.bench.prompts import Prompt
from roseinfer.bench.protocols import Completions, Generate, Reply, sse_events

PROMPT = Prompt([1, 2, 3], 3)


def event(text: str | None = None, finish_reason: str | None = None, **fields: Any) -> bytes:
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": finish_reason}]
    return b"data: " + json.dumps({"choices": choices, **fields}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}


def response(*pieces: bytes, status: int = 200) -> Response:
    """Piece i comes at time i, and the end with the last one."""
    made = Response()
    made.status = status
    made.pieces = [(float(time), piece) for time, piece in enumerate(pieces)]
    made.completed_at = float(len(pieces) - 1)
    return made


def completion(*pieces: bytes, status: int = 200) -> Reply:
    return Completions("m").read(response(*pieces, status=status), PROMPT, 4)


def test_a_completion() -> None:
    reply = completion(event(""), event(" a"), event(" b"), event("", "length"), event(usage=USAGE), DONE)
    assert reply == Reply(
        end=5.0,
        chunk_times=[1.0, 2.0],
        num_input_tokens=5,
        num_output_tokens=4,
        num_cached_tokens=None,
        counted_by="usage",
    )


def test_events_may_be_cut_anywhere() -> None:
    whole = event("ä b") + b": a comment\r\n\r\nevent: x\r\ndata: 1\r\ndata:2\r\n\r\n" + event(" c\n\n") + DONE
    expected = [data for _, data in sse_events([(0.0, whole)])]
    assert len(expected) == 4
    assert expected[1] == b"1\n2"
    for cut in range(len(whole) + 1):
        events = list(sse_events([(0.0, whole[:cut]), (1.0, whole[cut:])]))
        assert [data for _, data in events] == expected
        assert [time for time, _ in events] == [float(not _is_whole(whole[:cut], n)) for n in range(1, 5)]
    byte_by_byte = [(float(i), whole[i : i + 1]) for i in range(len(whole))]
    assert [data for _, data in sse_events(byte_by_byte)] == expected


def _is_whole(start: bytes, count: int) -> bool:
    return len(list(sse_events([(0.0, start)]))) >= count


def test_cached_tokens_in_both_dialects() -> None:
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 3}}
    assert completion(event("a", "length", usage=usage), DONE).num_cached_tokens == 3
    assert completion(event("a", "length", timings={"cache_n": 2}), DONE).num_cached_tokens == 2
    assert (
        completion(event("a", "length", usage={**USAGE, "prompt_tokens_details": None}), DONE).num_cached_tokens is None
    )


def test_without_usage_chunks_are_counted_and_it_is_said() -> None:
    reply = completion(event("a"), event("b", "length"), DONE)
    assert (reply.num_output_tokens, reply.counted_by, reply.num_input_tokens) == (2, "chunks", 3)


def test_the_end_is_marked_by_either() -> None:
    assert completion(event("a"), DONE).error is None
    assert completion(event("a", "length")).error is None
    assert completion(event("a")).error == "the stream ended before the completion did"


@pytest.mark.parametrize(
    ("pieces", "status", "said"),
    [
        ([event("a"), b'data: {"error": {"message": "engine gone", "code": 500}}\n\n'], 200, "engine gone"),
        ([b'data: {"error": "plain"}\n\n', DONE], 200, "plain"),
        ([b"data: {]\n\n", DONE], 200, "no stream of completions"),
        ([b"data: 7\n\n", DONE], 200, "no stream of completions"),
        ([b'{"error": {"message": "no\\nslot"}}'], 503, "HTTP 503: no slot"),
        ([b'{"detail": "Not here"}'], 404, "HTTP 404: Not here"),
        ([b"<html>" + b"x" * 999], 502, "HTTP 502: <html>x"),
    ],
)
def test_failures_are_told(pieces: list[bytes], status: int, said: str) -> None:
    error = completion(*pieces, status=status).error
    assert error is not None
    assert said in error
    assert len(error) < 300


def test_what_a_completion_asks_for() -> None:
    body = Completions("m").body(PROMPT, 9)
    assert body == {
        "model": "m",
        "prompt": [1, 2, 3],
        "max_tokens": 9,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "model" not in Completions().body(PROMPT, 9)


def test_generate() -> None:
    body = Generate().body(Prompt("a b", 2), 9)
    assert body == {"prompt": "a b", "max_new_tokens": 9, "do_sample": False, "stop_on_eos": False, "stream": True}
    reply = Generate().read(response(b" x", b" y"), Prompt("a b", 2), 9)
    assert reply == Reply(
        end=1.0, chunk_times=[0.0, 1.0], num_input_tokens=2, num_output_tokens=9, counted_by="max_new_tokens"
    )


def test_generate_refused() -> None:
    refusal = b'{"error": {"message": "the prompt has 9 tokens"}}'
    assert Generate().read(response(refusal, status=400), PROMPT, 9).error == "HTTP 400: the prompt has 9 tokens"
