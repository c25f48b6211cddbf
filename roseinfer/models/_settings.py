"""A checkpoint's configuration, read value by value: each is checked, and an error names its key."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, SupportsIndex

from roseinfer.core.errors import CheckpointError, UnsupportedModelError

# Far above every known model; they bound what a hostile file can make us allocate before its tensors are compared.
MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_HEADS = 4096
MAX_HEAD_DIM = 4096
MAX_VOCAB_SIZE = 1 << 24
MAX_POSITIONS = 1 << 26

_REQUIRED: Any = object()


class Settings:
    """Reads `values` by key. Several keys are several spellings of one setting: the first one present counts.

    A JSON null counts as absent. An absent value without a default, a wrong type and a value out of range are
    each a `CheckpointError` that names the key with `label` in front.
    """

    def __init__(self, values: Mapping[str, Any], label: str = "") -> None:
        self._values = values
        self._label = label

    @staticmethod
    def below(prefix: str, values: Mapping[str, Any]) -> Settings:
        """The settings whose flat keys start with `prefix`, as GGUF writes them: "llama.block_count"."""
        return Settings({key[len(prefix) :]: values[key] for key in values if key.startswith(prefix)}, prefix)

    def section(self, *keys: str) -> Settings:
        """A mapping inside the mapping; empty if absent."""
        name, value = self._find(keys)
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{name} must be a mapping, got {_short(value)}")
        return Settings(value, f"{name}.")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Settings:
        given = {key: value for key, value in self._values.items() if value is not None}
        return Settings({**defaults, **given}, self._label)

    def has(self, *keys: str) -> bool:
        return self._find(keys)[1] is not None

    def integer(self, *keys: str, default: int = _REQUIRED, low: int = 1, high: int = MAX_WIDTH) -> int:
        name, value = self._get(keys, default)
        return _integer(name, value, low, high)

    def number(self, *keys: str, default: float = _REQUIRED, low: float = 1e-12, high: float = 1e12) -> float:
        """Scales, bases and eps: all of them above 0."""
        name, value = self._get(keys, default)
        try:
            number = math.nan if isinstance(value, bool | str) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:
            raise CheckpointError(f"{name} must be a number between {low:g} and {high:g}, got {_short(value)}")
        return number

    def boolean(self, *keys: str, default: bool = _REQUIRED) -> bool:
        name, value = self._get(keys, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{name} must be true or false, got {_short(value)}")
        return value

    def text(self, *keys: str, default: str = _REQUIRED) -> str:
        name, value = self._get(keys, default)
        if not isinstance(value, str):
            raise CheckpointError(f"{name} must be a string, got {_short(value)}")
        return value

    def sequence(self, key: str, length: int) -> list[Any]:
        name, value = self._get((key,), _REQUIRED)
        if not isinstance(value, list | tuple) or len(value) != length:
            raise CheckpointError(f"{name} must be a list of {length} values, got {_short(value)}")
        return list(value)

    def token_ids(self, *keys: str, vocab_size: int) -> tuple[int, ...]:
        """One token id or a list of them; () if absent."""
        name, value = self._find(keys)
        if value is None:
            return ()
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_integer(name, item, 0, vocab_size - 1) for item in items)

    def require(self, key: str, *allowed: Any) -> None:
        """`UnsupportedModelError` unless the value is absent or one of `allowed`."""
        name, value = self._find((key,))
        if value is not None and value not in allowed:
            expected = " or ".join(repr(a) for a in allowed) or "unset"
            raise UnsupportedModelError(f"{name} = {_short(value)} is not supported (only {expected})")

    def _find(self, keys: tuple[str, ...]) -> tuple[str, Any]:
        for key in keys:
            if (value := self._values.get(key)) is not None:
                return self._label + key, value
        return self._label + keys[0], None

    def _get(self, keys: tuple[str, ...], default: Any) -> tuple[str, Any]:
        name, value = self._find(keys)
        value = default if value is None else value
        if value is _REQUIRED:
            raise CheckpointError(f"the configuration has no {name}")
        return name, value


def _integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise CheckpointError(f"{name} must be an integer, got {_short(value)}")
    number = operator.index(value)
    if not low <= number <= high:
        raise CheckpointError(f"{name} must be between {low} and {high}, got {_short(number)}")
    return number


def _short(value: object) -> str:
    """At most 80 characters of `value`, which may be a hostile file's list of millions."""
    if isinstance(value, list | tuple | Mapping) and len(value) > 8:
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
