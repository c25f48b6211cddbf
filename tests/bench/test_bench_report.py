"""Tables and JSON, from runs made by hand."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from roseinfer.bench.metrics import FORMULAS, RequestTiming, Run
from roseinfer.bench.processes import Resources
from roseinfer.bench.report import Report, _shown
from roseinfer.bench.results import WorkloadResult, as_json
from roseinfer.bench.workloads import Workload

WORKLOAD = Workload(name="w9", num_requests=2, input_len=100, output_len=3)
TARGETS = {"A": {"url": "http://a", "ready after s": 1.234}, "B": {"url": "http://b", "model": "[b].gguf"}}


def make_run(seconds: float, **fields: Any) -> Run:
    """Two requests, each with its first text after `seconds` and two tokens more, each after a tenth of that."""
    requests = []
    for start in (50.0, 60.0):
        first = start + seconds
        times = [first, first + seconds / 10, first + seconds / 5]
        given = {
            "num_input_tokens": 100,
            "num_output_tokens": 3,
            "counted_by": "usage",
            "num_cached_tokens": 16,
            **fields,
        }
        requests.append(RequestTiming(start=start, end=times[-1], chunk_times=times, **given))
    return Run(requests, client_cpu_seconds=0.1, server=Resources(1.0, 3 << 20, 5 << 20))


def make_result(labels: str = "A", **fields: Any) -> WorkloadResult:
    """Repeats of 1, 2 and 4 seconds; each target takes twice the one before."""
    result = WorkloadResult(WORKLOAD)
    for seconds in (1.0, 2.0, 4.0):
        for index, label in enumerate(labels):
            result.add(label, make_run(seconds * 2**index, **fields))
    return result


def printed(result: WorkloadResult) -> str:
    out = io.StringIO()
    report = Report(TARGETS, Console(file=out, width=80, highlight=False))
    report.print_targets()
    report.print_workload(result)
    report.print_formulas()
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    return text


def row(text: str, title: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(title))
    return line.removeprefix(title).split()


def test_one_target() -> None:
    text = printed(make_result())
    assert "w9  2 requests, 1 at once; 100 tokens in, 3 out" in text
    assert row(text, "TTFT ms") == ["2,000", "2,000", "2,000", "2,000", "1,000", "-", "4,000"]
    assert row(text, "TPOT ms") == ["200", "200", "200", "200", "100", "-", "400"]
    assert row(text, "ITL ms")[0] == "200"
    assert row(text, "e2e ms")[0] == "2,400"
    assert row(text, "decode tok/s") == ["5.00", "2.50", "-", "10.0"]
    assert row(text, "prefill tok/s") == ["50.0", "25.0", "-", "100"]
    assert row(text, "server CPU s")[0] == "1.00"
    assert row(text, "server RSS MiB")[0] == "3.00"
    assert "prompt tokens from the prefix cache: 96 of 600" in text
    assert "µs per chunk" in text
    assert "failed" not in text
    for formula in FORMULAS:
        assert formula in text


def test_targets_are_named() -> None:
    text = printed(make_result("AB"))
    assert row(text, "A  url") == ["http://a"]
    assert row(text, "B  url") == ["http://b"]
    assert row(text, "   model") == ["[b].gguf"]
    assert "1.23" in text


def test_a_comparison() -> None:
    """B takes twice as long, in each repeat."""
    text = printed(make_result("AB"))
    assert row(text, "TTFT p50 ms") == ["2,000", "4,000", "0.500", "(0.500", "-", "0.500)"]
    assert row(text, "decode tok/s") == ["5.00", "2.50", "2.00", "(2.00", "-", "2.00)"]
    assert "A/B" in text
    assert "B: prompt tokens from the prefix cache: 96 of 600" in text


def test_three_targets_are_compared_with_the_first() -> None:
    text = printed(make_result("ABC"))
    assert "A/C" in text
    assert "B/C" not in text
    assert row(text, "TTFT p50 ms")[:2] == ["2,000", "4,000"]


def test_failures_and_doubts_are_told() -> None:
    result = make_result(num_output_tokens=2, num_cached_tokens=None, counted_by="chunks")
    result.runs["A"][0].requests[0] = RequestTiming(start=50.0, end=50.5, chunk_times=[], error="HTTP 503: [b]busy[/b]")
    text = printed(result)
    assert "1 of 6 requests failed, the first with: HTTP 503: [b]busy[/b]" in text
    assert "5 replies ended before the tokens asked for" in text
    assert "prompt tokens from the prefix cache: the server does not tell" in text
    assert "output tokens counted by chunks" in text


def test_nothing_but_failures() -> None:
    result = WorkloadResult(WORKLOAD)
    failed = [RequestTiming(start=50.0, end=50.5, chunk_times=[], error="gone")]
    result.add("A", Run(failed, 0.0))
    text = printed(result)
    assert "TTFT ms" not in text
    assert "1 of 1 requests failed" in text
    assert result.total_failure() == "w9: every request to A failed: gone"
    assert make_result().total_failure() is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1234, "0.123"),
        (0.9996, "1.00"),
        (9.996, "10.0"),
        (4.651, "4.65"),
        (43.61, "43.6"),
        (868.4, "868"),
        (1082.0, "1,082"),
    ],
)
def test_about_three_digits(value: float, text: str) -> None:
    assert _shown(value) == text


def test_json_has_everything() -> None:
    document = json.loads(json.dumps(as_json([make_result("AB")], TARGETS, seed=5, repeats=3)))
    assert set(document) == {
        "roseinfer",
        "created",
        "machine",
        "seed",
        "repeats",
        "formulas",
        "targets",
        "workloads",
    }
    assert (document["seed"], document["repeats"], document["targets"]) == (5, 3, TARGETS)
    assert document["machine"]["cores"] >= 1
    (workload,) = document["workloads"]
    assert {name: workload[name] for name in ("name", "num_requests", "input_len", "rate")} == {
        "name": "w9",
        "num_requests": 2,
        "input_len": 100,
        "rate": None,
    }
    assert workload["ratios"]["A/B"]["ttft_p50_ms"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    first = workload["targets"]["A"]
    assert first["summary"]["ttft_p50_ms"] == pytest.approx({"median": 2000.0, "low": 1000.0, "high": 4000.0})
    assert len(first["repeats"]) == 3
    assert first["repeats"][0]["figures"]["requests_per_second"] == pytest.approx(2 / 11.2)
    request = first["repeats"][0]["requests"][1]
    assert request == {
        "start": 10.0,
        "end": 11.2,
        "chunk_times": [11.0, 11.1, 11.2],
        "ttft_ms": pytest.approx(1000),
        "tpot_ms": pytest.approx(100),
        "e2e_ms": pytest.approx(1200),
        "input_tokens": 100,
        "output_tokens": 3,
        "cached_tokens": 16,
        "output_counted_by": "usage",
        "error": None,
    }


def test_figures_in_json_are_those_of_its_requests() -> None:
    """Who has only the file can work out every latency again."""
    document = as_json([make_result()], TARGETS, seed=0, repeats=3)
    for repeat in document["workloads"][0]["targets"]["A"]["repeats"]:
        ttfts = [(request["chunk_times"][0] - request["start"]) * 1e3 for request in repeat["requests"]]
        assert repeat["figures"]["ttft_mean_ms"] == pytest.approx(sum(ttfts) / len(ttfts))
