"""`POST /tokenize` and `POST /detokenize`: text or messages to the model's token ids, and ids to text."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from roseinfer.core.errors import InvalidRequestError
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.dependencies import engine_of, long_work_of, tenant_of
from roseinfer.server.documentation import examples
from roseinfer.server.json_pieces import encode_json
from roseinfer.server.openai.chat_prompt import render, template_of
from roseinfer.server.openai.models import check_model
from roseinfer.server.schemas.base import RequestBody
from roseinfer.server.schemas.tokenize import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
from roseinfer.server.timed_route import TimedRoute
from roseinfer.server.whole import json_reply
from roseinfer.text.token_info import describe_token

router = APIRouter(route_class=TimedRoute, tags=["tokens"])

TOKENIZE_EXAMPLES = {
    "text": {"prompt": "Hello, world!", "return_token_strs": True},
    "chat": {"messages": [{"role": "user", "content": "Hello!"}]},
}


@router.post("/tokenize", response_model=TokenizeReply, openapi_extra=examples(TOKENIZE_EXAMPLES))
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The tokens of a text, or of the prompt that messages become; any number of them, whatever fits the model."""
    return await json_reply(_tokenize(body, request))


@router.post("/detokenize", response_model=DetokenizeReply, openapi_extra=examples({"ids": {"tokens": [1, 2, 3]}}))
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of tokens, names of special ones included."""
    return await json_reply(_detokenize(body, request))


async def _tokenize(body: TokenizeRequest, request: Request) -> msgspec.Raw:
    engine, long_work, tenant = engine_of(request), long_work_of(request), tenant_of(request)
    check_model(engine, body.model)
    if body.prompt is None:
        return await long_work.run_rendering(len(await request.body()), lambda: _reply(engine, body), tenant)
    return await long_work.run_sized(len(body.prompt), lambda: _reply(engine, body), tenant)


async def _detokenize(body: DetokenizeRequest, request: Request) -> dict[str, Any]:
    engine = engine_of(request)
    check_model(engine, body.model)
    work = long_work_of(request)
    text = await work.run_sized(len(body.tokens), lambda: _text_of(engine, body.tokens), tenant_of(request))
    return _with_warnings({"prompt": text}, body)


def _reply(engine: InferenceEngine, body: TokenizeRequest) -> msgspec.Raw:
    """Encoded where it is made: that of a large text takes as long as the event loop may be held."""
    ids = _ids_of_chat(engine, body) if body.prompt is None else _ids_of_text(engine, body)
    strings = [describe_token(engine.tokenizer, each)[0] for each in ids] if body.return_token_strs else None
    reply = {"count": len(ids), "max_model_len": engine.client.max_model_len, "tokens": ids, "token_strs": strings}
    return msgspec.Raw(encode_json(_with_warnings(reply, body)))


def _ids_of_text(engine: InferenceEngine, body: TokenizeRequest) -> list[int]:
    return engine.tokenizer.encode(body.prompt or "", add_bos=False if body.add_special_tokens is False else None)


def _ids_of_chat(engine: InferenceEngine, body: TokenizeRequest) -> list[int]:
    rendered = render(template_of(engine), body, with_tools=bool(body.tools))
    return engine.tokenizer.encode_segments(rendered.segments, add_bos=None if body.add_special_tokens else False)


def _text_of(engine: InferenceEngine, ids: list[int]) -> str:
    vocab_size = engine.client.vocab_size
    if ids and max(ids) >= vocab_size:
        raise InvalidRequestError(f"tokens: {max(ids)} is not in the vocabulary of {vocab_size} tokens", "tokens")
    return engine.tokenizer.decode(ids, skip_special=False)


def _with_warnings(reply: dict[str, Any], body: RequestBody) -> dict[str, Any]:
    warnings = body.warnings()
    return {**reply, "warnings": warnings} if warnings else reply
