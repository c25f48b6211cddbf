"""Where values lie: buffers whose lives do not overlap share memory."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(slots=True)
class Span:
    """A buffer of `size` bytes that is alive from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


def plan_memory(spans: list[Span]) -> tuple[list[int], int]:
    """Offsets of the buffers, and the bytes needed in all: the largest first, each at the lowest free place."""
    offsets = [0] * len(spans)
    placed: list[int] = []
    total = 0
    for i in sorted(range(len(spans)), key=lambda i: (-spans[i].size, spans[i].first)):
        span = spans[i]
        neighbours = [j for j in placed if spans[j].first <= span.last and span.first <= spans[j].last]
        offset = 0
        for j in sorted(neighbours, key=lambda j: offsets[j]):
            if offset + span.size <= offsets[j]:
                break
            offset = max(offset, _align(offsets[j] + spans[j].size))
        offsets[i] = offset
        placed.append(i)
        total = max(total, offset + span.size)
    return offsets, _align(total)


def _align(size: int) -> int:
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
