"""Workloads: the presets as documented, changes to them, and when the requests of an open loop come."""

from __future__ import annotations

import itertools
import statistics
from random import Random
from typing import Any

import pytest

from roseinfer.bench.workloads import PRESETS, Workload, arrival_times, choose_workloads
from roseinfer.core.errors import ConfigError


def test_the_presets_are_the_documented_ones() -> None:
    shapes = {
        name: (w.num_requests, w.input_len, w.shared_prefix_len, w.output_len, w.concurrency, w.rate)
        for name, w in PRESETS.items()
    }
    assert shapes == {
        "w1": (1, 128, 0, 128, 1, None),
        "w2": (1, 2000, 0, 8, 1, None),
        "w3": (64, 256, 0, 64, 16, None),
        "w4": (32, 1032, 1000, 32, 8, None),
        "w5": (200, 8, 0, 1, 32, None),
    }


@pytest.mark.parametrize(
    ("names", "changes", "chosen"),
    [
        ([], {}, ["w1", "w2", "w3", "w4", "w5"]),
        (["w3"], {}, ["w3"]),
        (["W3, w1", "w1"], {}, ["w3", "w1"]),
        (["w3"], {"num_requests": 8}, ["w3*"]),
        (["w3"], {"num_requests": 64}, ["w3"]),
        ([], {"num_requests": 8}, ["custom"]),
    ],
)
def test_which_workloads_are_run(names: list[str], changes: dict[str, Any], chosen: list[str]) -> None:
    assert [workload.name for workload in choose_workloads(names, **changes)] == chosen


def test_changes_go_on_top_of_the_preset() -> None:
    (workload,) = choose_workloads(["w4"], num_requests=4, output_len=2)
    assert workload == Workload(
        name="w4*", num_requests=4, input_len=1032, shared_prefix_len=1000, output_len=2, concurrency=8
    )


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        (["w9"], {}, "--workload 'w9' is unknown; there are w1, w2, w3, w4, w5"),
        ([""], {}, "--workload '' is unknown"),
        ([], {"num_requests": 0}, "--requests must be at least 1, got 0"),
        ([], {"input_len": 0}, "--input-len must be at least 1, got 0"),
        ([], {"output_len": -1}, "--output-len must be at least 1, got -1"),
        ([], {"concurrency": 0}, "--concurrency must be at least 1"),
        ([], {"shared_prefix_len": -1}, "--shared-prefix-len must be at least 0"),
        ([], {"shared_prefix_len": 128}, "--shared-prefix-len must be below --input-len, which is 128"),
        ([], {"rate": 0.0}, "--rate must be a number above 0, got 0.0"),
        ([], {"rate": float("nan")}, "--rate must be a number above 0"),
        ([], {"rate": float("inf")}, "--rate must be a number above 0"),
        ([], {"rate": 1.0, "concurrency": 2}, "--rate and --concurrency exclude each other"),
    ],
)
def test_what_makes_no_sense_is_named(names: list[str], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_workloads(names, **changes)


def test_one_stream_is_one_request_at_a_time() -> None:
    assert Workload(name="x", num_requests=5).is_one_stream
    assert Workload(name="x", num_requests=1, concurrency=8).is_one_stream
    assert not Workload(name="x", num_requests=5, concurrency=2).is_one_stream
    assert not Workload(name="x", num_requests=5, rate=0.1).is_one_stream


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    """Exponential gaps: as spread out as they are long, and 63 % of them below the mean."""
    workload = Workload(name="x", num_requests=4001, rate=50.0)
    times = arrival_times(workload, Random(1))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times[0] == 0
    assert min(gaps) >= 0
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(mean, rel=0.08)
    assert sum(gap < mean for gap in gaps) / len(gaps) == pytest.approx(0.632, abs=0.03)


def test_arrivals_come_from_the_seed() -> None:
    workload = Workload(name="x", num_requests=10, rate=2.0)
    assert (
        arrival_times(workload, Random(1)) == arrival_times(workload, Random(1)) != arrival_times(workload, Random(2))
    )


def test_summaries_say_it_all() -> None:
    assert PRESETS["w1"].summary == "1 request; 128 tokens in, 128 out"
    assert PRESETS["w4"].summary == "32 requests, 8 at once; 1,032 tokens in (1,000 of them shared), 32 out"
    assert Workload(name="x", num_requests=9, rate=0.5).summary == "9 requests, 0.5 per second; 128 tokens in, 128 out"
