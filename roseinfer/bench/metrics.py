"""From times to figures. The formulas are in `FORMULAS`, and printed under every report."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from roseinfer.bench.processes import Resources
from roseinfer.bench.protocols import Reply
from roseinfer.bench.workloads import Workload

FORMULAS = {
    "TTFT": "send → first text; in an open loop from when the request was due",
    "TPOT": "(end - first) / (output - 1), per request",
    "ITL": "gaps between chunks that bring text, of all requests together",
    "e2e": "send → end of the reply, per request",
    "decode tok/s": "1 / TPOT p50",
    "prefill tok/s": "input / TTFT p50, of one stream only",
    "output tok/s": "all output tokens / (last end - first send)",
    "requests/s": "all complete requests / (last end - first send)",
    "percentiles": "linear between neighbours, over the requests of one repeat",
    "figures": "median of the repeats",
    "A/B": "ratio of repeats that ran side by side; of these the median",
}

LATENCIES = ("ttft", "tpot", "itl", "e2e")
STATISTICS = ("p50", "p90", "p99", "mean")

Figures = Mapping[str, float | None]  # None = does not apply, or nobody told


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTiming(Reply):
    """One request: its reply, and when it was sent. Failed if it has an `error`."""

    start: float

    @property
    def first(self) -> float:
        """The first text; the end, if there was none (special tokens have none)."""
        return self.chunk_times[0] if self.chunk_times else self.end

    @property
    def ttft(self) -> float:
        return self.first - self.start

    @property
    def tpot(self) -> float | None:
        """None for fewer than two tokens."""
        return (self.end - self.first) / (self.num_output_tokens - 1) if self.num_output_tokens > 1 else None

    @property
    def e2e(self) -> float:
        return self.end - self.start

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.chunk_times)]


@dataclass(frozen=True, slots=True)
class Run:
    """One repeat of a workload on one target."""

    requests: list[RequestTiming]
    client_cpu_seconds: float
    server: Resources | None = None  # CPU time of this run; memory at its end

    @property
    def complete(self) -> list[RequestTiming]:
        return [request for request in self.requests if request.error is None]

    @property
    def wall_seconds(self) -> float:
        return max(r.end for r in self.requests) - min(r.start for r in self.requests)

    @property
    def errors(self) -> list[str]:
        return [request.error for request in self.requests if request.error is not None]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure over the repeats."""

    median: float
    low: float
    high: float


def figures_of(run: Run, workload: Workload) -> dict[str, float | None]:
    """Every figure of a run. Latencies are in milliseconds."""
    complete, wall = run.complete, run.wall_seconds
    figures: dict[str, float | None] = {}
    for name, seconds in _latencies(complete).items():
        figures |= {f"{name}_{statistic}_ms": value for statistic, value in _statistics_ms(seconds).items()}
    return {
        **figures,
        "decode_tokens_per_second": _inverse(figures["tpot_p50_ms"], 1e3),
        "prefill_tokens_per_second": _prefill_rate(complete, workload),
        "output_tokens_per_second": sum(r.num_output_tokens for r in complete) / wall,
        "requests_per_second": len(complete) / wall,
        "wall_seconds": wall,
        "num_requests": len(run.requests),
        "num_errors": len(run.errors),
        "num_short": sum(r.num_output_tokens < workload.output_len for r in complete),
        "input_tokens": _sum_known(r.num_input_tokens for r in complete),
        "output_tokens": sum(r.num_output_tokens for r in complete),
        "cached_tokens": _sum_known(r.num_cached_tokens for r in complete),
        "num_chunks": sum(len(r.chunk_times) for r in complete),
        "client_cpu_seconds": run.client_cpu_seconds,
        "server_cpu_seconds": run.server.cpu_seconds if run.server else None,
        "server_rss_bytes": run.server.rss_bytes if run.server else None,
        "server_peak_rss_bytes": run.server.peak_rss_bytes if run.server else None,
    }


def spreads_of(repeats: Sequence[Figures]) -> dict[str, Spread]:
    """Median, lowest and highest of each figure that all repeats have."""
    columns = {name: [figures[name] for figures in repeats] for name in repeats[0]}
    return {
        name: Spread(statistics.median(values), min(values), max(values))
        for name, column in columns.items()
        if len(values := [value for value in column if value is not None]) == len(column)
    }


def ratios_of(ours: Sequence[Figures], theirs: Sequence[Figures]) -> dict[str, Spread]:
    """Of each figure, repeat by repeat: what was measured side by side is compared, whatever the machine did later."""
    return spreads_of([_ratios(a, b) for a, b in zip(ours, theirs, strict=True)])


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest, as NumPy does it."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _latencies(complete: Sequence[RequestTiming]) -> dict[str, list[float]]:
    return {
        "ttft": [request.ttft for request in complete],
        "tpot": [request.tpot for request in complete if request.tpot is not None],
        "itl": [gap for request in complete for gap in request.gaps],
        "e2e": [request.e2e for request in complete],
    }


def _statistics_ms(seconds: Sequence[float]) -> dict[str, float | None]:
    if not seconds:
        return dict.fromkeys(STATISTICS)
    percentiles = {f"p{percent}": percentile(seconds, percent) * 1e3 for percent in (50, 90, 99)}
    return {**percentiles, "mean": statistics.fmean(seconds) * 1e3}


def _prefill_rate(complete: Sequence[RequestTiming], workload: Workload) -> float | None:
    lengths = [request.num_input_tokens for request in complete if request.num_input_tokens is not None]
    if not workload.is_one_stream or not lengths:
        return None
    return _inverse(percentile([request.ttft for request in complete], 50), statistics.median(lengths))


def _inverse(value: float | None, numerator: float) -> float | None:
    return numerator / value if value else None


def _sum_known(counts: Iterable[int | None]) -> int | None:
    """None if anybody did not tell."""
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def _ratios(ours: Figures, theirs: Figures) -> dict[str, float | None]:
    return {name: _ratio(value, theirs[name]) for name, value in ours.items()}


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None
