"""Who may come in: a bounded number of requests, of which no caller gets so many that none is left for the others.

Bookkeeping only. A refusal is two comparisons, so that a server that is asked ten times too much spends its time on
those whom it serves.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from roseinfer.core.errors import InvalidRequestError, OverloadedError, RateLimitedError

MIN_SECONDS, MAX_SECONDS = 1.0, 60.0  # what `retry_after` lies between
_NUM_FINISHED = 64  # the last ones, whose rate is the rate of late


class Admission:
    """Counts live requests, running or waiting, of each tenant. From any thread.

    At most `max_running + max_queue` are live. Of `num_tenants` callers with keys of their own, one may hold all but a
    reserve, which is half of an equal share for each of the others: of 288 places and 4 tenants a single one gets
    288 - 3 · 288 // 8 = 180. With one tenant, or none, there is no reserve. A call that asks for several sequences
    gets all its places or none.
    """

    def __init__(
        self,
        max_running: int,
        max_queue: int,
        num_tenants: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_running < 1 or min(max_queue, num_tenants) < 0:
            raise ValueError(f"{max_running} running and {max_queue} waiting requests of {num_tenants} are no limits")
        self.max_live = max_running + max_queue
        self.max_per_tenant = _share(self.max_live, num_tenants)
        self._max_running = max_running
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows
        self._num_live = 0
        self._num_of: dict[str, int] = {}  # of tenants that have any
        self._finish_times: deque[float] = deque(maxlen=_NUM_FINISHED)
        self._busy_since = 0.0

    @property
    def num_live(self) -> int:
        return self._num_live

    @property
    def num_tenants(self) -> int:
        """Tenants that have something running or waiting."""
        return len(self._num_of)

    @property
    def is_full(self) -> bool:
        return self._num_live >= self.max_live

    @property
    def may_refuse(self) -> bool:
        """Whether there are tenants for whom there is no room; where not, nobody has to ask for one place."""
        return self._num_live >= self.max_per_tenant

    def num_live_of(self, tenant: str) -> int:
        return self._num_of.get(tenant, 0)

    @property
    def retry_after(self) -> float:
        """Seconds until there will be room: as many requests as wait now will have finished, at the rate of late."""
        with self._lock:
            return self._seconds_until(self._num_live - self._max_running)

    def check(self, count: int = 1, tenant: str = "") -> None:
        """Raises what `admit` would raise now."""
        with self._lock:
            self._check(count, tenant)

    def admit(self, count: int = 1, tenant: str = "") -> None:
        """Takes `count` places. Raises OverloadedError where there are not so many, RateLimitedError where there are,
        but not for this tenant, and InvalidRequestError where there never will be so many for anybody.
        """
        with self._lock:
            self._check(count, tenant)
            if not self._num_live:
                self._finish_times.clear()  # idle time says nothing of the rate
                self._busy_since = self._clock()
            self._num_live += count
            self._num_of[tenant] = self._num_of.get(tenant, 0) + count

    def release(self, tenant: str = "") -> None:
        """Gives back the place of one request, which is finished. Raises ValueError for a tenant that has none."""
        with self._lock:
            if tenant not in self._num_of:
                raise ValueError(f"tenant {tenant!r} has no live request")
            self._num_live -= 1
            self._num_of[tenant] -= 1
            if not self._num_of[tenant]:
                del self._num_of[tenant]
            self._finish_times.append(self._clock())

    def _check(self, count: int, tenant: str) -> None:
        num_own = self._num_of.get(tenant, 0)
        if count > self.max_per_tenant:
            limit = f"at most {self.max_per_tenant} are taken at once"
            raise InvalidRequestError(f"{count} sequences were asked for, of one caller {limit}", "n")
        if self._num_live + count > self.max_live:
            num_waiting = self._num_live - self._max_running
            raise OverloadedError(f"{self._num_live} requests are running or waiting", self._seconds_until(num_waiting))
        if num_own + count > self.max_per_tenant:
            raise RateLimitedError(
                f"{num_own} of your requests are running or waiting, at most {self.max_per_tenant} may at once",
                self._seconds_until(self._num_live - self._max_running),
            )

    def _seconds_until(self, num_finished: int) -> float:
        """Until so many more will have finished; before any has, as if those that run took as long again."""
        now = self._clock()
        if self._finish_times:
            seconds_each = (now - self._first_time()) / len(self._finish_times)
        else:
            seconds_each = max(now - self._busy_since, MIN_SECONDS) / self._max_running
        return min(max(seconds_each * num_finished, MIN_SECONDS), MAX_SECONDS)

    def _first_time(self) -> float:
        """Since when those have finished whose times are kept."""
        return self._finish_times[0] if len(self._finish_times) == _NUM_FINISHED else self._busy_since


def _share(max_live: int, num_tenants: int) -> int:
    """The most that one tenant may hold."""
    if num_tenants < 2:
        return max_live
    return max(1, max_live - (num_tenants - 1) * max_live // (2 * num_tenants))
