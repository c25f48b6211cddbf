"""Fills the masks of constrained requests while the program computes their logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from roseinfer.core.batch import LogitEdits
from roseinfer.core.request import Request
from roseinfer.scheduler.edits import fill_masks


class MaskWorker:
    """A thread, started when the first mask is wanted; `on_filled` is called there after each mask."""

    def __init__(self, on_filled: Callable[[], None]) -> None:
        self._on_filled = on_filled
        self._executor: ThreadPoolExecutor | None = None

    def start(self, requests: Sequence[Request], edits: LogitEdits | None) -> Future[dict[Request, Exception]] | None:
        """The sampled requests' masks; the result says what went wrong with whom. None if there are none to fill."""
        if edits is None or all(request.constraint is None for request in requests):
            return None
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="roseinfer-masks")
        return self._executor.submit(fill_masks, requests, edits, self._on_filled)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
