"""The formulas, on times made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.bench.metrics import (
    FORMULAS,
    RequestTiming,
    Run,
    Spread,
    figures_of,
    percentile,
    ratios_of,
    spreads_of,
)
from roseinfer.bench.processes import Resources
from roseinfer.bench.workloads import Workload

ONE_STREAM = Workload(name="x", num_requests=2, input_len=100, output_len=4)
AT_ONCE = Workload(name="x", num_requests=2, input_len=100, output_len=4, concurrency=2)


def timing(start: float, *chunk_times: float, end: float | None = None, **fields: Any) -> RequestTiming:
    given = {"num_input_tokens": 100, "num_output_tokens": len(chunk_times), **fields}
    return RequestTiming(start=start, end=chunk_times[-1] if end is None else end, chunk_times=[*chunk_times], **given)


def test_one_request() -> None:
    request = timing(1.0, 1.5, 1.6, 1.8, 2.0, end=2.1)
    assert request.ttft == pytest.approx(0.5)
    assert request.tpot == pytest.approx((2.1 - 1.5) / 3)
    assert request.e2e == pytest.approx(1.1)
    assert request.gaps == pytest.approx([0.1, 0.2, 0.2])


@given(st.floats(0.001, 9), st.lists(st.floats(0, 9), min_size=1, max_size=20))
def test_the_parts_add_up(first: float, gaps: list[float]) -> None:
    """TTFT + TPOT × (output - 1) = e2e, however the chunks came."""
    times = [5.0 + first]
    for gap in gaps:
        times.append(times[-1] + gap)
    request = timing(5.0, *times)
    assert request.tpot is not None
    assert request.ttft + request.tpot * (request.num_output_tokens - 1) == pytest.approx(request.e2e)
    assert request.ttft + sum(request.gaps) == pytest.approx(request.e2e)


def test_one_token_has_no_time_per_token() -> None:
    assert timing(0.0, 0.5).tpot is None
    assert timing(0.0, 0.5).gaps == []


def test_a_reply_without_text_begins_with_its_end() -> None:
    request = RequestTiming(start=1.0, end=3.0, chunk_times=[], num_output_tokens=1)
    assert (request.ttft, request.e2e) == (2.0, 2.0)


def test_chunks_of_several_tokens_change_gaps_but_not_the_time_per_token() -> None:
    request = timing(0.0, 1.0, 2.0, num_output_tokens=5)
    assert request.tpot == pytest.approx(0.25)
    assert request.gaps == [1.0]


def test_a_run() -> None:
    """Two requests, one after the other, 100 in, and 4 and 3 out."""
    run = Run(
        [
            timing(0.0, 0.5, 0.6, 0.7, 0.8, num_cached_tokens=32),
            timing(1.0, 1.7, 1.9, 2.1, end=2.3, num_cached_tokens=0),
        ],
        client_cpu_seconds=0.01,
        server=Resources(1.5, 1000, 2000),
    )
    figures = figures_of(run, ONE_STREAM)
    expected = {
        "ttft_p50_ms": 600.0,
        "ttft_mean_ms": 600.0,
        "ttft_p99_ms": 698.0,
        "tpot_p50_ms": 200.0,  # of 100 and 300
        "itl_mean_ms": 140.0,  # of 3 × 100 and 2 × 200
        "e2e_p50_ms": 1050.0,
        "decode_tokens_per_second": 5.0,
        "prefill_tokens_per_second": 100 / 0.6,
        "output_tokens_per_second": 7 / 2.3,
        "requests_per_second": 2 / 2.3,
        "wall_seconds": 2.3,
        "num_requests": 2,
        "num_errors": 0,
        "num_short": 1,
        "input_tokens": 200,
        "output_tokens": 7,
        "cached_tokens": 32,
        "num_chunks": 7,
        "client_cpu_seconds": 0.01,
        "server_cpu_seconds": 1.5,
        "server_rss_bytes": 1000,
        "server_peak_rss_bytes": 2000,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


def test_failed_requests_are_counted_and_nothing_else() -> None:
    failed = RequestTiming(start=0.5, end=4.0, chunk_times=[0.6], error="gone")
    figures = figures_of(Run([timing(0.0, 1.0, 2.0), failed], 0.0), AT_ONCE)
    assert (figures["num_errors"], figures["num_requests"]) == (1, 2)
    assert figures["ttft_p50_ms"] == figures["ttft_p99_ms"] == 1000
    assert figures["requests_per_second"] == pytest.approx(1 / 4)  # the time it took is not forgotten


def test_nothing_complete() -> None:
    figures = figures_of(Run([RequestTiming(start=0.0, end=1.0, chunk_times=[], error="no")], 0.0), ONE_STREAM)
    assert figures["ttft_p50_ms"] is None
    assert figures["decode_tokens_per_second"] is None
    assert figures["prefill_tokens_per_second"] is None
    assert figures["output_tokens_per_second"] == 0


def test_prefill_has_a_rate_only_where_nobody_else_is_computed() -> None:
    run = Run([timing(0.0, 1.0), timing(0.0, 1.0)], 0.0)
    assert figures_of(run, AT_ONCE)["prefill_tokens_per_second"] is None
    assert figures_of(run, ONE_STREAM)["prefill_tokens_per_second"] == pytest.approx(100)


def test_what_nobody_told_is_not_made_up() -> None:
    run = Run([timing(0.0, 1.0, num_cached_tokens=3), timing(0.0, 1.0, num_input_tokens=None)], 0.0)
    figures = figures_of(run, ONE_STREAM)
    assert figures["input_tokens"] is None
    assert figures["cached_tokens"] is None
    assert figures["server_cpu_seconds"] is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.sampled_from([0, 50, 90, 99, 100]))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-6)


def test_medians_and_spreads_of_repeats() -> None:
    repeats = [{"a": 3.0, "b": 1.0}, {"a": 1.0, "b": None}, {"a": 2.5, "b": 2.0}]
    assert spreads_of(repeats) == {"a": Spread(2.5, 1.0, 3.0)}


def test_ratios_are_taken_side_by_side() -> None:
    """The machine slows down to half its speed in the second repeat, which changes no ratio."""
    ours = [{"rate": 100.0, "zero": 0.0}, {"rate": 50.0, "zero": 0.0}]
    theirs = [{"rate": 50.0, "zero": 0.0}, {"rate": 25.0, "zero": 0.0}]
    assert ratios_of(ours, theirs) == {"rate": Spread(2.0, 2.0, 2.0)}


def test_every_latency_has_its_formula() -> None:
    assert {"TTFT", "TPOT", "ITL", "e2e"} <= FORMULAS.keys()
