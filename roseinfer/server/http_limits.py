"""What a connection may take, and what all connections of a server share."""

from __future__ import annotations

from dataclasses import dataclass

from uvicorn.server import ServerState

from roseinfer.server.gate import Gate
from roseinfer.server.middleware.body_limit import BODY_SECONDS

MAX_CONNECTIONS = 4096


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Times are in seconds. The time of a body that is read is the body limit's, whose reply tells of it."""

    head_seconds: float = 10.0  # from a head's first byte, or from the connection's start if nothing comes
    write_seconds: float = 60.0  # in which a caller must take something of what waits for it
    linger_seconds: float = 5.0  # for a caller to read why it is hung up on, from the last of its body that came
    body_seconds: float = BODY_SECONDS  # from its head, for a body that comes though its request has been answered
    await_seconds: float = 1.0  # for the small body of a request that is refused
    keep_alive_seconds: int = 75  # longer than clients keep idle connections, or they would race with our closing them
    max_connections: int = MAX_CONNECTIONS

    @property
    def sweep_seconds(self) -> float:
        """How often connections are looked at; a deadline is late by as much."""
        return min(1.0, self.head_seconds / 4, self.write_seconds / 4, self.linger_seconds / 4, self.await_seconds)


class SharedState(ServerState):
    """Of one server; its protocols have it as `server_state`."""

    def __init__(self, limits: HttpLimits, gate: Gate) -> None:
        super().__init__()
        self.limits = limits
        self.gate = gate
        self.is_draining = False
