"""JSON bodies, read strictly: no NaN, bounded depth, an error that says where."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, get_type_hints

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from roseinfer.core.errors import InvalidRequestError

MAX_JSON_DEPTH = 64
MAX_MEMBERS = 4096  # of one object
MAX_LIST = 2**18  # items; lists of anything but token ids are shorter
MAX_CONTAINERS = 65_536  # objects and lists in all
# A body up to here is parsed in well under a millisecond.
MAX_INLINE_BYTES = 64 * 1024


def parse_json(content: bytes) -> Any:
    """Raises InvalidRequestError for anything that RFC 8259 does not allow, and for what is too deep or too much."""
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from None
    _check_size(value)
    return value


def _check_size(value: Any) -> None:
    count = 0
    for depth, level in enumerate(levels_of(value)):
        count += len(level)
        if depth >= MAX_JSON_DEPTH:
            raise InvalidRequestError(f"the body is nested more than {MAX_JSON_DEPTH} levels deep")
        if count > MAX_CONTAINERS:
            raise InvalidRequestError(f"the body has more than {MAX_CONTAINERS} objects and lists")
        if any(isinstance(each, dict) and len(each) > MAX_MEMBERS for each in level):
            raise InvalidRequestError(f"an object in the body has more than {MAX_MEMBERS} members")
        if any(isinstance(each, list) and len(each) > MAX_LIST for each in level):
            raise InvalidRequestError(f"a list in the body has more than {MAX_LIST} items")


def levels_of(value: Any) -> Iterator[list[Any]]:
    """`value` itself, then the objects and lists in it, then those in these, and so on; without recursion."""
    level = [value]
    while level:
        yield level
        level = [child for parent in level for child in _containers_in(parent)]


def _containers_in(value: Any) -> list[Any]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [child for child in children if isinstance(child, dict | list)]


class JSONBodyRoute(APIRoute):
    """A route whose endpoint is `async (body: Model, request: Request) -> Response`; the body must be declared as JSON.

    FastAPI documents it, but does not call it: resolving parameters and checking replies costs more than the rest of
    a small request. Only a declared JSON body makes a browser ask before it sends one from another site.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint
        model: type[BaseModel] = get_type_hints(endpoint)["body"]

        async def handle(request: Request) -> Response:
            _check_content_type(request.headers.get("content-type", ""))
            body = await _read(model, await request.body())
            response: Response = await endpoint(body, request)
            return response

        return handle


async def _read(model: type[BaseModel], content: bytes) -> BaseModel:
    if len(content) <= MAX_INLINE_BYTES:
        return _validate(model, parse_json(content))
    return await asyncio.to_thread(lambda: _validate(model, parse_json(content)))


def _validate(model: type[BaseModel], value: Any) -> BaseModel:
    """Raises RequestValidationError, whose locations begin with "body" as FastAPI's do."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [
            {**problem, "loc": ("body", *_place_in(value, problem["loc"]))}
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise RequestValidationError(problems) from None


def _place_in(value: Any, location: Sequence[str | int]) -> Iterator[str | int]:
    """Of Pydantic's location the parts that lead somewhere in the body: it names alternatives of a field as well."""
    for index, part in enumerate(location, 1):
        try:
            value = value[part]
        except (LookupError, TypeError):
            # The last part may be a field that is missing.
            if index < len(location) or not isinstance(value, dict) or part == "[key]":
                continue
        yield part


def _check_content_type(content_type: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidRequestError(f"Content-Type must be application/json, got {media_type[:80] or 'none'!r}")
