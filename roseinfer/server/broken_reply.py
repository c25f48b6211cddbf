"""Breaking a reply off: an extension of ASGI that our protocol offers, for what has gone wrong within a reply."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Scope

BREAK_OFF = "roseinfer.break_off"


def offer_break_off(scope: Scope, break_off: Callable[[], None]) -> None:
    """To be called by the protocol: `break_off` ends the connection so that the caller sees the reply is not whole."""
    scope.setdefault("extensions", {})[BREAK_OFF] = {"break_off": break_off}


def break_off(scope: Scope) -> bool:
    """Nothing may be sent any more. Returns whether the web server can do it: to others an exception says the same."""
    offer = scope.get("extensions", {}).get(BREAK_OFF)
    if offer is not None:
        offer["break_off"]()
    return offer is not None
