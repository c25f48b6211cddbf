"""Replies that are sent when they are whole."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from starlette.responses import Response

from roseinfer.server.disconnect import ClientGoneError
from roseinfer.server.middleware.access_log import CLIENT_CLOSED_REQUEST
from roseinfer.server.sse import encode_json


async def json_reply(work: Awaitable[Any]) -> Response:
    """The result of `work` as JSON; to a caller who has hung up, anything."""
    try:
        reply = await work
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(encode_json(reply), media_type="application/json")
