"""What is known of one request when it is done, and who wants to be told: logs and metrics, whatever their form."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestRecord:
    """Counts and times of one sequence as its reader saw them. Times are of `time.monotonic`, in seconds."""

    num_prompt_tokens: int
    max_tokens: int
    arrived_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    last_token_at: float | None = None
    queue_seconds: float = 0.0  # waiting for the first step
    prefill_seconds: float = 0.0  # from there to the first token
    num_cached_tokens: int = 0
    num_output_tokens: int = 0  # up to the token that completed a stop string, if one did
    finish_reason: str | None = None  # stop, length, abort, error; None while it runs
    stop_reason: int | str | None = None  # the stop token or the stop string; None for the model's own end

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last."""
        if self.first_token_at is None or self.last_token_at is None:
            return 0.0
        return self.last_token_at - self.first_token_at

    @property
    def first_token_seconds(self) -> float | None:
        """From the request's arrival to the first token; None without one."""
        return None if self.first_token_at is None else self.first_token_at - self.arrived_at

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens behind the first one, whose time is the prompt's; None where there are none."""
        seconds = self.decode_seconds
        return (self.num_output_tokens - 1) / seconds if seconds > 0 and self.num_output_tokens > 1 else None


class Observer:
    """Is told of every sequence as it runs; does nothing itself. Calls come from event loops and other threads."""

    def on_first_token(self, record: RequestRecord) -> None:
        """`record.first_token_seconds` after the request's arrival."""

    def on_tokens(self, record: RequestRecord, num_tokens: int, seconds: float) -> None:
        """New tokens, `seconds` after the previous ones or, if they are the first, after the request's arrival."""

    def on_finish(self, record: RequestRecord) -> None:
        """Once per sequence, whatever its end was."""
