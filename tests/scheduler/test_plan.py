from __future__ import annotations

from roseinfer.core.request import Request
from roseinfer.scheduler.plan import Plan
from tests.fake_engine import make_request


def test_a_plan_spends_its_budget_and_knows_what_is_worked_on() -> None:
    a, b = Request(make_request("a", [1])), Request(make_request("b", [2]))
    plan = Plan(10)
    plan.add(a, 4, [b"x", b"y"])
    plan.add(b, 5, [])
    assert (plan.budget, list(plan.counts)) == (1, [a, b])
    assert plan.works_on(b"x")
    assert not plan.works_on(b"z")


def test_what_is_removed_is_not_worked_on() -> None:
    a, b = Request(make_request("a", [1])), Request(make_request("b", [2]))
    plan = Plan(10)
    plan.add(a, 4, [b"x"])
    plan.remove(a)
    plan.remove(b)  # was never planned
    assert plan.budget == 10
    assert not plan.works_on(b"x")
