"""How much has been computed for each tenant: what fairness is measured by.

The virtual token counters of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): who waits and has
the lowest counter is served next, so tenants that always have something waiting get equal shares, and what one of them
does not use goes to the others.
"""

from __future__ import annotations

from collections.abc import Iterable

PROMPT_TOKEN = 1
OUTPUT_TOKEN = 2  # a step of its own, where a prompt's tokens share one


class TokenCounters:
    """One counter per tenant, in units of a computed prompt token; tokens from the prefix cache are free."""

    def __init__(self) -> None:
        self._counters: dict[str, int] = {}
        self._last_served = ""  # the tenant that was the last to have nothing waiting any more

    def __getitem__(self, tenant: str) -> int:
        return self._counters.get(tenant, 0)

    def charge(self, tenant: str, cost: int) -> None:
        self._counters[tenant] = self._counters.get(tenant, 0) + cost

    def start_waiting(self, tenant: str, waiting: Iterable[str]) -> None:
        """For a tenant that had nothing waiting, beside those in `waiting`: what it left unused before is no credit."""
        lowest = min((self[other] for other in waiting), default=self[self._last_served])
        self._counters[tenant] = max(self[tenant], lowest)

    def stop_waiting(self, tenant: str) -> None:
        """For a tenant whose last waiting request has started or is gone."""
        self._last_served = tenant

    def reset(self) -> None:
        """Where nobody has any request, everybody begins anew."""
        self._counters.clear()
