"""`POST /generate`: a prompt in, its completion out, whole or as a stream of text."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from roseinfer.inference_engine import GenerateParams, Generation, InferenceEngine
from roseinfer.server.dependencies import Defaults, Engine
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
    response_model_exclude_none=True,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def generate(
    body: GenerateRequest, request: Request, engine: Engine, defaults: Defaults
) -> GenerateReply | Response:
    generation = await _prepare(engine, body, defaults)
    try:
        if body.stream:
            return await _stream(engine, generation, request)
        text = await run_while_connected(request.receive, _complete(engine, generation))
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return GenerateReply(text=body.prompt + text, warnings=body.warnings())


async def _prepare(engine: InferenceEngine, body: GenerateRequest, defaults: GenerateParams) -> Generation:
    given = {name: getattr(body, name) for name in body.model_fields_set & _PARAMS}
    params = dataclasses.replace(defaults, **given)
    if len(body.prompt) <= MAX_INLINE_CHARS:
        return engine.prepare(body.prompt, params)
    return await asyncio.to_thread(engine.prepare, body.prompt, params)


async def _complete(engine: InferenceEngine, generation: Generation) -> str:
    async with aclosing(engine.astream(generation)) as pieces:
        return "".join([piece async for piece in pieces])


async def _stream(engine: InferenceEngine, generation: Generation, request: Request) -> TextStream:
    """The headers wait for the first piece, so that what goes wrong before it still has a status of its own."""
    pieces = engine.astream(generation)
    try:
        first = await run_while_connected(request.receive, _next(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    return TextStream(first, pieces)


async def _next(pieces: AsyncGenerator[str, None]) -> str:
    return await anext(pieces, "")
