"""What a scenario is run with, and what it has found."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.servers import ServerUnderTest, peer_server, roseinfer_server

Figure = float | int | str


class Scale(enum.Enum):
    """FULL is the figure of a goal, SHORT the seconds that a test may take."""

    SHORT = "short"
    FULL = "full"

    def pick(self, short: int, full: int) -> int:
        return full if self is Scale.FULL else short


@dataclass(frozen=True)
class Settings:
    """Which server a scenario looks at: ours, or with a `peer_command` another one that loads the same model."""

    model: str = "smollm2-135m"
    peer_command: str | None = None  # "… {model} {port} …"; `model` is a file then

    @property
    def is_peer(self) -> bool:
        return self.peer_command is not None

    def server(
        self,
        *flags: str,
        api_keys: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        main: str = "roseinfer",
    ) -> ServerUnderTest:
        """All arguments are for ours alone."""
        if self.peer_command is not None:
            return peer_server(self.peer_command, self.model)
        return roseinfer_server(self.model, *flags, api_keys=api_keys, env=env, main=main)


@dataclass(frozen=True)
class Result:
    """`goal` is its number, such as R1; `notes` say what the figures leave open."""

    goal: str
    title: str
    figures: dict[str, Figure]
    passed: bool
    notes: list[str] = field(default_factory=list)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that so many per cent of them do not exceed; 0 where there are none."""
    if not values:
        return 0.0
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(rank, 1) - 1]
