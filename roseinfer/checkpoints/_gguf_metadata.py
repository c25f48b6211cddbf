"""GGUF's metadata: typed values under string keys. Arrays are checked when read, made into lists when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from roseinfer.checkpoints._files import about
from roseinfer.checkpoints._gguf_reader import Reader
from roseinfer.core.errors import CheckpointError

MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 16 * 2**20
MAX_ARRAYS = 10_000
MAX_ARRAY_DEPTH = 4
MAX_ELEMENTS = 4_000_000  # of all arrays in a file; Gemma's vocabulary needs 0.8 million

_NUMBERS = {number: Struct(f"<{code}") for number, code in [*enumerate("BbHhIif"), (7, "B"), *enumerate("Qqd", 10)]}
_BOOL, _STRING, _ARRAY = 7, 8, 9


class Metadata(Mapping[str, Any]):
    """str, int, float, bool, or (nested) lists of them by key."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path = path
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Array):
            with about(self._path), about(f"key {key!r}"):
                value = self._values[key] = value.decode()
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _Array(NamedTuple):
    """An array whose place in the file has been checked."""

    decode: Callable[[], list[Any]]


def read_metadata(reader: Reader, num_keys: int, path: Path) -> Metadata:
    values: dict[str, Any] = {}
    parser = _Parser(reader)
    for index in range(num_keys):
        with about(f"metadata key {index}"):
            key = reader.text(MAX_KEY_BYTES)
        with about(f"key {key!r}"):
            if key in values:
                raise CheckpointError("is there twice")
            values[key] = parser.value()
    return Metadata(path, values)


class _Parser:
    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.num_arrays = 0
        self.num_elements = 0

    def value(self) -> Any:
        kind = self.reader.u32()
        if kind in _NUMBERS:
            value = self.reader.scalar(_NUMBERS[kind])
            return _as_bool(value) if kind == _BOOL else value
        if kind == _STRING:
            return self.reader.text(MAX_STRING_BYTES)
        if kind == _ARRAY:
            return _Array(self.array(depth=1))
        raise CheckpointError(f"unknown value type {kind}")

    def array(self, depth: int) -> Callable[[], list[Any]]:
        kind, count = self.reader.u32(), self.reader.u64()
        self._count(count)
        if kind in _NUMBERS:
            return self._numbers(kind, count)
        if kind == _STRING:
            start = self.reader.position
            return partial(self.reader.texts, start, self.reader.skip_texts(count))
        if kind == _ARRAY and depth < MAX_ARRAY_DEPTH:
            nested = [self.array(depth + 1) for _ in range(count)]
            return lambda: [decode() for decode in nested]
        raise CheckpointError("arrays nested too deep" if kind == _ARRAY else f"unknown element type {kind}")

    def _count(self, count: int) -> None:
        self.num_arrays += 1
        self.num_elements += count
        if count > self.reader.remaining:
            raise CheckpointError(f"an array of {count} elements in the {self.reader.remaining} bytes that are left")
        if self.num_elements > MAX_ELEMENTS or self.num_arrays > MAX_ARRAYS:
            raise CheckpointError(f"more than {MAX_ARRAYS} arrays or {MAX_ELEMENTS} elements in the file's metadata")

    def _numbers(self, kind: int, count: int) -> Callable[[], list[Any]]:
        layout = _NUMBERS[kind]
        start = self.reader.skip(count * layout.size)
        numbers = self.reader.data[start : self.reader.position].view(np.dtype(layout.format))
        if kind != _BOOL:
            return numbers.tolist
        if (numbers > 1).any():
            raise CheckpointError("a bool is neither 0 nor 1")
        return numbers.view(np.bool_).tolist


def _as_bool(value: int) -> bool:
    if value > 1:
        raise CheckpointError(f"a bool is neither 0 nor 1 but {value}")
    return bool(value)
