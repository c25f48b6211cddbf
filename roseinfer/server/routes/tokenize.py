"""`POST /tokenize` and `POST /detokenize`: text or messages to the model's token ids, and ids to text."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from roseinfer.core.errors import InvalidRequestError
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.dependencies import engine_of
from roseinfer.server.documentation import examples
from roseinfer.server.json_body import JSONBodyRoute
from roseinfer.server.openai.chat_prompt import render, template_of
from roseinfer.server.openai.models import check_model
from roseinfer.server.schemas.base import RequestBody
from roseinfer.server.schemas.tokenize import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
from roseinfer.server.whole import json_reply
from roseinfer.server.worker import run_sized
from roseinfer.text.token_info import describe_token

router = APIRouter(route_class=JSONBodyRoute, tags=["tokens"])

TOKENIZE_EXAMPLES = {
    "text": {"prompt": "Hello, world!", "return_token_strs": True},
    "chat": {"messages": [{"role": "user", "content": "Hello!"}]},
}


@router.post("/tokenize", response_model=TokenizeReply, openapi_extra=examples(TOKENIZE_EXAMPLES))
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The tokens of a text, or of the prompt that messages become; any number of them, whatever fits the model."""
    return await json_reply(_tokenize(engine_of(request), body))


@router.post("/detokenize", response_model=DetokenizeReply, openapi_extra=examples({"ids": {"tokens": [1, 2, 3]}}))
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of tokens, names of special ones included."""
    return await json_reply(_detokenize(engine_of(request), body))


async def _tokenize(engine: InferenceEngine, body: TokenizeRequest) -> dict[str, Any]:
    check_model(engine, body.model)
    if body.prompt is None:
        ids = await asyncio.to_thread(_ids_of_chat, engine, body)
    else:
        ids = await run_sized(len(body.prompt), lambda: _ids_of_text(engine, body))
    strings = None
    if body.return_token_strs:
        strings = await run_sized(len(ids), lambda: [describe_token(engine.tokenizer, each)[0] for each in ids])
    reply = {"count": len(ids), "max_model_len": engine.client.max_model_len, "tokens": ids, "token_strs": strings}
    return _with_warnings(reply, body)


async def _detokenize(engine: InferenceEngine, body: DetokenizeRequest) -> dict[str, Any]:
    check_model(engine, body.model)
    text = await run_sized(len(body.tokens), lambda: _text_of(engine, body.tokens))
    return _with_warnings({"prompt": text}, body)


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
