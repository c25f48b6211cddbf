"""CUDA graphs of decode steps: a hundred launches that the host issues as one.

A step is captured when its key comes the second time: the first one runs launch by launch, which also compiles the
kernels, something that a capture does not allow. What is captured reads its inputs from the same memory in each replay.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

logger = logging.getLogger(__name__)

MAX_GRAPHS = 64  # some megabytes each; the one that was not used the longest goes

Run = Callable[[], None]
Capture = Callable[[Run], Run]


class DecodeGraphs:
    """Runs steps by their key, replaying those that have been captured. `capture` None: no step ever is."""

    def __init__(self, capture: Capture | None, max_graphs: int = MAX_GRAPHS) -> None:
        self._capture = capture
        self._max_graphs = max_graphs
        self._replays: OrderedDict[Hashable, Run | None] = OrderedDict()  # None: seen once

    def __len__(self) -> int:
        """How many are captured."""
        return sum(replay is not None for replay in self._replays.values())

    def run(self, key: Hashable, run: Run) -> None:
        """`run` must do the same whenever it has this key, but for the content of the tensors that it reads."""
        if self._capture is None:
            run()
            return
        if key not in self._replays:
            run()
            self._remember(key, None)
            return
        replay = self._replays[key]
        if replay is None:
            replay = self._captured(run)
            self._remember(key, replay)
        self._replays.move_to_end(key)
        replay()

    def clear(self) -> None:
        self._replays.clear()

    def _captured(self, run: Run) -> Run:
        """The replay; a step that cannot be captured, for example for want of memory, goes on as it did before."""
        assert self._capture is not None
        try:
            return self._capture(run)
        except RuntimeError as error:
            logger.warning("a step was not captured in a CUDA graph: %s", error)
            return run

    def _remember(self, key: Hashable, replay: Run | None) -> None:
        self._replays[key] = replay
        while len(self._replays) > self._max_graphs:
            self._replays.popitem(last=False)


class CudaCapture:
    """`Capture` on the current stream, which is not the default one."""

    def __call__(self, run: Run) -> Run:
        # Not `torch.cuda.graph`, which collects garbage and empties the allocator's cache first. No pool is shared: it
        # would be gone with the last graph, and hardly anything is allocated, since buffers are made beforehand.
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            run()
        finally:
            graph.capture_end()
        return graph.replay
