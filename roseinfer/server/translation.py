"""Other APIs' bodies run as chats: what a chat warns of or complains about is told in the words of the body."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import PrivateAttr

from roseinfer.core.errors import InvalidRequestError
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.openai.chat_prompt import ChatPrompt
from roseinfer.server.openai.chats import ChatJob, prepare_chat, render_chat
from roseinfer.server.schemas.base import RequestBody
from roseinfer.server.schemas.chat import ChatRequest


class TranslatedRequest(ChatRequest):
    """A chat request that was made of another body, whose warnings are its own."""

    _warnings: list[str] | None = PrivateAttr(None)

    def warnings(self) -> list[str] | None:
        return self._warnings


async def prepare_as_chat(
    engine: InferenceEngine, body: RequestBody, fields: Mapping[str, Any], names: Mapping[str, str]
) -> ChatJob:
    """`fields` are what `body` means to a chat, `names` what it calls a chat's fields.

    Raises as `prepare_chat` does.
    """
    with _renamed(names):
        job = await prepare_chat(engine, _request(body, fields))
    return dataclasses.replace(job, names={name: _name(names, field) for name, field in job.names.items()})


async def render_as_chat(
    engine: InferenceEngine, body: RequestBody, fields: Mapping[str, Any], names: Mapping[str, str]
) -> ChatPrompt:
    """The prompt alone."""
    with _renamed(names):
        return await render_chat(engine, _request(body, fields))


def _request(body: RequestBody, fields: Mapping[str, Any]) -> TranslatedRequest:
    request = TranslatedRequest.model_validate(fields)
    request._warnings = body.warnings()
    return request


@contextmanager
def _renamed(names: Mapping[str, str]) -> Iterator[None]:
    try:
        yield
    except InvalidRequestError as error:
        error.param = error.param and _name(names, error.param)
        raise


def _name(names: Mapping[str, str], field: str) -> str:
    """`names` has fields; what lies within one goes along."""
    first, dot, rest = field.partition(".")
    return names.get(first, first) + dot + rest
