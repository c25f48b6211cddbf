"""What the server counts: tokens, times and requests, in plain integers until somebody asks for them.

Names, labels and bucket borders are those of vLLM's V1 engine, so that its dashboards fit. prometheus-client takes ten
times as long to count, and is imported only to write what was counted (`exposition.py`).
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

from roseinfer.core.metrics import Observer, RequestRecord
from roseinfer.server.errors import TIMED_OUT
from roseinfer.server.middleware.access_log import Exchange

FINISH_REASONS = ("stop", "length", "abort", "error")
UNMATCHED = "unmatched"  # the route of a request that reached none

_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN_TOKENS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_CHOICES = (1, 2, 5, 10, 20)

_REFUSALS = {
    401: "unauthorized",
    408: "body_too_slow",
    413: "body_too_large",
    429: "rate_limited",
    431: "head_too_large",
    503: "unavailable",
}
_REFUSAL_CODES = {
    "context_length_exceeded": "context_length",
    "server_is_overloaded": "queue_full",
    "engine_restarting": "engine_restarting",
}
REFUSAL_REASONS = (*_REFUSALS.values(), *_REFUSAL_CODES.values())


class Histogram:
    """How many values lie at or below each border and above the one before it; the last count is of those above all."""

    def __init__(self, name: str, help: str, borders: Sequence[float]) -> None:
        self.name = name
        self.help = help
        self.borders = tuple(borders)
        self.counts = [0] * (len(borders) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.borders, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[int]:
        """Values up to each border, and at last all of them."""
        return list(itertools.accumulate(self.counts))


class ServerMetrics(Observer):
    """All that is counted for one app. Everything may be called from any thread; `lock` keeps a reader's view whole."""

    def __init__(self, max_model_len: int) -> None:
        lengths = tuple(_one_two_five(max_model_len))
        self.lock = threading.Lock()
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_unknown_fields = 0
        self.num_finished = dict.fromkeys(FINISH_REASONS, 0)
        self.num_refused = dict.fromkeys(REFUSAL_REASONS, 0)
        self.num_replies: Counter[tuple[str, int]] = Counter()  # by route and status
        self.histograms: list[Histogram] = []

        add = self._add
        self._first_token = add("time_to_first_token_seconds", "Time to a request's first token.", _FIRST_TOKEN)
        self._between = add("inter_token_latency_seconds", "Time from a token to the next.", _BETWEEN_TOKENS)
        self._per_token = add(
            "request_time_per_output_token_seconds", "A request's mean time between tokens.", _BETWEEN_TOKENS
        )
        self._e2e = add("e2e_request_latency_seconds", "Time from a request's arrival to its last token.", _REQUEST)
        self._queue = add("request_queue_time_seconds", "Time that a request waited.", _REQUEST)
        self._inference = add("request_inference_time_seconds", "Time that a request was computed.", _REQUEST)
        self._prefill = add("request_prefill_time_seconds", "Time that a request's prompt was computed.", _REQUEST)
        self._decode = add("request_decode_time_seconds", "Time from a request's first to its last token.", _REQUEST)
        self._prompt_len = add("request_prompt_tokens", "Tokens of a request's prompt.", lengths)
        self._output_len = add("request_generation_tokens", "Tokens of a request's answer.", lengths)
        self._max_tokens = add("request_params_max_tokens", "A request's max_tokens.", lengths)
        self._num_choices = add("request_params_n", "A request's n.", _CHOICES)

    def _add(self, name: str, help: str, borders: Sequence[float]) -> Histogram:
        self.histograms.append(Histogram(name, help, borders))
        return self.histograms[-1]

    def on_first_token(self, record: RequestRecord) -> None:
        with self.lock:
            self.num_generation_tokens += 1
            self.num_prompt_tokens += record.num_prompt_tokens
            self._first_token.observe(record.first_token_seconds or 0.0)

    def on_tokens(self, record: RequestRecord, num_tokens: int, seconds: float) -> None:
        with self.lock:
            self.num_generation_tokens += num_tokens
            self._between.observe(seconds / num_tokens, num_tokens)  # who reads slowly gets several at once

    def on_finish(self, record: RequestRecord) -> None:
        """Times are those of requests that came to their own end: who hangs up says nothing about the server."""
        with self.lock:
            self.num_finished[record.finish_reason or "abort"] += 1
            if record.finish_reason in ("stop", "length") and record.last_token_at is not None:
                self._observe_finished(record, record.last_token_at)

    def _observe_finished(self, record: RequestRecord, ended_at: float) -> None:
        self._e2e.observe(ended_at - record.arrived_at)
        self._queue.observe(record.queue_seconds)
        self._prefill.observe(record.prefill_seconds)
        self._decode.observe(record.decode_seconds)
        self._inference.observe(record.prefill_seconds + record.decode_seconds)
        self._prompt_len.observe(record.num_prompt_tokens)
        self._output_len.observe(record.num_output_tokens)
        self._max_tokens.observe(record.max_tokens)
        if record.num_output_tokens > 1:
            self._per_token.observe(record.decode_seconds / (record.num_output_tokens - 1))

    def on_exchange(self, exchange: Exchange) -> None:
        """For the access log's middleware: once per HTTP request, when it is over."""
        with self.lock:
            self.num_replies[exchange.route or UNMATCHED, exchange.status] += 1
            if reason := refusal_reason(exchange.status, exchange.error):
                self.num_refused[reason] += 1
            if facts := exchange.facts:
                self._on_facts(facts)

    def _on_facts(self, facts: dict[str, object]) -> None:
        if isinstance(num_choices := facts.get("n"), int):
            self._num_choices.observe(num_choices)
        if isinstance(warnings := facts.get("warnings"), list):
            self.num_unknown_fields += sum(str(warning).startswith("unknown field ") for warning in warnings)


def refusal_reason(status: int, code: str | None) -> str | None:
    """Why a request was turned away before any work was done on it; None if it was not."""
    if (status not in _REFUSALS and status != 400) or code == TIMED_OUT:
        return None
    return _REFUSAL_CODES.get(code or "") or _REFUSALS.get(status)


def _one_two_five(limit: int) -> Iterator[int]:
    """1, 2, 5, 10, 20, 50 … up to the limit."""
    for exponent in itertools.count():
        for mantissa in (1, 2, 5):
            value: int = mantissa * 10**exponent
            if value > limit:
                return
            yield value
