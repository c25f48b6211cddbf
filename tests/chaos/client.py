"""Asks a server and puts the answers together, streamed or whole, with the times at which their parts came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any

from roseinfer.bench.http_client import BadResponseError, HttpClient, Response, decode_json
from tests.chaos.requests import ChaosRequest

TIMEOUT_SECONDS = 300.0


class ServerError(Exception):
    """What the server itself said had gone wrong: its `error` object, with the type, the code and the message."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields.get("message"))
        self.fields = fields


@dataclass
class Choice:
    """One of a request's answers."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)  # ids, where the body asked for them
    logprobs: list[Any] = field(default_factory=list)  # as they were written, piece by piece put together
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class Stream:
    """What came back for one request. Times are those of `time.perf_counter`.

    `error`: what went wrong, None for a whole answer; `server_error`: what the server said of it, if it did, in a reply
    or as an event. `status` is 0 where there was no reply.
    """

    started_at: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    num_tokens: int | None = None  # of all choices, as the server counted
    chunk_times: list[float] = field(default_factory=list)
    ended_at: float = 0.0
    error: str | None = None
    server_error: dict[str, Any] | None = None

    @property
    def answer(self) -> tuple[list[Choice], int | None]:
        """What must not depend on anything but the request."""
        return self.choices, self.num_tokens

    @property
    def text(self) -> str:
        """Of the first choice, as what follows."""
        return self._first.text

    @property
    def tokens(self) -> list[int]:
        return self._first.tokens

    @property
    def logprobs(self) -> list[Any]:
        return self._first.logprobs

    @property
    def finish_reason(self) -> str | None:
        return self._first.finish_reason

    @property
    def _first(self) -> Choice:
        return self.choices[0] if self.choices else Choice()

    @property
    def gaps(self) -> list[float]:
        """Seconds from the request to the first chunk, and from each chunk to the next."""
        return [late - early for early, late in pairwise([self.started_at, *self.chunk_times])]

    def was_live_at(self, moment: float) -> bool:
        return self.started_at < moment < self.ended_at

    def stall_after(self, moment: float) -> float:
        """The longest gap that ended after `moment`; 0 where nothing came any more."""
        times = [self.started_at, *self.chunk_times]
        return max((late - early for early, late in pairwise(times) if late > moment), default=0.0)


async def complete(url: str, body: Mapping[str, Any], api_key: str | None = None) -> Stream:
    """`/v1/completions`, whole."""
    return await ask(url, ChaosRequest("/v1/completions", {**body, "stream": False}), api_key)


async def stream_completion(url: str, body: Mapping[str, Any], api_key: str | None = None) -> Stream:
    """`/v1/completions`, streamed."""
    return await ask(url, ChaosRequest("/v1/completions", {**body, "stream": True}), api_key)


async def chat(url: str, body: Mapping[str, Any], api_key: str | None = None) -> Stream:
    """`/v1/chat/completions`, streamed if the body says so."""
    return await ask(url, ChaosRequest("/v1/chat/completions", dict(body)), api_key)


async def generate(url: str, body: Mapping[str, Any], api_key: str | None = None) -> Stream:
    """`/generate`, streamed if the body says so."""
    return await ask(url, ChaosRequest("/generate", dict(body)), api_key)


async def ask_all(url: str, requests: Iterable[ChaosRequest], api_key: str | None = None) -> list[Stream]:
    """All at once, each on a connection of its own."""
    return list(await asyncio.gather(*(ask(url, request, api_key) for request in requests)))


async def ask(url: str, request: ChaosRequest, api_key: str | None = None, seconds: float = TIMEOUT_SECONDS) -> Stream:
    """One request on a connection of its own. Whatever goes wrong is the stream's `error`."""
    client = HttpClient(url, api_key)
    stream = Stream(perf_counter())
    try:
        response = await asyncio.wait_for(_exchange(client, client.encode(*request)), seconds)
        stream.status, stream.headers = response.status, response.headers
        stream.chunk_times = [moment for moment, _ in response.pieces]
        _read(stream, response)
    except ServerError as error:
        stream.error, stream.server_error = f"status {stream.status}: {error}", error.fields
    except (OSError, BadResponseError, asyncio.TimeoutError, ValueError, KeyError) as error:
        stream.error = repr(error)
    stream.ended_at = perf_counter()
    return stream


async def _exchange(client: HttpClient, request: bytes) -> Response:
    try:
        return await client.send(request)
    finally:
        client.close()


def _read(stream: Stream, response: Response) -> None:
    """Raises ServerError for what the server could not do, ValueError for an answer that is not whole."""
    if response.status != 200:
        content = decode_json(response.body)
        raise ServerError(
            content["error"] if isinstance(content, dict) and "error" in content else {"message": content}
        )
    kind = response.headers.get("content-type", "")
    if kind.startswith("text/event-stream"):
        _read_events(stream, response.body)
    elif kind.startswith("text/plain"):
        stream.choices.append(Choice(response.body.decode()))
    else:
        _take(stream, decode_json(response.body))


def _read_events(stream: Stream, body: bytes) -> None:
    *events, end = body.decode().split("\n\n")
    data = [event.removeprefix("data: ") for event in events if event]
    for item in data:
        if item != "[DONE]":
            _take(stream, json.loads(item))
    if end or data[-1:] != ["[DONE]"]:
        raise ValueError("the stream ends without [DONE]")


def _take(stream: Stream, reply: dict[str, Any]) -> None:
    """A whole reply, or a chunk of a stream. Raises ServerError."""
    if "error" in reply:
        raise ServerError(reply["error"])
    if "text" in reply:  # of /generate
        stream.choices.append(Choice(reply["text"]))
    if reply.get("usage"):
        stream.num_tokens = reply["usage"]["completion_tokens"]
    for part in reply.get("choices", ()):
        while len(stream.choices) <= part["index"]:
            stream.choices.append(Choice())
        _add(stream.choices[part["index"]], part)


def _add(choice: Choice, part: Mapping[str, Any]) -> None:
    choice.text += part.get("text") or (part.get("delta") or part.get("message") or {}).get("content") or ""
    choice.tokens += part.get("token_ids") or []
    choice.logprobs += _positions(part.get("logprobs"))
    choice.finish_reason = part.get("finish_reason") or choice.finish_reason
    choice.stop_reason = part.get("stop_reason") or choice.stop_reason


def _positions(logprobs: Mapping[str, Any] | None) -> Sequence[Any]:
    """Token by token, whichever of OpenAI's two forms they have."""
    if not logprobs:
        return []
    if "content" in logprobs:
        return logprobs["content"] or []
    tops = logprobs["top_logprobs"] or [None] * len(logprobs["tokens"])
    return list(zip(logprobs["tokens"], logprobs["token_logprobs"], tops, logprobs["text_offset"], strict=True))
