"""The two ways to ask a server: OpenAI's `/v1/completions` and our `/generate`. Bodies before a run, replies after."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from roseinfer.bench.http_client import Response, decode_json
from roseinfer.bench.prompts import Prompt

MAX_MESSAGE_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one request brought; times are of `time.perf_counter`. None stands for what nobody told."""

    end: float
    chunk_times: list[float]  # of the chunks that brought text
    num_input_tokens: int | None = None
    num_output_tokens: int = 0
    num_cached_tokens: int | None = None  # prompt tokens that came from a prefix cache
    counted_by: str = ""  # who says how many output tokens there are
    error: str | None = None


class ApiProtocol(Protocol):
    path: str

    def body(self, prompt: Prompt, output_len: int) -> dict[str, Any]:
        """Asks for `output_len` tokens: greedy, EOS ignored, streamed."""

    def read(self, response: Response, prompt: Prompt, output_len: int) -> Reply:
        """What a complete response says."""


class Completions:
    """OpenAI's completions with what vLLM and llama.cpp add to them: token ids as prompts and `ignore_eos`."""

    path = "/v1/completions"

    def __init__(self, model: str | None = None) -> None:
        self.model = model

    def body(self, prompt: Prompt, output_len: int) -> dict[str, Any]:
        return {
            **({"model": self.model} if self.model else {}),
            "prompt": prompt.content,
            "max_tokens": output_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def read(self, response: Response, prompt: Prompt, output_len: int) -> Reply:
        end = _end_of(response)
        if response.status != 200:
            return Reply(end=end, chunk_times=[], error=_refusal(response))
        try:
            return _read_events(response.pieces, end, prompt)
        except (ValueError, TypeError, AttributeError) as error:
            return Reply(end=end, chunk_times=[], error=f"the reply is no stream of completions: {error}")


class Generate:
    """roseinfer's own `/generate`: the body is the text. It tells no counts; with EOS ignored all tokens come."""

    path = "/generate"

    def body(self, prompt: Prompt, output_len: int) -> dict[str, Any]:
        return {
            "prompt": prompt.content,
            "max_new_tokens": output_len,
            "do_sample": False,
            "stop_on_eos": False,
            "stream": True,
        }

    def read(self, response: Response, prompt: Prompt, output_len: int) -> Reply:
        end = _end_of(response)
        if response.status != 200:
            return Reply(end=end, chunk_times=[], error=_refusal(response))
        return Reply(
            end=end,
            chunk_times=[time for time, _ in response.pieces],
            num_input_tokens=prompt.num_tokens,
            num_output_tokens=output_len,
            counted_by="max_new_tokens",
        )


def sse_events(pieces: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """(time, data) of each server-sent event, however the stream was cut; the time is that of its last piece."""
    rest, data = b"", []
    for time, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield time, b"\n".join(data)
                data = []


def _read_events(pieces: Iterable[tuple[float, bytes]], end: float, prompt: Prompt) -> Reply:
    received = list(sse_events(pieces))
    events = [(time, json.loads(data)) for time, data in received if data != b"[DONE]"]
    choices = [(time, choice) for time, event in events for choice in event.get("choices") or ()]
    chunk_times = [time for time, choice in choices if choice.get("text")]
    usage, timings = _last(events, "usage"), _last(events, "timings")
    is_whole = len(events) < len(received) or any(choice.get("finish_reason") for _, choice in choices)
    return Reply(
        end=end,
        chunk_times=chunk_times,
        num_input_tokens=usage.get("prompt_tokens", prompt.num_tokens),
        num_output_tokens=usage.get("completion_tokens", len(chunk_times)),
        num_cached_tokens=_num_cached(usage, timings),
        counted_by="usage" if "completion_tokens" in usage else "chunks",
        error=next(
            (_message(event) for _, event in events if "error" in event),
            None if is_whole else "the stream ended before the completion did",
        ),
    )


def _last(events: Iterable[tuple[float, dict[str, Any]]], name: str) -> dict[str, Any]:
    """The last event's `name` that is not null."""
    found = [event[name] for _, event in events if event.get(name)]
    return found[-1] if found else {}


def _num_cached(usage: Mapping[str, Any], timings: Mapping[str, Any]) -> int | None:
    """`timings.cache_n` is llama.cpp's word for it."""
    count: int | None = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", timings.get("cache_n"))
    return count


def _end_of(response: Response) -> float:
    assert response.completed_at is not None
    return response.completed_at


def _refusal(response: Response) -> str:
    return f"HTTP {response.status}: {_message(decode_json(response.body))}"


def _message(content: Any) -> str:
    """The message in one of the shapes that servers give errors."""
    while isinstance(content, dict):
        content = next((content[key] for key in ("error", "message", "detail") if content.get(key)), str(content))
    return " ".join(str(content).split())[:MAX_MESSAGE_CHARS]
