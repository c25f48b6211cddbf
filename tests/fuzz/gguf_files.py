"""GGUF files as descriptions that can be damaged before they are written: keys of any type, tensors with any claim."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fuzz.random_models import Sizes, Weight, gguf_settings
from tests.mutants import GgufBytes

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NUMBER_CODES = dict(enumerate("BbHhIif")) | {BOOL: "B"} | dict(enumerate("Qqd", 10))
TENSOR_KINDS = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
TENSOR_KINDS |= {"q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14}


@dataclass
class Array:
    kind: int  # of its elements
    items: list[Any]
    count: int | None = None  # as the file claims; None = as many as there are


@dataclass
class Key:
    name: str | bytes
    kind: int
    value: Any


@dataclass
class Entry:
    """A tensor's description, and its bytes, which are written in order."""

    name: str | bytes
    dims: list[int]
    kind: int
    data: bytes
    offset: int | None = None  # None = where the bytes are


@dataclass
class GgufFile:
    keys: list[Key]
    entries: list[Entry] = field(default_factory=list)
    alignment: int = 32

    def copy(self) -> GgufFile:
        """Deep enough for mutators, which exchange values and never change one in place."""
        return GgufFile([replace(key) for key in self.keys], [replace(entry) for entry in self.entries], self.alignment)

    def layout(self) -> tuple[GgufBytes, bytes]:
        """The head, which knows where its numbers lie, and the tensors' bytes."""
        gguf = GgufBytes().header(len(self.entries), len(self.keys))
        for key in self.keys:
            _write_value(gguf.key(key.name, key.kind), key.kind, key.value)
        data = bytearray()
        for entry in self.entries:
            offset = len(data) if entry.offset is None else entry.offset
            gguf.tensor(entry.name, entry.dims, entry.kind, offset)
            data += entry.data + bytes(-len(entry.data) % self.alignment)
        return gguf, bytes(data)

    def encode(self) -> bytes:
        gguf, data = self.layout()
        return gguf.end(data, self.alignment)


def _write_value(gguf: GgufBytes, kind: int, value: Any) -> None:
    if kind == STRING:
        gguf.text(value)
    elif kind == ARRAY:
        gguf.number(value.kind, 4).number(len(value.items) if value.count is None else value.count, 8)
        if value.kind in NUMBER_CODES:
            gguf.data += b"".join(pack_number(value.kind, item) for item in value.items)
        else:
            for item in value.items:
                _write_value(gguf, value.kind, item)
    elif kind in NUMBER_CODES:
        packed = pack_number(kind, value)
        gguf.number(int.from_bytes(packed, "little"), len(packed))


def pack_number(kind: int, value: Any) -> bytes:
    """Integers that do not fit are cut, and floats made whole, so that any value can be written as any kind."""
    code = NUMBER_CODES[kind]
    if code in "fd":
        try:
            return struct.pack(f"<{code}", value)
        except OverflowError:
            return struct.pack(f"<{code}", float("inf"))
    size = struct.calcsize(code)
    return (int(value) % 2 ** (8 * size) if abs(value) < float("inf") else 0).to_bytes(size, "little")


def typed(name: str, value: Any) -> Key:
    """A key of the kind that converters choose for the value."""
    if isinstance(value, list):
        return Key(name, ARRAY, Array(_kind_of(value[0]) if value else I32, value))
    return Key(name, _kind_of(value), value)


def _kind_of(value: Any) -> int:
    kinds = {bool: BOOL, int: U32, float: F32, str: STRING, bytes: STRING}
    kind = kinds[type(value)]
    return I32 if kind == U32 and value < 0 else kind


def gguf_model(architecture: str, sizes: Sizes, weights: dict[str, Weight], vocabulary: dict[str, Any]) -> GgufFile:
    """A file that loads. `vocabulary` holds values by key."""
    settings = {f"{architecture}.{key}": value for key, value in gguf_settings(architecture, sizes).items()}
    values = {"general.architecture": architecture, **settings, **vocabulary}
    entries = [
        Entry(name, list(weight.shape[::-1]), TENSOR_KINDS[weight.format], weight.data)
        for name, weight in weights.items()
    ]
    return GgufFile([typed(name, value) for name, value in values.items()], entries)
