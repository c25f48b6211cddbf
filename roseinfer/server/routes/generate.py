"""`POST /generate`: a prompt in, its completion out, whole or as a stream of text."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter, Request, Response

from roseinfer.generation import Generation
from roseinfer.inference_engine import GenerateParams, InferenceEngine
from roseinfer.server.dependencies import check_room, defaults_of, engine_of, long_work_of, tenant_of
from roseinfer.server.disconnect import run_while_connected
from roseinfer.server.documentation import examples
from roseinfer.server.generating import generates
from roseinfer.server.middleware.access_log import describe
from roseinfer.server.schemas import GenerateReply, GenerateRequest
from roseinfer.server.text_stream import TextStream
from roseinfer.server.timed_route import TimedRoute
from roseinfer.server.whole import json_reply

router = APIRouter(route_class=TimedRoute, tags=["generate"])

EXAMPLES = {
    "text": {"prompt": "The capital of France is", "max_new_tokens": 16},
    "stream": {"prompt": "Once upon a time", "do_sample": True, "temperature": 0.8, "seed": 1, "stream": True},
}

_PARAMS = {field.name for field in dataclasses.fields(GenerateParams)}


@router.post(
    "/generate",
    response_model=GenerateReply,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    openapi_extra=examples(EXAMPLES),
)
@generates
async def generate(body: GenerateRequest, request: Request) -> Response:
    """Continues a prompt: the prompt and its completion, or the completion alone in pieces as it is generated."""
    engine = engine_of(request)
    check_room(1, request)
    generation, warnings = await _prepare(body, request), body.warnings()
    if body.stream:
        return TextStream(engine, generation, warnings)
    return await json_reply(_reply(engine, generation, request, body.prompt, warnings))


async def _reply(
    engine: InferenceEngine, generation: Generation, request: Request, prompt: str, warnings: list[str] | None
) -> dict[str, Any]:
    try:
        text = await run_while_connected(request.receive, engine.acomplete(generation))
    finally:
        request.scope["state"]["access"] = describe([generation.record], model=engine.name, warnings=warnings)
    return {"text": prompt + text, **({"warnings": warnings} if warnings else {})}


async def _prepare(body: GenerateRequest, request: Request) -> Generation:
    engine, tenant = engine_of(request), tenant_of(request)
    given = {name: getattr(body, name) for name in body.model_fields_set & _PARAMS}
    params = dataclasses.replace(defaults_of(request), **given)
    work = long_work_of(request)
    return await work.run_sized(len(body.prompt), lambda: engine.prepare(body.prompt, params, tenant=tenant), tenant)
