from __future__ import annotations

from typing import Any

from roseinfer.server.broken_reply import break_off, offer_break_off


def test_a_server_that_can_does_it() -> None:
    scope: dict[str, Any] = {"extensions": {"another": {}}}
    calls: list[str] = []
    offer_break_off(scope, lambda: calls.append("broken off"))
    assert break_off(scope)
    assert calls == ["broken off"]
    assert "another" in scope["extensions"]


def test_a_server_that_cannot_is_told_by_an_exception() -> None:
    assert not break_off({})
    assert not break_off({"extensions": {}})
