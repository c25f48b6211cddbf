"""A position in a GGUF file; every read is held against the bytes that remain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct
from typing import Any

from roseinfer.checkpoints._files import Bytes
from roseinfer.core.errors import CheckpointError

_U32, _U64 = Struct("<I"), Struct("<Q")


class Reader:
    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.buffer = data.data  # memoryview slices and unpacks faster than an array
        self.position = 0

    @property
    def remaining(self) -> int:
        return len(self.data) - self.position

    def skip(self, num_bytes: int) -> int:
        """Moves on; returns where it was."""
        if num_bytes > self.remaining:
            raise CheckpointError(f"the file ends early: {num_bytes} bytes wanted, {self.remaining} left")
        start = self.position
        self.position += num_bytes
        return start

    def scalar(self, layout: Struct) -> Any:
        return layout.unpack_from(self.buffer, self.skip(layout.size))[0]

    def u32(self) -> int:
        return int(self.scalar(_U32))

    def u64(self) -> int:
        return int(self.scalar(_U64))

    def text(self, max_bytes: int) -> str:
        length = self.u64()
        if length > max_bytes:
            raise CheckpointError(f"a string of {length} bytes, at most {max_bytes} are allowed")
        start = self.skip(length)
        with as_utf8():
            return str(self.buffer[start : start + length], "utf-8")

    def skip_texts(self, count: int) -> None:
        """The hot loop of opening a file: a vocabulary has up to some hundred thousand strings."""
        position, last, length_at, buffer = self.position, len(self.data) - 8, _U64.unpack_from, self.buffer
        for _ in range(count):
            if position > last:
                break
            position += 8 + length_at(buffer, position)[0]
        else:
            self.skip(position - self.position)
            return
        raise CheckpointError(f"the file ends inside an array of {count} strings")

    def texts(self, start: int, end: int, count: int) -> list[str]:
        """The `count` strings between two positions that `skip_texts` went between."""
        raw = bytes(self.buffer[start:end])  # slices of bytes are cheaper than slices of a view
        position, strings, length_at = 0, [], _U64.unpack_from
        with as_utf8():
            for _ in range(count):
                begin = position + 8
                position = begin + length_at(raw, position)[0]
                strings.append(raw[begin:position].decode())
        return strings


@contextmanager
def as_utf8() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise CheckpointError(f"a string is not UTF-8: {error.reason}") from error
