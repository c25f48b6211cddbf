"""The requests that hold no blocks, in the order in which they are to start."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from roseinfer.core.request import Request
from roseinfer.scheduler.token_counters import TokenCounters

_by_order = attrgetter("order")

_Turn = tuple[int, tuple[int, int], str, Request]  # the tenant's counter, and what its next request has


class WaitingQueue:
    """Lower priorities first; among equals the tenant for which least was computed; of one tenant the oldest.

    Each priority has a lane for each tenant that waits in it, sorted by age.
    """

    def __init__(self, counters: TokenCounters) -> None:
        self._counters = counters
        self._lanes: dict[int, dict[str, list[Request]]] = {}
        self._num_of: dict[str, int] = {}  # of tenants that wait, in any lane
        self._num_requests = 0

    def __len__(self) -> int:
        return self._num_requests

    def __iter__(self) -> Iterator[Request]:
        return self.candidates(self._num_requests)

    def __contains__(self, request: Request) -> bool:
        lane = self._lanes.get(request.params.priority, {}).get(request.params.tenant, [])
        index = bisect_left(lane, request.order, key=_by_order)
        return index < len(lane) and lane[index] is request

    def add(self, request: Request) -> None:
        tenant = request.params.tenant
        if tenant not in self._num_of:
            self._counters.start_waiting(tenant, self._num_of)
        lanes = self._lanes.setdefault(request.params.priority, {})
        insort(lanes.setdefault(tenant, []), request, key=_by_order)
        self._num_of[tenant] = self._num_of.get(tenant, 0) + 1
        self._num_requests += 1

    def remove(self, request: Request) -> None:
        """Raises ValueError for one that does not wait here."""
        if request not in self:
            raise ValueError(f"{request} does not wait")
        priority, tenant = request.params.priority, request.params.tenant
        lane = self._lanes[priority][tenant]
        del lane[bisect_left(lane, request.order, key=_by_order)]
        if not lane:
            self._forget_lane(priority, tenant)
        self._num_of[tenant] -= 1
        self._num_requests -= 1
        if not self._num_of[tenant]:
            del self._num_of[tenant]
            self._counters.stop_waiting(tenant)

    def candidates(self, limit: int) -> Iterator[Request]:
        """The first `limit` requests as they wait now. What is charged on the way counts for those that follow."""
        for priority in sorted(self._lanes):
            for request in self._in_turn(priority, limit):
                limit -= 1
                yield request

    def _in_turn(self, priority: int, limit: int) -> Iterator[Request]:
        lanes = {tenant: iter(lane[:limit]) for tenant, lane in self._lanes.get(priority, {}).items()}
        turns: list[_Turn] = []
        for tenant, lane in lanes.items():
            self._take_turn(turns, tenant, lane)
        while turns and limit > 0:
            _, _, tenant, request = heapq.heappop(turns)
            limit -= 1
            yield request
            self._take_turn(turns, tenant, lanes[tenant])

    def _take_turn(self, turns: list[_Turn], tenant: str, lane: Iterator[Request]) -> None:
        request = next(lane, None)
        if request is not None:
            heapq.heappush(turns, (self._counters[tenant], request.order, tenant, request))

    def _forget_lane(self, priority: int, tenant: str) -> None:
        del self._lanes[priority][tenant]
        if not self._lanes[priority]:
            del self._lanes[priority]
