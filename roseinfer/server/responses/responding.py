"""A response: its whole reply and its stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from roseinfer.core.errors import InvalidRequestError, RoseinferError
from roseinfer.generation import Generation
from roseinfer.server.dependencies import check_room, engine_of, long_work_of, tenant_of
from roseinfer.server.json_pieces import encode_json
from roseinfer.server.openai.accounting import timings
from roseinfer.server.openai.chats import ChatJob
from roseinfer.server.openai.logprobs import chat_entry
from roseinfer.server.openai.running import num_logprobs, stream_steps
from roseinfer.server.responses.reply import ResponseWriter, new_response, usage_fields
from roseinfer.server.responses.request import NAMES, chat_fields
from roseinfer.server.schemas.responses import ResponseRequest
from roseinfer.server.sse import EventStream, foreseen, named_event
from roseinfer.server.translation import prepare_as_chat
from roseinfer.server.whole import sized_reply
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


async def response_reply(job: ChatJob, body: ResponseRequest, request: Request) -> Response:
    """The whole response."""
    answer = Answer(job, body, request)
    (delta,) = await job.run_whole(request)
    return await sized_reply(request, answer.size_of(delta), lambda: answer.whole(delta))


def response_stream(job: ChatJob, body: ResponseRequest, request: Request) -> EventStream:
    """The response as events."""
    answer = Answer(job, body, request)
    return EventStream(_events(answer, job, request), end=b"", on_error=answer.fail)


async def _events(answer: Answer, job: ChatJob, request: Request) -> AsyncGenerator[bytes, None]:
    async with aclosing(stream_steps(job, request, answer.write, lambda: b"")) as steps:
        async for events in steps:
            yield events
            answer.writer.mark_sent()  # whoever takes the events goes on when they are sent
    yield await long_work_of(request).run_reply(answer.size, answer.end, tenant_of(request))


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
        self.size = 0  # of what was taken, in logprobs and characters: the end repeats all of it

    def write(self, deltas: Sequence[tuple[Generation, TextDelta]]) -> bytes:
        """What a step brings."""
        events = [] if self._is_begun else list(self.writer.begin())
        self._is_begun = True
        for _, delta in deltas:
            events += self._take(delta)
        return _encode(events)

    def end(self) -> bytes:
        """The last events, when all parts are taken."""
        return _encode(self._end())

    def whole(self, delta: TextDelta) -> Fields:
        """The response, of which `delta` is all."""
        self._take(delta)
        self._end()
        return self.writer.response

    def size_of(self, delta: TextDelta) -> int:
        return num_logprobs(self._job.generations[0], delta) + len(delta.text)

    def _take(self, delta: TextDelta) -> list[Fields]:
        self.size += self.size_of(delta)
        is_last = delta.finish_reason is not None
        self._is_cut = delta.finish_reason == "length"
        found = self._output.push(delta.text) + (self._output.finish() if is_last else [])
        return list(self.writer.write(found, self._logprobs.take(delta, found)))

    def _end(self) -> list[Fields]:
        events = list(self.writer.close(is_cut=self._is_cut))
        num_reasoning = len(self._job.engine.tokenizer.encode(self.writer.reasoning, add_bos=False))
        record = self._job.generations[0].record
        usage = usage_fields(
            record.num_prompt_tokens, record.num_cached_tokens, record.num_output_tokens, num_reasoning
        )
        self.writer.response["timings"] = timings(self._job.generations)
        return [*events, *self.writer.end(usage, is_cut=self._is_cut)]

    def fail(self, error: Exception) -> bytes:
        """The last event of an answer that went wrong, also while a thread writes what nobody waits for any more."""
        known = foreseen(error)
        return named_event(self.writer.fail(failure_code(known), str(known)))


def failure_code(error: RoseinferError) -> str:
    """One of OpenAI's for a response; rate limits are none of them here, they are told before an answer begins."""
    return "invalid_prompt" if isinstance(error, InvalidRequestError) else "server_error"


class ContentLogprobs:
    """Of an answer's logprobs those of its content, which is all that there is behind the reasoning."""

    def __init__(self) -> None:
        self._num_chars = 0
        self._start: int | None = None  # of the content, in the text
        self._waiting: list[TokenInfo] = []

    def take(self, delta: TextDelta, events: Iterable[ChatEvent]) -> list[msgspec.Raw]:
        """Those of the content in `events`, which `delta` has brought; written down, since a stream tells them again
        and again.
        """
        self._num_chars += len(delta.text)
        self._waiting += delta.tokens
        num_content = sum(len(event.text) for event in events if isinstance(event, ContentDelta))
        if not num_content or not self._waiting:
            return []
        if self._start is None:
            self._start = self._num_chars - num_content
        told, self._waiting = [info for info in self._waiting if info.text_offset >= self._start], []
        return [msgspec.Raw(encode_json(chat_entry(info))) for info in told]


def _encode(events: Iterable[Fields]) -> bytes:
    return b"".join([named_event(event) for event in events])
