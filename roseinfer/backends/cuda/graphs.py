"""CUDA graphs of decode steps: a hundred launches that the host issues as one.

A step is captured when its key comes the second time: the first one runs launch by launch, which also compiles the
kernels, something that a capture does not allow. What is captured reads its inputs from the same memory in each replay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

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
        is_known = key in self._replays
        replay = self._replays.get(key)
        if not is_known:
            self._remember(key, None)
            run()
            return
        if replay is None:
            replay = self._capture(run)
            self._remember(key, replay)
        self._replays.move_to_end(key)
        replay()

    def clear(self) -> None:
        self._replays.clear()

    def _remember(self, key: Hashable, replay: Run | None) -> None:
        self._replays[key] = replay
        while len(self._replays) > self._max_graphs:
            self._replays.popitem(last=False)


class CudaCapture:
    """`Capture` on one stream. All graphs share a pool, which stays empty: the program's buffers are made before."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        # Not `torch.cuda.graph`, which collects garbage and empties the allocator's cache first.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            run()
        finally:
            graph.capture_end()
        return graph.replay
