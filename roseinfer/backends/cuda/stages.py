"""Memory on both sides of the device's border, for calls that send some arrays and get some numbers back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from roseinfer.core.batch import Int32Array

ALIGNMENT = 4  # numbers of 4 bytes: kernels load 16 bytes at a time
NUM_STAGES = 2  # calls whose results may be under way


def aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def offsets_of(arrays: Sequence[npt.NDArray[np.generic]]) -> list[int]:
    """Where each lies behind the one before, and, last, the numbers in all."""
    offsets: list[int] = np.cumsum([0, *(aligned(array.size) for array in arrays)]).tolist()
    return offsets


def copy_arrays(
    arrays: Sequence[npt.NDArray[np.generic]], offsets: list[int], pinned: torch.Tensor, on_device: torch.Tensor
) -> list[torch.Tensor]:
    """Copies arrays of 4-byte numbers to the device in one go; int32[size] of their bits, for each."""
    host = pinned.numpy()
    for array, offset in zip(arrays, offsets, strict=False):
        host[offset : offset + array.size] = array.reshape(-1).view(np.int32)
    on_device[: offsets[-1]].copy_(pinned[: offsets[-1]], non_blocking=True)
    return [on_device[a : a + array.size] for array, a in zip(arrays, offsets, strict=False)]


class Arrival:
    """Numbers on their way to the host."""

    def __init__(self, memory: torch.Tensor, event: torch.cuda.Event | None) -> None:
        self._memory = memory
        self._event = event
        self._numbers: Int32Array | None = None

    def numbers(self) -> Int32Array:
        """Waits for them; a copy, so that the memory may be used again."""
        if self._numbers is None:
            if self._event is not None:
                self._event.synchronize()
            self._numbers = self._memory.numpy().copy()
        return self._numbers


class Stage:
    """What one call sends and gets back: `send`, `results`, kernels, `receive`."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._sent = torch.empty(0, dtype=torch.int32, device=device)
        self._results = torch.empty(0, dtype=torch.int32, device=device)
        self._pinned = torch.empty(0, dtype=torch.int32)
        self._arrived = torch.empty(0, dtype=torch.int32)
        self._arrival: Arrival | None = None

    def send(self, arrays: Sequence[npt.NDArray[np.generic]]) -> list[torch.Tensor]:
        """Copies arrays of 4-byte numbers to the device in one go; int32[size] of their bits, for each."""
        if self._arrival is not None:
            self._arrival.numbers()  # of the call before the last; then nothing reads the memory any more
        offsets = offsets_of(arrays)
        if offsets[-1] > len(self._sent):
            self._pinned, self._sent = self._pair(2 * offsets[-1], self._sent.device)
        return copy_arrays(arrays, offsets, self._pinned, self._sent)

    def results(self, size: int) -> torch.Tensor:
        """int32[size] on the device, of any content."""
        if size > len(self._results):
            self._arrived, self._results = self._pair(2 * size, self._results.device)
        return self._results[:size]

    def receive(self, size: int) -> Arrival:
        """The results, as they will be when the kernels launched so far have run."""
        arrived = self._arrived[:size]
        arrived.copy_(self._results[:size], non_blocking=True)
        event = None
        if self._is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._arrival = Arrival(arrived, event)
        return self._arrival

    def _pair(self, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        host = torch.empty(size, dtype=torch.int32, pin_memory=self._is_cuda)
        return host, torch.empty(size, dtype=torch.int32, device=device)


class Stages:
    """Calls take them in turn, so that the one before may still be under way."""

    def __init__(self, device: torch.device) -> None:
        self._stages = [Stage(device) for _ in range(NUM_STAGES)]
        self._turn = 0

    def next(self) -> Stage:
        self._turn = (self._turn + 1) % NUM_STAGES
        return self._stages[self._turn]


class WorkRows:
    """[up to max_rows, width] on the device, of any content; made when they are first needed."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device, max_rows: int) -> None:
        self._memory = torch.empty((0, width), dtype=dtype, device=device)
        self._max_rows = max_rows

    def take(self, count: int) -> torch.Tensor:
        if count > len(self._memory):
            num_rows = max(count, min(2 * count, self._max_rows))
            empty = self._memory[:0]
            self._memory = empty  # is given back before there is more
            self._memory = empty.new_empty((num_rows, empty.shape[1]))
        return self._memory[:count]
