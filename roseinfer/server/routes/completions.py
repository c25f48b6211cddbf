"""`POST /v1/completions`: texts or token ids in, what follows them out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from roseinfer.server.documentation import event_stream, examples
from roseinfer.server.generating import generates
from roseinfer.server.openai.completions import completion_reply, completion_stream, prepare_completion
from roseinfer.server.schemas.completions import CompletionReply, CompletionRequest
from roseinfer.server.sse import EventStream
from roseinfer.server.timed_route import TimedRoute
from roseinfer.server.whole import json_reply

router = APIRouter(route_class=TimedRoute, tags=["OpenAI"])

EXAMPLES = {
    "text": {"prompt": "The capital of France is", "max_tokens": 16, "temperature": 0},
    "several": {"prompt": ["One, two,", "A, B,"], "max_tokens": 8, "n": 2, "seed": 1},
    "stream": {"prompt": "Once upon a time", "stream": True, "stream_options": {"include_usage": True}},
    "scored": {"prompt": "The sky is blue", "max_tokens": 0, "echo": True, "logprobs": 1},
}


@router.post(
    "/v1/completions",
    response_model=CompletionReply,
    responses=event_stream("chunks of a completion, and `[DONE]`"),
    openapi_extra=examples(EXAMPLES),
)
@generates
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continues a prompt, or several of them, each in `n` ways."""
    job = await prepare_completion(body, request)
    if body.stream:
        return EventStream(completion_stream(job, request))
    return await json_reply(completion_reply(job, request))
