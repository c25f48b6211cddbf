"""`POST /v1/messages`: Anthropic's way to ask for the assistant's next message."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from roseinfer.server.anthropic.messages import count_tokens, message_reply, message_stream, prepare_message
from roseinfer.server.documentation import event_stream, examples
from roseinfer.server.generating import generates
from roseinfer.server.schemas.anthropic import (
    AnthropicErrorReply,
    CountTokensReply,
    CountTokensRequest,
    MessageReply,
    MessagesRequest,
)
from roseinfer.server.timed_route import TimedRoute
from roseinfer.server.whole import json_reply

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": AnthropicErrorReply, "description": "The request is wrong"},
    "5XX": {"model": AnthropicErrorReply, "description": "The request could not be served"},
}

router = APIRouter(route_class=TimedRoute, tags=["Anthropic"], responses=ERRORS)

WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
QUESTION = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
EXAMPLES: dict[str, Any] = {
    "question": {**QUESTION, "max_tokens": 64},
    "stream": {**QUESTION, "max_tokens": 64, "system": "Be brief.", "stream": True},
    "tools": {**QUESTION, "max_tokens": 64, "tools": [WEATHER]},
}


@router.post(
    "/v1/messages",
    response_model=MessageReply,
    responses=event_stream("Anthropic's, from `message_start` to `message_stop`"),
    openapi_extra=examples(EXAMPLES),
)
@generates
async def messages(body: MessagesRequest, request: Request) -> Response:
    """Answers a conversation, with text or with calls of tools."""
    job = await prepare_message(body, request)
    if body.stream:
        return message_stream(job, request)
    return await json_reply(message_reply(job, request))


@router.post(
    "/v1/messages/count_tokens",
    response_model=CountTokensReply,
    openapi_extra=examples({"question": QUESTION, "tools": {**QUESTION, "tools": [WEATHER]}}),
)
async def count(body: CountTokensRequest, request: Request) -> Response:
    """How many tokens the prompt has that the same body would become; the model is not asked."""
    return await json_reply(count_tokens(body, request))
