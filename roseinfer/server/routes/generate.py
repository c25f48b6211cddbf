"""`POST /generate`: a prompt in, its completion out, whole or as a stream of text."""

from __future__ import annotations

import asyncio
import dataclasses

from fastapi import APIRouter, Request, Response

from roseinfer.generation import Generation
from roseinfer.inference_engine import GenerateParams, InferenceEngine
from roseinfer.server.dependencies import defaults_of, engine_of
from roseinfer.server.disconnect import ClientGoneError, TextStream, run_while_connected
from roseinfer.server.json_body import JSONBodyRoute
from roseinfer.server.schemas import GenerateReply, GenerateRequest

router = APIRouter(route_class=JSONBodyRoute, tags=["generate"])

# Tokenising up to here takes no longer than the event loop may be held.
MAX_INLINE_CHARS = 2048
CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody is there to read it

_PARAMS = {field.name for field in dataclasses.fields(GenerateParams)}


@router.post(
    "/generate",
    response_model=GenerateReply,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def generate(body: GenerateRequest, request: Request) -> Response:
    engine = engine_of(request)
    generation = await _prepare(engine, body, defaults_of(request))
    if body.stream:
        return TextStream(engine, generation)
    try:
        text = await run_while_connected(request.receive, engine.acomplete(generation))
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    reply = GenerateReply(text=body.prompt + text, warnings=body.warnings())
    return Response(reply.model_dump_json(exclude_none=True), media_type="application/json")


async def _prepare(engine: InferenceEngine, body: GenerateRequest, defaults: GenerateParams) -> Generation:
    given = {name: getattr(body, name) for name in body.model_fields_set & _PARAMS}
    params = dataclasses.replace(defaults, **given)
    if len(body.prompt) <= MAX_INLINE_CHARS:
        return engine.prepare(body.prompt, params)
    return await asyncio.to_thread(engine.prepare, body.prompt, params)
