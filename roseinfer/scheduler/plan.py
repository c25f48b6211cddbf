"""The step being planned: what is left of its budget, its rows, and the full blocks they work on."""

from __future__ import annotations

from collections.abc import Iterable

from roseinfer.core.request import Request


class Plan:
    """`counts` holds the new tokens of each row, in the order of the rows; `budget` what may still be added."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.counts: dict[Request, int] = {}
        self._worker: dict[bytes, Request] = {}  # by the digest of the block

    def add(self, request: Request, count: int, digests: Iterable[bytes]) -> None:
        self.counts[request] = count
        self.budget -= count
        for digest in digests:
            self._worker[digest] = request

    def remove(self, request: Request) -> None:
        """A row whose request is preempted by one before it, if it was planned already."""
        self.budget += self.counts.pop(request, 0)

    def works_on(self, digest: bytes) -> bool:
        """Whether a row computes tokens of the block with this content."""
        return self._worker.get(digest) in self.counts

    def brings(self, digest: bytes) -> bool:
        """The same of a step under way: whether the block is still held, and will be published."""
        return self.works_on(digest) and self._worker[digest].is_running
