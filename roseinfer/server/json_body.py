"""JSON bodies, read strictly: no NaN, bounded depth, an error that says where."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from math import inf
from typing import Any, get_type_hints

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from roseinfer.core import limits
from roseinfer.core.errors import InvalidRequestError

_CONTAINERS = frozenset((dict, list))
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


def check_finite(value: Any) -> None:
    """Raises InvalidRequestError for a number that no double holds: it was read as an infinity, which is no JSON."""
    for level in levels_of(value):
        for container in level:
            values = container.values() if isinstance(container, dict) else container
            if float in map(type, values) and (inf in values or -inf in values):
                raise InvalidRequestError("a number in the body is beyond what a double holds")


def _check_size(value: Any) -> None:
    count = 0
    for depth, level in enumerate(levels_of(value)):
        count += len(level)
        if depth >= limits.JSON_DEPTH.most:
            raise InvalidRequestError(f"the body is nested more than {limits.JSON_DEPTH.most} levels deep")
        if count > limits.JSON_CONTAINERS.most:
            raise InvalidRequestError(f"the body has more than {limits.JSON_CONTAINERS.most} objects and lists")
        if any(isinstance(each, dict) and len(each) > limits.OBJECT_MEMBERS.most for each in level):
            raise InvalidRequestError(f"an object in the body has more than {limits.OBJECT_MEMBERS.most} members")
        if any(isinstance(each, list) and len(each) > limits.LIST_ITEMS.most for each in level):
            raise InvalidRequestError(f"a list in the body has more than {limits.LIST_ITEMS.most} items")


def levels_of(value: Any) -> Iterator[list[Any]]:
    """`value` itself, then the objects and lists in it, then those in these, and so on; without recursion."""
    level = [value]
    while level:
        yield level
        level = [child for parent in level for child in _containers_in(parent)]


def _containers_in(value: Any) -> list[Any]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if _CONTAINERS.isdisjoint(map(type, children)):  # of 100,000 ids this is told in a millisecond
        return []
    return [child for child in children if type(child) in _CONTAINERS]


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
        return read_body(model, content)
    return await asyncio.to_thread(read_body, model, content)


def read_body(model: type[BaseModel], content: bytes) -> BaseModel:
    """Raises RequestValidationError, whose locations begin with "body" as FastAPI's do, and as `parse_json` does."""
    value = parse_json(content)
    try:
        body = model.model_validate(value)
    except ValidationError as error:
        problems = [
            {**problem, "loc": ("body", *_place_in(value, problem["loc"]))}
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise RequestValidationError(problems) from None
    check_finite(value)  # what the model takes as it is, tools for example
    return body


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
