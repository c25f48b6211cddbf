"""The requests that an engine in another process has, as the server knows them: enough to give them to the next one.

A request is sent again with the tokens that were accepted as part of what is computed already. As sampling and
kernels do not depend on anything else, it goes on as if nothing had happened.

A request that kills its engine must not kill the next one for ever. Whoever was with the engine at two deaths within
a while is a suspect and runs alone: after the second death until it has brought a token, after a later one until it
has brought `LONG_TRIAL_TOKENS` or is finished. Then it is taken back, and when the engine has let it go the next
suspect has its turn; when all are through they run together. If the engine dies while it has one suspect and nobody
else, that request ends with an error, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from roseinfer.core.messages import AbortRequest, AddRequest, TokenOutput

MAX_DEATHS = 2  # that a request sees in company
LONG_TRIAL_TOKENS = 64
DEATHS_FORGOTTEN_SECONDS = 60.0


@dataclass(slots=True)
class _Live:
    request: AddRequest
    output_ids: list[int] = field(default_factory=list)
    first_token_at: float | None = None
    is_sent: bool = False
    is_aborted: bool = False
    is_parked: bool = False  # taken back from the engine, which has yet to say that it has let go
    num_deaths: int = 0
    num_trial_tokens: int = 0  # still to bring alone

    @property
    def is_suspect(self) -> bool:
        return self.num_deaths >= MAX_DEATHS and self.num_trial_tokens > 0

    def resubmission(self) -> AddRequest:
        """The request from here on. The prompt's logprobs came with the first token."""
        if not self.output_ids:
            return self.request
        ids = [*self.request.output_ids, *self.output_ids]
        return msgspec.structs.replace(self.request, output_ids=ids, num_prompt_logprobs=-1)


class LiveRequests:
    """In the order in which they came. Not thread safe."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._live: dict[str, _Live] = {}
        self._trial: _Live | None = None
        self._last_death = -DEATHS_FORGOTTEN_SECONDS

    def __len__(self) -> int:
        return len(self._live)

    @property
    def has_suspect_alone(self) -> bool:
        """Whether the engine has one request and nobody else: if it dies now, it dies of that."""
        return self._lone_suspect() is not None

    def _lone_suspect(self) -> _Live | None:
        parked = (live for live in self._live.values() if live.is_parked)
        return self._trial or next(parked, None)

    def add(self, request: AddRequest) -> None:
        self._live[request.request_id] = _Live(request)

    def abort(self, request_id: str) -> TokenOutput | None:
        """The output of a request that no engine has; None where the engine is to be told, or where there is none."""
        live = self._live.get(request_id)
        if live is None:
            return None
        live.is_aborted = True
        return None if live.is_sent else self._end(live, "abort")

    def next_commands(self) -> list[AddRequest | AbortRequest]:
        """What is to be sent now: a suspect that runs alone, or else all that wait."""
        if self.has_suspect_alone:
            return []
        unsent = [live for live in self._live.values() if not live.is_sent]
        suspects = [live for live in unsent if live.is_suspect]
        if not suspects:
            return [self._send(live) for live in unsent]
        passed = [live for live in self._live.values() if live.is_sent]  # at most one, the last that was alone
        if passed:
            return [self._park(live) for live in passed]
        self._trial = suspects[0]
        return [self._send(suspects[0])]

    def _send(self, live: _Live) -> AddRequest:
        live.is_sent = True
        return live.resubmission()

    def _park(self, live: _Live) -> AbortRequest:
        live.is_parked = True
        return AbortRequest(live.request.request_id)

    def accept(self, outputs: Sequence[TokenOutput]) -> list[TokenOutput]:
        """Takes in what a step has brought; the outputs that are for somebody, with times that span all engines."""
        return [taken for output in outputs if (taken := self._accept(output)) is not None]

    def _accept(self, output: TokenOutput) -> TokenOutput | None:
        live = self._live.get(output.request_id)
        if live is None:
            return None
        if live.is_parked and output.finish_reason == "abort" and not live.is_aborted:
            live.is_parked = live.is_sent = False
            return None
        live.output_ids += output.token_ids
        is_resumed = live.num_deaths > 0 and live.first_token_at is not None
        if live.first_token_at is None and output.token_ids:
            live.first_token_at = self._now()
            if live.num_deaths:  # what it found in the cache may be its own tokens
                output = msgspec.structs.replace(output, num_cached_tokens=0)
        if output.finish_reason is not None:
            del self._live[output.request_id]
            if is_resumed:
                output = msgspec.structs.replace(output, decode_seconds=self._now() - (live.first_token_at or 0.0))
        if self._trial is live:
            live.num_trial_tokens = max(0, live.num_trial_tokens - len(output.token_ids))
            if live.num_trial_tokens == 0 or output.finish_reason is not None:
                self._trial = None
        return output

    def on_death(self, reason: str) -> list[TokenOutput]:
        """All requests are to be sent again, but for those that end here: the outputs that tell so."""
        now = self._now()
        if now - self._last_death > DEATHS_FORGOTTEN_SECONDS:
            for live in self._live.values():
                live.num_deaths = 0
        self._last_death = now
        culprit, self._trial = self._lone_suspect(), None
        outputs = [self._end(live, "abort") for live in list(self._live.values()) if live.is_aborted]
        if culprit is not None and culprit.request.request_id in self._live:
            outputs.append(self._end(culprit, f"the engine died of this request ({reason})"))
        for live in self._live.values():
            live.is_parked = False
            if live.is_sent:
                live.is_sent = False
                live.num_deaths += 1
                live.num_trial_tokens = 1 if live.num_deaths == MAX_DEATHS else LONG_TRIAL_TOKENS
        return outputs

    def fail(self, request_id: str, reason: str) -> list[TokenOutput]:
        """The output that ends a request which no engine can be given."""
        live = self._live.get(request_id)
        return [self._end(live, reason)] if live else []

    def _end(self, live: _Live, reason: str) -> TokenOutput:
        """`reason`: abort, or what went wrong."""
        del self._live[live.request.request_id]
        if self._trial is live:
            self._trial = None
        if reason == "abort":
            return TokenOutput(live.request.request_id, [], finish_reason="abort")
        return TokenOutput(live.request.request_id, [], finish_reason="error", error=reason)
