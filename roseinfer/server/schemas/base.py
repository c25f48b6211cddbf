"""What all bodies have in common. Types are strict: `true` is no 1 and `"1"` is no number."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from roseinfer.core import limits
from roseinfer.core.limits import Cap

MAX_WARNINGS = 16
MAX_NAME_CHARS = 64

T = TypeVar("T")


def within(cap: Cap[int] | Cap[float]) -> Any:
    """Annotates a number: what it may be."""
    return Field(gt=cap.least, le=cap.most) if cap.is_open else Field(ge=cap.least, le=cap.most)


def counted(cap: Cap[int], *, fail_fast: bool | None = None) -> Any:
    """Annotates a string, a list or an object: how long it may be."""
    return Field(min_length=cap.least or None, max_length=cap.most, fail_fast=fail_fast)


# Of a list that is wrong throughout only the first error is told: there could be millions.
Items: TypeAlias = Annotated[list[T], counted(limits.OTHER_LIST_ITEMS, fail_fast=True)]
TokenId: TypeAlias = Annotated[int, within(limits.TOKEN_ID)]

MaxTokens: TypeAlias = Annotated[int, within(limits.MAX_TOKENS)]
AnswerTokens: TypeAlias = Annotated[int, within(limits.ANSWER_TOKENS)]
Temperature: TypeAlias = Annotated[float, within(limits.TEMPERATURE)]
TopP: TypeAlias = Annotated[float, within(limits.TOP_P)]
TopK: TypeAlias = Annotated[int, within(limits.TOP_K)]
NumLogprobs: TypeAlias = Annotated[int, within(limits.LOGPROBS)]


class RequestBody(BaseModel):
    """A body, or an object within one, that tells its caller which of its fields mean nothing here."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    def warnings(self) -> list[str] | None:
        unknown = [f"unknown field {name[:MAX_NAME_CHARS]!r} was ignored" for name in self.unknown_fields()]
        return unknown or None

    def unknown_fields(self) -> list[str]:
        """By name, those of objects within with the path to them; the first MAX_WARNINGS."""
        return list(islice(self._unknown_fields(), MAX_WARNINGS))

    def _unknown_fields(self) -> Iterator[str]:
        extra = self.model_extra or {}
        yield from extra
        for name in self.model_fields_set:
            if name not in extra:
                yield from _unknown_within(name, getattr(self, name, None))


def _unknown_within(path: str, value: object) -> Iterator[str]:
    if isinstance(value, RequestBody):
        for name in value._unknown_fields():
            yield f"{path}.{name}"
    elif isinstance(value, list):
        # Of 100,000 ids it is told in a millisecond that none is an object.
        kinds = {kind for kind in set(map(type, value)) if issubclass(kind, (RequestBody, list))}
        for index, item in enumerate(value) if kinds else ():
            yield from _unknown_within(f"{path}.{index}", item)


class ReplyBody(BaseModel):
    """What a route answers, for the documentation: replies are written without going through it.

    A field that has a default may be missing in a reply.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), defer_build=True)


def _refuse(value: Any) -> None:
    if value is not None:
        raise PydanticCustomError("not_supported", "this server does not support it")


NotSupported = Annotated[None, BeforeValidator(_refuse)]
"""A field that others know and we do not: null, which means that it was not given, is all that it may be."""
