"""Every failure as a reply of one shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import http
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from roseinfer.core.errors import EngineError, InvalidRequestError, OverloadedError, RoseinferError

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
MAX_REPORTED_FIELDS = 8


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "The request is wrong"},
    "5XX": {"model": ErrorReply, "description": "The request could not be served"},
}


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    kind = SERVER_ERROR if status >= 500 else INVALID_REQUEST
    reply = ErrorReply(error=ErrorDetail(message=message, type=kind, param=param, code=code))
    return JSONResponse(reply.model_dump(), status, headers)


def response_of(error: RoseinferError) -> JSONResponse:
    match error:
        case InvalidRequestError():
            return error_response(400, error.message, param=error.param, code=error.code)
        case OverloadedError():
            retry_after = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
            return error_response(503, str(error), code="server_is_overloaded", headers=retry_after)
        case EngineError():
            return error_response(500, str(error))
    return error_response(500, "the server failed to answer this request")


async def _on_roseinfer_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RoseinferError)
    return response_of(error)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    message = "; ".join(_describe(problem) for problem in problems[:MAX_REPORTED_FIELDS])
    return error_response(400, message, param=_field_of(problems[0]["loc"]))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if message == http.HTTPStatus(error.status_code).phrase:  # the router's own: says nothing of the request
        message = f"{message}: {request.method} {request.url.path}"
    return error_response(error.status_code, message, headers=error.headers)


EXCEPTION_HANDLERS: dict[Any, Any] = {
    RoseinferError: _on_roseinfer_error,
    RequestValidationError: _on_validation_error,
    HTTPException: _on_http_exception,
}


def _describe(problem: Mapping[str, Any]) -> str:
    return f"{_field_of(problem['loc']) or 'the body'}: {problem['msg']}"


def _field_of(location: Sequence[str | int]) -> str | None:
    """`("body", "messages", 0, "role")` → `messages.0.role`."""
    return ".".join(str(part) for part in location[1:]) or None
