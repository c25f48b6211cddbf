"""Other APIs' bodies run as chats: what a chat warns of or complains about is told in the words of the body."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import PrivateAttr
from starlette.requests import Request

from roseinfer.core.errors import InvalidRequestError
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
    body: RequestBody, fields: Mapping[str, Any], names: Mapping[str, str], request: Request
) -> ChatJob:
    """`fields` are what `body` means to a chat, `names` what it calls a chat's fields.

    Raises as `prepare_chat` does.
    """
    with _renamed(names):
        job = await prepare_chat(_chat_of(body, fields), request)
    return dataclasses.replace(job, names={name: _name(names, field) for name, field in job.names.items()})


async def render_as_chat(
    body: RequestBody, fields: Mapping[str, Any], names: Mapping[str, str], request: Request
) -> ChatPrompt:
    """The prompt alone. Raises as `render_chat` does."""
    with _renamed(names):
        return await render_chat(_chat_of(body, fields), request)


def _chat_of(body: RequestBody, fields: Mapping[str, Any]) -> TranslatedRequest:
    chat = TranslatedRequest.model_validate(fields)
    chat._warnings = body.warnings()
    return chat


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
