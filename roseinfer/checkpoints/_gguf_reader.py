"""A position in a GGUF file; every read is held against the bytes that remain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct
from struct import error as StructError
from typing import Any

import numpy as np
import numpy.typing as npt

from roseinfer.checkpoints._files import Bytes
from roseinfer.core.errors import CheckpointError

Positions = npt.NDArray[np.int64]

_U32, _U64 = Struct("<I"), Struct("<Q")
_MARK = "\x1e"  # ASCII's record separator
_BYTES_PER_STRING = 32  # with its length; vocabularies have about 17
_MAX_SEARCHED_BYTES = 16 * 2**20


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

    def skip_texts(self, count: int) -> Positions:
        """Moves behind `count` strings, and returns where each of them ends."""
        ends = self._find_ends(count)
        if ends is None:
            ends = self._walk(count)
        if count:
            self.skip(int(ends[-1]) - self.position)
        return ends

    def _find_ends(self, count: int) -> Positions | None:
        """All at once: where strings are short and hold no zeros, seven zeros follow the first byte of each length.

        A vocabulary has up to some hundred thousand strings. None where `count` such lengths do not form a chain.
        """
        raw = self.data[self.position : self.position + min(_BYTES_PER_STRING * count, _MAX_SEARCHED_BYTES)]
        zeros = raw[1:] == 0
        for step in (1, 2, 3):  # runs of two, of four, of seven
            zeros = zeros[:-step] & zeros[step:]
        begins = np.flatnonzero(zeros)[:count]
        ends = begins + 8 + raw[begins]
        is_chain = len(begins) == count and not begins[:1].any() and np.array_equal(begins[1:], ends[:-1])
        return ends + self.position if is_chain else None

    def _walk(self, count: int) -> Positions:
        """The same from string to string."""
        position, buffer, length_at = self.position, self.buffer, _U64.unpack_from
        steps = (position := position + 8 + length_at(buffer, position)[0] for _ in range(count))
        try:
            return np.fromiter(steps, np.int64, count)
        except (StructError, OverflowError):
            raise CheckpointError(f"the file ends inside an array of {count} strings") from None

    def texts(self, start: int, ends: Positions) -> list[str]:
        """The strings that `skip_texts` went over, beginning at `start`."""
        if not len(ends):
            return []
        raw = self.data[start : int(ends[-1])]
        ends = ends - start
        begins = np.concatenate(([0], ends[:-1]))  # of the lengths before the strings
        with as_utf8():
            strings = _split(raw, begins, int((ends - begins).max()))
            return _cut(raw.tobytes(), begins.tolist(), ends.tolist()) if strings is None else strings


def _split(raw: Bytes, begins: Positions, longest: int) -> list[str] | None:
    """All strings by one `split`, in half the time of cutting; None if one of them holds the mark or a zero byte.

    A length's first byte becomes the mark, its other seven become zero and are left out.
    """
    raw = raw.copy()
    raw[begins] = ord(_MARK)
    for i in range(1, 8):
        if longest >> 8 * i:
            raw[begins + i] = 0
    if len(raw) - np.count_nonzero(raw) != 7 * len(begins):
        return None
    _, *strings = raw.tobytes().translate(None, b"\0").decode().split(_MARK)
    return strings if len(strings) == len(begins) else None


def _cut(raw: bytes, begins: list[int], ends: list[int]) -> list[str]:
    return [raw[begin + 8 : end].decode() for begin, end in zip(begins, ends, strict=True)]


@contextmanager
def as_utf8() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise CheckpointError(f"a string is not UTF-8: {error.reason}") from error
