"""What routes add to /openapi.json beside their models."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic.warnings import UnsupportedFieldAttributeWarning
from starlette.requests import Request
from starlette.responses import Response

from roseinfer.server.json_pieces import encode_json


class DocumentedApp(FastAPI):
    """Its pages are our own (`routes/docs.py`): FastAPI's load scripts from elsewhere.

    /openapi.json is made when it is first asked for, beside the event loop: that takes a good part of a second.
    """

    def setup(self) -> None:
        self._document: bytes | None = None
        self._document_lock = asyncio.Lock()
        self.add_route("/openapi.json", self._send_document, include_in_schema=False)

    async def _send_document(self, request: Request) -> Response:
        async with self._document_lock:
            if self._document is None:
                self._document = await asyncio.to_thread(lambda: encode_json(self.openapi()))
        return Response(self._document, media_type="application/json")

    def openapi(self) -> dict[str, Any]:
        with warnings.catch_warnings():
            # About FastAPI's own fields, which are built here and not where it silences this.
            warnings.simplefilter("ignore", UnsupportedFieldAttributeWarning)
            return super().openapi()


def examples(bodies: Mapping[str, Any]) -> dict[str, Any]:
    """Bodies to try, by name."""
    named = {name: {"summary": name, "value": body} for name, body in bodies.items()}
    return {"requestBody": {"content": {"application/json": {"examples": named}}}}


def event_stream(description: str) -> dict[int | str, dict[str, Any]]:
    """For routes that answer with a stream if the body asks for one."""
    data = {"type": "string", "description": description}
    schema = {"type": "object", "properties": {"event": {"type": "string"}, "data": data}, "required": ["data"]}
    content = {"text/event-stream": {"itemSchema": schema}}
    return {200: {"description": "the answer, or server-sent events where `stream` is true", "content": content}}
