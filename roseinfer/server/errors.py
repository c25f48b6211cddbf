"""Every failure as a reply of one shape, OpenAI's: `{"error": {"message", "type", "param", "code"}}`.

Routes of other APIs tell the same in their own: see `ErrorResponse`.
"""

from __future__ import annotations

import http
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from roseinfer.core.errors import (
    EngineError,
    EngineRestartingError,
    EngineStoppedError,
    InvalidRequestError,
    OverloadedError,
    RateLimitedError,
    RoseinferError,
)
from roseinfer.server.anthropic.errors import error_fields, is_anthropic

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
OVERLOADED = "server_is_overloaded"
RATE_LIMITED = "rate_limit_exceeded"
TIMED_OUT = "request_timeout"
RESTARTING = "engine_restarting"
RETRYABLE = (408, 409, 429)  # below 500
RESTART_SECONDS = 5  # by then another server has taken over, or this one is back
MAX_REPORTED_FIELDS = 8
MAX_PATH = 256  # characters of what a caller asked for that a message repeats

_encode = msgspec.json.Encoder().encode


class ModelNotFoundError(InvalidRequestError):
    """The body names a model that is not served here; HTTP 404."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "model", "model_not_found")


class RequestTimeoutError(RoseinferError):
    """A request was not finished in the time that this server gives to one; HTTP 408."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the request was not finished within {seconds:g} seconds")


class ErrorDetail(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)

    message: str = Field(description="for people")
    type: Literal["invalid_request_error", "server_error"] = Field(description="who is to blame")
    param: str | None = Field(description="the field that is wrong")
    code: str | None = Field(description="for programs, for example context_length_exceeded")


class ErrorReply(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)

    error: ErrorDetail = Field(description="what went wrong")


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "The request is wrong"},
    "5XX": {"model": ErrorReply, "description": "The request could not be served"},
}


class ErrorResponse(JSONResponse):
    """In the shape that callers of the path expect."""

    def __init__(self, error: Mapping[str, Any], status: int, headers: Mapping[str, str]) -> None:
        super().__init__({"error": error}, status, headers)
        self._error = error

    def render(self, content: Any) -> bytes:
        return _encode(content)

    def suit(self, scope: Scope) -> None:
        """Takes the shape for the request's path; done when it is sent by itself."""
        if is_anthropic(scope["path"]):
            request_id = scope.get("state", {}).get("request_id")
            error = error_fields(self.status_code, self._error["message"], self._error["param"], request_id)
            self.body = self.render(error)
            self.headers["content-length"] = str(len(self.body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.suit(scope)
        await super().__call__(scope, receive, send)


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> ErrorResponse:
    kind = SERVER_ERROR if status >= 500 else INVALID_REQUEST
    error = {"message": message, "type": kind, "param": param, "code": code}
    return ErrorResponse(error, status, {**_retry_advice(status), **(headers or {})})


def _retry_advice(status: int) -> dict[str, str]:
    """OpenAI's clients try again unless they are told that it is of no use."""
    return {} if status >= 500 or status in RETRYABLE else {"x-should-retry": "false"}


def code_of(error: RoseinferError) -> str:
    """What logs call it: its code or, where it has none, its type."""
    match error:
        case InvalidRequestError():
            return error.code or INVALID_REQUEST
        case RateLimitedError():
            return RATE_LIMITED
        case EngineRestartingError():
            return RESTARTING
        case OverloadedError() | EngineStoppedError():
            return OVERLOADED
        case RequestTimeoutError():
            return TIMED_OUT
    return SERVER_ERROR


def response_of(error: RoseinferError) -> ErrorResponse:
    match error:
        case ModelNotFoundError():
            return error_response(404, error.message, param=error.param, code=error.code)
        case InvalidRequestError():
            return error_response(400, error.message, param=error.param, code=error.code)
        case OverloadedError():
            retry_after = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
            status = 429 if isinstance(error, RateLimitedError) else 503
            return error_response(status, str(error), code=code_of(error), headers=retry_after)
        case RequestTimeoutError():  # again it would take as long
            return error_response(408, str(error), code=TIMED_OUT, headers={"x-should-retry": "false"})
        case EngineStoppedError():
            return error_response(503, str(error), code=code_of(error), headers={"Retry-After": str(RESTART_SECONDS)})
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
        message = f"{message}: {request.method} {request.scope['path'][:MAX_PATH]}"
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
