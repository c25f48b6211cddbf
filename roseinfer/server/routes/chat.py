"""`POST /v1/chat/completions`: messages in, the assistant's next one out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from roseinfer.server.dependencies import engine_of
from roseinfer.server.documentation import event_stream, examples
from roseinfer.server.generating import generates
from roseinfer.server.openai.chats import chat_reply, chat_stream, prepare_chat, render_chat
from roseinfer.server.schemas.chat import ChatReply, ChatRequest, RenderReply
from roseinfer.server.sse import EventStream
from roseinfer.server.timed_route import TimedRoute
from roseinfer.server.whole import json_reply

router = APIRouter(route_class=TimedRoute, tags=["OpenAI"])

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ANSWER = {
    "name": "answer",
    "schema": {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]},
}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
EXAMPLES: dict[str, Any] = {
    "question": {"messages": QUESTION, "max_completion_tokens": 64},
    "stream": {"messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}},
    "json": {"messages": QUESTION, "response_format": {"type": "json_schema", "json_schema": ANSWER}},
    "tools": {"messages": [{"role": "user", "content": "Is it raining in Paris?"}], "tools": [WEATHER]},
}


@router.post(
    "/v1/chat/completions",
    response_model=ChatReply,
    responses=event_stream("chunks of a chat completion, and `[DONE]`"),
    openapi_extra=examples(EXAMPLES),
)
@generates
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answers a conversation, with text or with calls of functions."""
    job = await prepare_chat(body, request)
    if body.stream:
        return EventStream(chat_stream(job, request))
    return await json_reply(chat_reply(job, request))


@router.post("/v1/chat/completions/render", response_model=RenderReply, openapi_extra=examples(EXAMPLES))
async def render(body: ChatRequest, request: Request) -> Response:
    """The prompt that the same body would become at `/v1/chat/completions`; the model is not asked."""
    engine = engine_of(request)
    return await json_reply(_render(body, request, engine.client.max_model_len))


async def _render(body: ChatRequest, request: Request, max_model_len: int) -> dict[str, Any]:
    prompt = await render_chat(body, request)
    reply = {
        "prompt": prompt.rendered.text,
        "prompt_token_ids": prompt.ids,
        "count": len(prompt.ids),
        "max_model_len": max_model_len,
    }
    warnings = body.warnings()
    return {**reply, "warnings": warnings} if warnings else reply
