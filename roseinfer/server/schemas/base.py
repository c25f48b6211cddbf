"""What all bodies have in common. Types are strict: `true` is no 1 and `"1"` is no number."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_INT32 = 2**31 - 1
MAX_IDS = 2**18  # token ids in one list
MAX_ITEMS = 4096  # in any other list
MAX_WARNINGS = 16
MAX_NAME_CHARS = 64

T = TypeVar("T")

# Of a list that is wrong throughout only the first error is told: there could be millions.
Items: TypeAlias = Annotated[list[T], Field(max_length=MAX_ITEMS, fail_fast=True)]


class RequestBody(BaseModel):
    """A body, or an object within one, that tells its caller which of its fields mean nothing here."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    def warnings(self) -> list[str] | None:
        unknown = [f"unknown field {name[:MAX_NAME_CHARS]!r} was ignored" for name in self.unknown_fields()]
        return unknown[:MAX_WARNINGS] or None

    def unknown_fields(self) -> list[str]:
        """By name, those of objects within with the path to them."""
        names = list(self.model_extra or ())
        for name in self.model_fields_set:
            names += _unknown_within(name, getattr(self, name, None))
        return names


def _unknown_within(path: str, value: object) -> list[str]:
    if isinstance(value, RequestBody):
        return [f"{path}.{name}" for name in value.unknown_fields()]
    if isinstance(value, list):
        return [name for index, item in enumerate(value) for name in _unknown_within(f"{path}.{index}", item)]
    return []


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
