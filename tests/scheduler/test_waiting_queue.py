"""Whose turn it is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roseinfer.core.request import Request
from roseinfer.scheduler.token_counters import TokenCounters
from roseinfer.scheduler.waiting_queue import WaitingQueue
from tests.fake_engine import make_request

TENANTS = ("", "a", "b", "c")


def request_of(tenant: str, arrival: int, priority: int = 0) -> Request:
    return Request(make_request(f"{tenant}{arrival}", [1], tenant=tenant, priority=priority), arrival)


def names(queue: WaitingQueue, limit: int = 100) -> list[str]:
    return [request.request_id for request in queue.candidates(limit)]


def filled(*requests: Request) -> tuple[WaitingQueue, TokenCounters]:
    counters = TokenCounters()
    queue = WaitingQueue(counters)
    for request in requests:
        queue.add(request)
    return queue, counters


def test_a_single_tenant_waits_by_priority_and_age() -> None:
    queue, _ = filled(*[request_of("a", i, priority) for i, priority in enumerate([1, 0, 1, -1, 0])])
    assert names(queue) == ["a3", "a1", "a4", "a0", "a2"]
    assert names(queue, 3) == ["a3", "a1", "a4"]
    assert names(queue, 0) == []


def test_the_tenant_with_the_lowest_counter_is_first() -> None:
    queue, counters = filled(request_of("a", 0), request_of("a", 1), request_of("b", 2))
    assert names(queue) == ["a0", "a1", "b2"]  # by age while the counters are equal
    counters.charge("a", 1)
    assert names(queue) == ["b2", "a0", "a1"]


def test_priority_goes_before_shares() -> None:
    queue, counters = filled(request_of("a", 0, priority=-1), request_of("b", 1), request_of("a", 2))
    counters.charge("a", 100)
    assert names(queue) == ["a0", "b1", "a2"]


def test_what_is_charged_on_the_way_counts_for_the_next() -> None:
    queue, counters = filled(*[request_of("a", i) for i in range(4)], *[request_of("b", i) for i in range(4, 8)])
    turns = []
    for request in queue.candidates(100):
        turns.append(request.request_id)
        counters.charge(request.params.tenant, 3 if request.params.tenant == "a" else 1)
    assert turns == ["a0", "b4", "b5", "b6", "a1", "b7", "a2", "a3"]


def test_the_queue_may_change_while_it_is_looked_through() -> None:
    queue, _ = filled(request_of("a", 0), request_of("b", 1), request_of("a", 2, priority=1))
    seen = []
    for request in queue.candidates(100):
        seen.append(request.request_id)
        for other in list(queue):
            queue.remove(other)
    assert seen == ["a0", "b1"]
    assert len(queue) == 0


def test_who_does_not_wait_cannot_be_removed() -> None:
    queue, _ = filled(request_of("a", 0))
    with pytest.raises(ValueError, match="does not wait"):
        queue.remove(request_of("a", 0))  # another one of the same age


# -- counters -----------------------------------------------------------------------------------------------


def test_who_comes_back_starts_at_the_lowest_of_those_who_wait() -> None:
    counters = TokenCounters()
    for tenant, cost in (("a", 500), ("b", 300), ("late", 20)):
        counters.charge(tenant, cost)
    counters.start_waiting("late", ["a", "b"])
    assert counters["late"] == 300
    counters.start_waiting("a", ["late"])
    assert counters["a"] == 500  # what was used is not forgotten


def test_where_nobody_waits_it_is_the_last_one_who_did() -> None:
    counters = TokenCounters()
    counters.charge("a", 500)
    counters.stop_waiting("a")
    counters.charge("a", 50)  # by what it has running
    counters.start_waiting("b", [])
    assert counters["b"] == 550


# -- properties ---------------------------------------------------------------------------------------------


class QueueMachine(RuleBasedStateMachine):
    """Against a list that is sorted whenever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.counters = filled()
        self.requests: list[Request] = []
        self.arrivals = itertools.count()

    @rule(tenant=st.sampled_from(TENANTS), priority=st.integers(-1, 1))
    def add(self, tenant: str, priority: int) -> None:
        request = request_of(tenant, next(self.arrivals), priority)
        is_back = tenant not in {each.params.tenant for each in self.requests}
        before = self.counters[tenant]
        self.queue.add(request)
        others = [self.counters[each.params.tenant] for each in self.requests]
        if is_back and others:
            assert self.counters[tenant] == max(before, min(others))
        self.requests.append(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        self.queue.remove(request)
        self.requests.remove(request)
        assert request not in self.queue

    @rule(tenant=st.sampled_from(TENANTS), cost=st.integers(0, 10))
    def charge(self, tenant: str, cost: int) -> None:
        self.counters.charge(tenant, cost)

    @invariant()
    def the_order_is_by_priority_share_and_age(self) -> None:
        def turn(request: Request) -> tuple[int, int, tuple[int, int]]:
            return request.params.priority, self.counters[request.params.tenant], request.order

        # Nothing is charged meanwhile, so a tenant keeps its turn.
        expected = sorted(self.requests, key=turn)
        assert list(self.queue) == expected
        assert len(self.queue) == len(expected)
        assert list(self.queue.candidates(2)) == expected[:2]
        assert all(request in self.queue for request in self.requests)


QueueMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestQueueMachine = QueueMachine.TestCase


@settings(max_examples=40)
@given(
    costs=st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(1, 50), min_size=20, max_size=20), min_size=2)
)
def test_those_who_always_wait_differ_by_one_request_at_most(costs: dict[str, list[int]]) -> None:
    """The bound of the paper, for requests that are charged when they start."""
    queue, counters = filled()
    arrivals = itertools.count()
    cost_of: dict[Request, int] = {}
    for tenant, own in costs.items():
        for cost in own:
            request = request_of(tenant, next(arrivals))
            cost_of[request] = cost
            queue.add(request)
    while len({each.params.tenant for each in queue}) == len(costs):
        request = next(queue.candidates(1))
        queue.remove(request)
        counters.charge(request.params.tenant, cost_of[request])
        served = [counters[tenant] for tenant in costs]
        assert max(served) - min(served) <= 50
