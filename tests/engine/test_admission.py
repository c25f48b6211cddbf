"""Places for requests: never more than there are, never all of them for one tenant of several."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roseinfer.core.errors import InvalidRequestError, OverloadedError, RateLimitedError
from roseinfer.engine.admission import Admission


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_there_are_as_many_places_as_may_run_and_wait() -> None:
    admission = Admission(2, 3)
    admission.admit(4)
    admission.check()
    with pytest.raises(OverloadedError, match="4 requests are running or waiting") as refusal:
        admission.check(2)
    assert not isinstance(refusal.value, RateLimitedError)
    admission.admit()
    assert admission.is_full
    with pytest.raises(OverloadedError):
        admission.admit()
    admission.release()
    admission.admit()
    assert admission.num_live == 5


def test_more_than_there_ever_are_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequestError, match="at most 5") as refusal:
        Admission(2, 3).check(6)
    assert refusal.value.param == "n"


@pytest.mark.parametrize(("num_tenants", "share"), [(0, 288), (1, 288), (2, 216), (4, 180), (16, 153), (10_000, 145)])
def test_a_tenants_share(num_tenants: int, share: int) -> None:
    assert Admission(32, 256, num_tenants).max_per_tenant == share


def test_a_tenant_leaves_room_for_the_others() -> None:
    admission = Admission(2, 6, num_tenants=2)  # six of eight places for one
    admission.admit(6, "a")
    with pytest.raises(RateLimitedError, match="6 of your requests"):
        admission.admit(1, "a")
    admission.admit(2, "b")
    with pytest.raises(OverloadedError) as refusal:  # now there is no room for anybody
        admission.admit(1, "a")
    assert not isinstance(refusal.value, RateLimitedError)
    admission.release("a")
    admission.release("a")
    admission.admit(2, "b")
    assert (admission.num_live_of("a"), admission.num_live_of("b"), admission.num_tenants) == (4, 4, 2)


def test_what_nobody_has_cannot_be_given_back() -> None:
    admission = Admission(2, 2)
    admission.admit(1, "a")
    with pytest.raises(ValueError, match="'b' has no live request"):
        admission.release("b")


@pytest.mark.parametrize("limits", [(0, 1, 0), (1, -1, 0), (1, 1, -1)])
def test_impossible_limits(limits: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no limits"):
        Admission(*limits)


# -- when to come back --------------------------------------------------------------------------------------


def test_the_time_follows_from_the_rate_of_late() -> None:
    clock = Clock()
    admission = Admission(4, 100, clock=clock)
    admission.admit(104)
    for _ in range(100):  # one every 0.3 seconds
        clock.now += 0.3
        admission.release()
        admission.admit()
    assert admission.retry_after == pytest.approx(100 * 0.3, rel=0.05)
    with pytest.raises(OverloadedError) as refusal:
        admission.check()
    assert refusal.value.retry_after == admission.retry_after


def test_the_rate_counts_from_the_first_request_on() -> None:
    clock = Clock()
    admission = Admission(4, 100, clock=clock)
    admission.admit(24)
    clock.now += 8.0
    for _ in range(4):  # all at once, after eight seconds
        admission.release()
    assert admission.retry_after == pytest.approx(16 * 2.0)


def test_a_server_that_was_idle_forgets_its_rate() -> None:
    clock = Clock()
    admission = Admission(1, 100, clock=clock)
    admission.admit()
    clock.now += 50.0
    admission.release()
    clock.now += 1000.0
    admission.admit(4)
    assert admission.retry_after == pytest.approx(3.0)


def test_before_anything_has_finished_the_time_grows() -> None:
    clock = Clock()
    admission = Admission(8, 100, clock=clock)
    admission.admit(24)
    times = []
    for _ in range(3):
        times.append(admission.retry_after)
        clock.now += 5.0
    assert times == pytest.approx([2.0, 10.0, 20.0])


@given(st.integers(1, 64), st.integers(0, 300), st.lists(st.floats(0, 1e6), max_size=100))
def test_the_time_is_between_a_second_and_a_minute(max_running: int, max_queue: int, pauses: list[float]) -> None:
    clock = Clock()
    admission = Admission(max_running, max_queue, clock=clock)
    admission.admit(admission.max_live)
    assert 1.0 <= admission.retry_after <= 60.0
    for pause in pauses:
        clock.now += pause
        admission.release()
        assert 1.0 <= admission.retry_after <= 60.0
        admission.admit()


# -- bookkeeping --------------------------------------------------------------------------------------------


class AdmissionMachine(RuleBasedStateMachine):
    """Against a plain count of everybody's requests."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(3, 7, num_tenants=3)
        self.live: Counter[str] = Counter()

    @rule(count=st.integers(1, 12), tenant=st.sampled_from("abc"))
    def admit(self, count: int, tenant: str) -> None:
        expected: type[Exception] | None = None
        if count > self.admission.max_per_tenant:
            expected = InvalidRequestError
        elif self.live.total() + count > 10:
            expected = OverloadedError
        elif self.live[tenant] + count > self.admission.max_per_tenant:
            expected = RateLimitedError
        assert self.error_of(self.admission.check, count, tenant) is expected
        assert self.error_of(self.admission.admit, count, tenant) is expected
        if expected is None:
            self.live[tenant] += count

    @staticmethod
    def error_of(ask: Callable[[int, str], None], count: int, tenant: str) -> type[Exception] | None:
        try:
            ask(count, tenant)
        except (OverloadedError, InvalidRequestError) as error:
            return type(error)
        return None

    @precondition(lambda self: self.live.total())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        tenant = data.draw(st.sampled_from(sorted(+self.live)))
        self.admission.release(tenant)
        self.live[tenant] -= 1

    @invariant()
    def the_counts_agree(self) -> None:
        assert self.admission.num_live == self.live.total() <= 10
        assert self.admission.num_tenants == len(+self.live)
        assert all(self.admission.num_live_of(tenant) == self.live[tenant] for tenant in "abc")
        assert self.admission.is_full == (self.live.total() == 10)

    @invariant()
    def others_find_room(self) -> None:
        assert all(count <= self.admission.max_per_tenant < 10 for count in self.live.values())


TestAdmissionMachine = AdmissionMachine.TestCase


def test_threads_do_not_lose_a_place() -> None:
    admission = Admission(8, 24, num_tenants=2)

    def come_and_go(tenant: str) -> None:
        for _ in range(2000):
            try:
                admission.admit(2, tenant)
            except OverloadedError:
                continue
            admission.release(tenant)
            admission.release(tenant)

    threads = [threading.Thread(target=come_and_go, args=(tenant,)) for tenant in "abab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (admission.num_live, admission.num_tenants) == (0, 0)


def test_a_refusal_costs_microseconds() -> None:
    admission = Admission(8, 24)
    admission.admit(32)
    started_at = time.perf_counter()
    for _ in range(1000):
        with pytest.raises(OverloadedError):
            admission.check()
    assert (time.perf_counter() - started_at) / 1000 < 0.001
