"""JSON bodies, read strictly: no NaN, bounded depth, an error that says where."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from math import inf
from typing import Any, get_type_hints

import numpy as np
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from roseinfer.core import limits
from roseinfer.core.errors import InvalidRequestError
from roseinfer.server.dependencies import tenant_of
from roseinfer.server.worker import LongWork

_CONTAINERS = frozenset((dict, list))
# A body up to here is parsed in a millisecond or two.
MAX_INLINE_BYTES = 64 * 1024
MAX_INLINE_CONTAINERS = 512
MAX_INLINE_ITEMS = 8192
# Of all lists and objects together. Lists of ids are the longest there are.
MAX_ITEMS = 600_000
MAX_PENDING_BYTES = 64 * 2**20  # waiting to be parsed


def parse_json(content: bytes) -> Any:
    """Raises InvalidRequestError for anything that RFC 8259 does not allow, and for what is too deep or too much."""
    return _parse(content)[0]


def _parse(content: bytes) -> tuple[Any, bool]:
    """And whether all of its numbers are finite."""
    _check_counts(content)
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from None
    return value, _check_size(value)


def _check_counts(content: bytes) -> None:
    """Raises InvalidRequestError for so many objects, lists or items that making them would take long."""
    if _num_containers(content) <= limits.JSON_CONTAINERS.most and content.count(b",") <= MAX_ITEMS:
        return
    bare = _without_strings(content)
    if _num_containers(bare) > limits.JSON_CONTAINERS.most:
        raise InvalidRequestError(f"the body has more than {limits.JSON_CONTAINERS.most} objects and lists")
    if bare.count(b",") > MAX_ITEMS:
        raise InvalidRequestError(f"the lists and objects in the body have more than {MAX_ITEMS} items")


def _num_containers(content: bytes) -> int:
    """An upper bound: strings may hold brackets as well."""
    return content.count(b"[") + content.count(b"{")


def _without_strings(content: bytes) -> bytes:
    """`content` with its strings cut out; behind the point where it stops being JSON anything may be."""
    # Backslashes pair up from the first of a run, so that what is left of them escapes what is behind it.
    unescaped = content.replace(rb"\\", b"").replace(rb"\"", b"")
    characters = np.frombuffer(unescaped, np.uint8)
    # The sum wraps around at 256, which is even: its last bit still says whether a string is open.
    num_quotes = np.cumsum(characters == ord('"'), dtype=np.uint8)
    return bytes(characters[num_quotes & 1 == 0])


def _is_finite(container: dict[str, Any] | list[Any]) -> bool:
    """A number that no double holds was read as an infinity, which is no JSON."""
    values = container.values() if isinstance(container, dict) else container
    return not (float in map(type, values) and (inf in values or -inf in values))


def _check_size(value: Any) -> bool:
    """Raises InvalidRequestError; whether all numbers are finite."""
    count, is_finite = 0, True
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
        is_finite = is_finite and all(_is_finite(each) for each in level if type(each) in _CONTAINERS)
    return is_finite


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
            body = await _read(model, await request.body(), request)
            response: Response = await endpoint(body, request)
            return response

        return handle


async def _read(model: type[BaseModel], content: bytes, request: Request) -> BaseModel:
    if _is_quick(content):
        return read_body(model, content)
    return await _parsing_of(request).run(len(content), lambda: read_body(model, content), tenant_of(request))


def _is_quick(content: bytes) -> bool:
    return (
        len(content) <= MAX_INLINE_BYTES
        and _num_containers(content) <= MAX_INLINE_CONTAINERS
        and content.count(b",") <= MAX_INLINE_ITEMS
    )


def _parsing_of(request: Request) -> LongWork:
    """The app's, made for the first request that needs it."""
    state = request.app.state
    if not hasattr(state, "parsing"):
        state.parsing = LongWork(MAX_PENDING_BYTES)
    parsing: LongWork = state.parsing
    return parsing


def read_body(model: type[BaseModel], content: bytes) -> BaseModel:
    """Raises RequestValidationError, whose locations begin with "body" as FastAPI's do, and as `parse_json` does."""
    value, is_finite = _parse(content)
    try:
        body = model.model_validate(value)
    except ValidationError as error:
        problems = [
            {**problem, "loc": ("body", *_place_in(value, problem["loc"]))}
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise RequestValidationError(problems) from None
    if not is_finite:  # in what the model takes as it is, tools for example
        raise InvalidRequestError("a number in the body is beyond what a double holds")
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
