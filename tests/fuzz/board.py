"""A file shared by a fuzzing child and its parent: which mutant is being received, and what became of the others."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

_CURRENT = struct.Struct("<q")
PENDING, FAULTY = 0, 1  # below the codes of outcomes


class Board:
    """One byte per mutant from `start` on: PENDING, FAULTY, or 2 + the index of its outcome."""

    def __init__(self, path: Path, start: int, count: int) -> None:
        if not path.exists():
            path.write_bytes(bytes(_CURRENT.size + count))
        file = os.open(path, os.O_RDWR)
        try:
            self._data = mmap.mmap(file, 0)
        finally:
            os.close(file)
        self.start = start
        self.current = start

    @property
    def current(self) -> int:
        return int(_CURRENT.unpack_from(self._data)[0])

    @current.setter
    def current(self, index: int) -> None:
        _CURRENT.pack_into(self._data, 0, index)

    def mark(self, index: int, code: int) -> None:
        self._data[_CURRENT.size + index - self.start] = code

    def codes(self) -> bytes:
        return self._data[_CURRENT.size :]
