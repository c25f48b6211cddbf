"""A message: its whole reply and its stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from starlette.requests import Request

from roseinfer.core.errors import RoseinferError
from roseinfer.generation import Generation
from roseinfer.server.anthropic.blocks import BlockEvents, content_of
from roseinfer.server.anthropic.errors import error_fields
from roseinfer.server.anthropic.reply import closing_events, new_message, stop_fields, usage_fields
from roseinfer.server.anthropic.request import NAMES, chat_fields, prompt_fields
from roseinfer.server.dependencies import check_room, engine_of
from roseinfer.server.errors import response_of
from roseinfer.server.openai.accounting import timings
from roseinfer.server.openai.chats import ChatJob
from roseinfer.server.openai.running import stream_steps
from roseinfer.server.schemas.anthropic import CountTokensRequest, MessagesRequest
from roseinfer.server.sse import EventStream, foreseen, named_event
from roseinfer.server.translation import prepare_as_chat, render_as_chat
from roseinfer.text.output_text import TextDelta

Fields = dict[str, Any]


async def prepare_message(body: MessagesRequest, request: Request) -> ChatJob:
    """Raises as `prepare_chat` does."""
    check_room(1, request)
    return await prepare_as_chat(body, chat_fields(body), NAMES, request)


async def count_tokens(body: CountTokensRequest, request: Request) -> Fields:
    """How long the prompt is. Raises as `render_chat` does."""
    prompt = await render_as_chat(body, prompt_fields(body), NAMES, request)
    warnings = body.warnings()
    return {"input_tokens": len(prompt.ids), **({"warnings": warnings} if warnings else {})}


async def message_reply(job: ChatJob, request: Request) -> Fields:
    """The whole message."""
    (delta,) = await job.run_whole(request)
    output = job.new_output()
    content = content_of(output.push(delta.text) + output.finish())
    stop = _stop(job, delta, has_tool_calls=output.has_tool_calls)
    return {**_new_message(job, request), "content": content, **stop, "timings": timings(job.generations)}


def message_stream(job: ChatJob, request: Request) -> EventStream:
    """The message as events."""
    return EventStream(_events(job, request), end=b"", on_error=lambda error: _failure(error, request))


def _events(job: ChatJob, request: Request) -> AsyncGenerator[bytes, None]:
    return stream_steps(job, request, MessageStream(job, request).write, lambda: b"")


class MessageStream:
    """Writes what each step brings."""

    def __init__(self, job: ChatJob, request: Request) -> None:
        self._job = job
        self._request = request
        self._output = job.new_output()
        self._blocks = BlockEvents()
        self._is_begun = False

    def write(self, deltas: Sequence[tuple[Generation, TextDelta]]) -> bytes:
        return b"".join([named_event(event) for _, delta in deltas for event in self._events(delta)])

    def _events(self, delta: TextDelta) -> Iterable[Fields]:
        if not self._is_begun:
            self._is_begun = True
            yield {"type": "message_start", "message": _new_message(self._job, self._request)}
        yield from self._blocks.write(self._output.push(delta.text))
        if delta.finish_reason is not None:
            yield from self._blocks.write(self._output.finish())
            yield from self._blocks.close()
            stop = _stop(self._job, delta, has_tool_calls=self._output.has_tool_calls)
            yield from closing_events(stop, _usage(self._job), timings(self._job.generations))


def _new_message(job: ChatJob, request: Request) -> Fields:
    message_id = f"msg_{request.scope['state']['request_id']}"
    return new_message(message_id, engine_of(request).name, _usage(job), job.body.warnings())


def _usage(job: ChatJob) -> Fields:
    record = job.generations[0].record
    return usage_fields(record.num_prompt_tokens, record.num_cached_tokens, record.num_output_tokens)


def _stop(job: ChatJob, delta: TextDelta, *, has_tool_calls: bool) -> Fields:
    return stop_fields(delta.finish_reason, delta.stop_reason, job.body.stop_strings, has_tool_calls=has_tool_calls)


def _failure(error: Exception, request: Request) -> bytes:
    known: RoseinferError = foreseen(error)
    status, param = response_of(known).status_code, getattr(known, "param", None)
    return named_event(error_fields(status, str(known), param, request.scope["state"]["request_id"]))
