"""`POST /v1/responses`: OpenAI's newer way to ask for an answer. Nothing is stored."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from roseinfer.server.documentation import event_stream, examples
from roseinfer.server.generating import generates
from roseinfer.server.responses.responding import prepare_response, response_reply, response_stream
from roseinfer.server.schemas.responses import ResponseReply, ResponseRequest
from roseinfer.server.timed_route import TimedRoute
from roseinfer.server.whole import json_reply

router = APIRouter(route_class=TimedRoute, tags=["OpenAI"])

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CAPITAL = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
QUESTION = "What is the capital of France?"
EXAMPLES: dict[str, Any] = {
    "question": {"input": QUESTION, "max_output_tokens": 64},
    "stream": {"input": QUESTION, "instructions": "Be brief.", "stream": True},
    "json": {"input": QUESTION, "text": {"format": {"type": "json_schema", "name": "answer", "schema": CAPITAL}}},
    "tools": {"input": "Is it raining in Paris?", "tools": [WEATHER]},
}


@router.post(
    "/v1/responses",
    response_model=ResponseReply,
    responses=event_stream("OpenAI's, from `response.created` to `response.completed`"),
    openapi_extra=examples(EXAMPLES),
)
@generates
async def responses(body: ResponseRequest, request: Request) -> Response:
    """Answers a text or a conversation, with text or with calls of functions."""
    job = await prepare_response(body, request)
    if body.stream:
        return response_stream(job, body, request)
    return await json_reply(response_reply(job, body, request))
