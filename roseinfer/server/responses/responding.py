"""A response: its whole reply and its stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request

from roseinfer.core.errors import InvalidRequestError
from roseinfer.generation import Generation
from roseinfer.server.dependencies import check_room, engine_of
from roseinfer.server.openai.accounting import timings
from roseinfer.server.openai.chats import ChatJob
from roseinfer.server.openai.logprobs import chat_logprobs
from roseinfer.server.openai.running import stream_steps
from roseinfer.server.responses.reply import ResponseWriter, new_response, usage_fields
from roseinfer.server.responses.request import NAMES, chat_fields
from roseinfer.server.schemas.responses import ResponseRequest
from roseinfer.server.sse import EventStream, foreseen, named_event
from roseinfer.server.translation import prepare_as_chat
from roseinfer.server.worker import run_sized
from roseinfer.text.chat_events import ChatEvent, ContentDelta
from roseinfer.text.output_text import TextDelta, TokenInfo

Fields = dict[str, Any]


async def prepare_response(body: ResponseRequest, request: Request) -> ChatJob:
    """Raises as `prepare_chat` does."""
    check_room(1, request)
    job = await prepare_as_chat(body, chat_fields(body), NAMES, request)
    if body.wants_logprobs and job.prompt.dialect is not None:
        raise InvalidRequestError("include: there are no logprobs of answers that may call functions", "include")
    return job


async def response_reply(job: ChatJob, body: ResponseRequest, request: Request) -> Fields:
    """The whole response."""
    answer = Answer(job, body, request)
    (delta,) = await job.run_whole(request)
    answer.take(delta)
    await answer.end()
    return answer.writer.response


def response_stream(job: ChatJob, body: ResponseRequest, request: Request) -> EventStream:
    """The response as events."""
    answer = Answer(job, body, request)
    return EventStream(_events(answer, job, request), end=b"", on_error=answer.fail)


async def _events(answer: Answer, job: ChatJob, request: Request) -> AsyncGenerator[bytes, None]:
    async with aclosing(stream_steps(job, request, answer.write, lambda: b"")) as steps:
        async for events in steps:
            yield events
    yield await answer.end()


class Answer:
    """What is written of one response while it is generated."""

    def __init__(self, job: ChatJob, body: ResponseRequest, request: Request) -> None:
        response_id = f"resp_{request.scope['state']['request_id']}"
        self.writer = ResponseWriter(new_response(response_id, body, engine_of(request).name))
        self._job = job
        self._output = job.new_output()
        self._logprobs = ContentLogprobs()
        self._is_begun = False
        self._is_cut = False

    def write(self, deltas: Sequence[tuple[Generation, TextDelta]]) -> bytes:
        """What a step brings."""
        events = [] if self._is_begun else list(self.writer.begin())
        self._is_begun = True
        for _, delta in deltas:
            events += self.take(delta)
        return _encode(events)

    def take(self, delta: TextDelta) -> list[Fields]:
        """The events of a further part, or of all of it."""
        is_last = delta.finish_reason is not None
        found = self._output.push(delta.text) + (self._output.finish() if is_last else [])
        events = list(self.writer.write(found, self._logprobs.take(delta, found)))
        if is_last:
            self._is_cut = delta.finish_reason == "length"
            events += self.writer.close(is_cut=self._is_cut)
        return events

    async def end(self) -> bytes:
        """The last event, when all parts are taken."""
        tokenizer, reasoning = self._job.engine.tokenizer, self.writer.reasoning
        num_reasoning = await run_sized(len(reasoning), lambda: len(tokenizer.encode(reasoning, add_bos=False)))
        record = self._job.generations[0].record
        usage = usage_fields(
            record.num_prompt_tokens, record.num_cached_tokens, record.num_output_tokens, num_reasoning
        )
        self.writer.response["timings"] = timings(self._job.generations)
        return _encode(self.writer.end(usage, is_cut=self._is_cut))

    def fail(self, error: Exception) -> bytes:
        """The last event of an answer that went wrong."""
        known = foreseen(error)
        code = "invalid_prompt" if isinstance(known, InvalidRequestError) else "server_error"
        return _encode(self.writer.fail(code, str(known)))


class ContentLogprobs:
    """Of an answer's logprobs those of its content, which is all that there is behind the reasoning."""

    def __init__(self) -> None:
        self._num_chars = 0
        self._start: int | None = None  # of the content, in the text
        self._waiting: list[TokenInfo] = []

    def take(self, delta: TextDelta, events: Iterable[ChatEvent]) -> list[Fields]:
        """Those of the content in `events`, which `delta` has brought."""
        self._num_chars += len(delta.text)
        self._waiting += delta.tokens
        num_content = sum(len(event.text) for event in events if isinstance(event, ContentDelta))
        if not num_content or not self._waiting:
            return []
        if self._start is None:
            self._start = self._num_chars - num_content
        told, self._waiting = [info for info in self._waiting if info.text_offset >= self._start], []
        content: list[Fields] = chat_logprobs(told)["content"]
        return content


def _encode(events: Iterable[Fields]) -> bytes:
    return b"".join([named_event(event) for event in events])
