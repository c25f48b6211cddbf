"""A number in memory that two processes share: one raises it as long as it gets on, the other watches it."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import IO, TYPE_CHECKING

from roseinfer.engine.memory_file import memory_file

if TYPE_CHECKING:
    from roseinfer.core.batch import UInt64Array


class ProgressCounter:
    """Whoever makes it hands `fileno()` to the other process, which opens it with `open_counter`."""

    def __init__(self) -> None:
        self._file = memory_file("roseinfer-progress") or _disk_file()
        self._file.truncate(mmap.PAGESIZE)
        self._memory = mmap.mmap(self._file.fileno(), mmap.PAGESIZE, access=mmap.ACCESS_READ)

    def fileno(self) -> int:
        return self._file.fileno()

    @property
    def value(self) -> int:
        return int.from_bytes(self._memory[:8], "little")

    def close(self) -> None:
        self._memory.close()
        self._file.close()


def _disk_file() -> IO[bytes]:
    return tempfile.TemporaryFile()


def open_counter(fd: int) -> UInt64Array:
    """The counter [1], to be raised; takes the descriptor over."""
    import numpy as np

    memory = mmap.mmap(fd, mmap.PAGESIZE)
    os.close(fd)
    return np.frombuffer(memory, np.uint64, count=1)
