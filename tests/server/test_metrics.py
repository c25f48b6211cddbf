"""What the server counts, and how Prometheus reads it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import roseinfer
from roseinfer.core.messages import EngineStats
from roseinfer.core.metrics import RequestRecord
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server import create_app
from roseinfer.server.exposition import expose
from roseinfer.server.metrics import Histogram, ServerMetrics, refusal_reason
from roseinfer.server.middleware.access_log import Exchange
from roseinfer.server.schemas import GenerateRequest
from tests.fake_model import fake_engine
from tests.server.live import LiveServer, StartServer, assert_error

# vLLM's V1 engine, as its documentation lists them.
VLLM = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "prefix_cache_queries": "counter",
    "prefix_cache_hits": "counter",
    "num_preemptions": "counter",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "request_success": "counter",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "request_time_per_output_token_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "request_inference_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram",
    "request_prompt_tokens": "histogram",
    "request_generation_tokens": "histogram",
    "request_params_max_tokens": "histogram",
    "request_params_n": "histogram",
}


class Scrape:
    """The samples of one answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in parse_text(text)}

    def value(self, name: str, **labels: str) -> float:
        """Of the one sample with this name and, among others, these labels."""
        samples = (sample for family in self.families.values() for sample in family.samples)
        found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
        assert len(found) == 1, (name, labels, found)
        return float(found[0])


def scrape(server: LiveServer, **headers: str) -> Scrape:
    reply = server.client.get("/metrics", headers=headers)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(reply.text)


def exposed(metrics: ServerMetrics, stats: EngineStats | None = None) -> Scrape:
    stats = stats or EngineStats(0, 0, 0, 0, 0, 0, 0)
    engine: Any = SimpleNamespace(name="m", client=SimpleNamespace(stats=lambda: stats, num_restarts=0, is_ready=True))
    return Scrape(expose(engine, metrics, ["roseinfer"])[0].decode())


@pytest.fixture(scope="module")
def engine() -> Iterator[InferenceEngine]:
    with fake_engine() as engine:
        yield engine


@given(
    st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20, unique=True).map(sorted),
    st.lists(st.tuples(st.floats(0, 2e6), st.integers(1, 5)), max_size=50),
)
def test_a_histogram_counts_what_lies_at_or_below_each_border(
    borders: list[float], observed: list[tuple[float, int]]
) -> None:
    histogram = Histogram("a", "b", borders)
    for value, times in [*observed, (borders[0], 1)]:
        histogram.observe(value, times)
    values = [value for value, times in observed for _ in range(times)] + [borders[0]]
    assert histogram.cumulative() == [*(sum(v <= border for v in values) for border in borders), len(values)]
    assert histogram.sum == pytest.approx(sum(values))


@pytest.mark.parametrize(
    ("setting", "prefixes"),
    [("roseinfer", {"roseinfer"}), ("vllm", {"vllm"}), ("both", {"roseinfer", "vllm"})],
)
def test_names_are_vllms_under_each_prefix(engine: InferenceEngine, setting: str, prefixes: set[str]) -> None:
    families = Scrape(ask(engine, metrics_prefix=setting).text).families
    for prefix in ("roseinfer", "vllm"):
        found = {name: family.type for name, family in families.items() if name.startswith(f"{prefix}:")}
        if prefix in prefixes:
            assert {f"{prefix}:{name}": kind for name, kind in VLLM.items()}.items() <= found.items()
            assert all(sample.labels["model_name"] == "fake" for sample in families[f"{prefix}:prompt_tokens"].samples)
        else:
            assert not {name.partition(":")[2] for name in found} & VLLM.keys()
    assert {"process_resident_memory_bytes", "roseinfer:requests_refused", "roseinfer:unknown_fields"} <= set(families)


def ask(engine: InferenceEngine, accept: str = "*/*", **settings: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(engine, **settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.get("/nope")
            return await client.get("/metrics", headers={"Accept": accept})

    return asyncio.run(ask())


def test_openmetrics_where_it_is_accepted(engine: InferenceEngine) -> None:
    reply = ask(engine, "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1")
    assert reply.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family.type for family in parse_openmetrics(reply.text)}
    assert {f"roseinfer:{name}": kind for name, kind in VLLM.items()}.items() <= families.items()


def test_a_hostile_accept_header_is_no_crash(engine: InferenceEngine) -> None:
    assert ask(engine, "application/openmetrics-text; version=1.x; escaping=\x7f").status_code == 200


def test_bucket_borders_are_vllms(engine: InferenceEngine) -> None:
    families = Scrape(ask(engine).text).families

    def borders(name: str) -> list[str]:
        samples = families[f"roseinfer:{name}"].samples
        return [sample.labels["le"] for sample in samples if sample.name.endswith("_bucket")]

    assert borders("time_to_first_token_seconds")[:4] == ["0.001", "0.005", "0.01", "0.02"]
    assert borders("time_to_first_token_seconds")[-3:] == ["640.0", "2560.0", "+Inf"]
    assert borders("inter_token_latency_seconds")[:3] == ["0.01", "0.025", "0.05"]
    assert borders("e2e_request_latency_seconds")[:3] == ["0.3", "0.5", "0.8"]
    assert borders("request_params_n") == ["1.0", "2.0", "5.0", "10.0", "20.0", "+Inf"]
    lengths = ["1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0", "200.0", "500.0", "+Inf"]  # the context is 512
    assert borders("request_prompt_tokens") == lengths


@pytest.mark.parametrize("stream", [False, True])
def test_requests_are_counted_as_they_run(start_server: StartServer, stream: bool) -> None:
    server = start_server()
    server.program.step_seconds = 0.002
    for _ in range(2):
        assert server.post(prompt="Hi", max_new_tokens=5, stop_on_eos=False, stream=stream).status_code == 200
    found = scrape(server)
    assert found.value("roseinfer:prompt_tokens_total") == 4
    assert found.value("roseinfer:generation_tokens_total") == 10
    assert found.value("roseinfer:request_success_total", finished_reason="length") == 2
    assert found.value("roseinfer:request_success_total", finished_reason="abort") == 0
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_decode_time"):
        assert found.value(f"roseinfer:{name}_seconds_count") == 2
    assert found.value("roseinfer:inter_token_latency_seconds_count") == 8
    assert found.value("roseinfer:request_time_per_output_token_seconds_count") == 2
    assert found.value("roseinfer:request_generation_tokens_sum") == 10
    assert found.value("roseinfer:request_prompt_tokens_sum") == 4
    assert found.value("roseinfer:request_params_max_tokens_sum") == 10
    assert found.value("http_requests_total", route="/generate", status="200") == 2
    whole = found.value("roseinfer:e2e_request_latency_seconds_sum")
    first = found.value("roseinfer:time_to_first_token_seconds_sum")
    assert 0 < first < whole
    assert found.value("roseinfer:inter_token_latency_seconds_sum") == pytest.approx(whole - first)


def test_who_hangs_up_is_counted_but_not_timed(start_server: StartServer) -> None:
    server = start_server()
    server.program.step_seconds = 0.005
    body = {"prompt": "a", "max_new_tokens": 400, "stop_on_eos": False, "stream": True}
    with server.client.stream("POST", "/generate", json=body) as reply:
        pieces = reply.iter_text()
        next(pieces)
        running = scrape(server)
        assert running.value("roseinfer:num_requests_running") == 1
        assert running.value("roseinfer:kv_cache_usage_perc") > 0
    found = wait_until(
        lambda: scrape(server), lambda f: f.value("roseinfer:request_success_total", finished_reason="abort") == 1
    )
    assert found.value("roseinfer:e2e_request_latency_seconds_count") == 0
    assert found.value("roseinfer:time_to_first_token_seconds_count") == 1
    assert found.value("http_requests_total", route="/generate", status="499") == 1


def wait_until(read: Any, is_good: Any) -> Any:
    deadline = time.monotonic() + 10
    while not is_good(value := read()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def test_refusals_are_counted_by_reason(start_server: StartServer) -> None:
    server = start_server(max_running=1, max_queue=0)
    server.program.step_seconds = 0.01
    assert_error(server.post(prompt="a" * 600), 400, "prompt", "context_length_exceeded")
    assert_error(server.post(prompt=1), 400, "prompt")
    assert server.client.get("/health", headers={"X-Long": "x" * 17_000}).status_code == 431
    with server.client.stream(
        "POST", "/generate", json={"prompt": "a", "max_new_tokens": 400, "stream": True}
    ) as reply:
        pieces = reply.iter_text()  # held, because dropping it would hang up
        next(pieces)
        assert_error(server.post(prompt="b"), 503, code="server_is_overloaded")
    found = scrape(server)
    family = found.families["roseinfer:requests_refused"]
    counts = {sample.labels["reason"]: sample.value for sample in family.samples if sample.value}
    assert counts == {"context_length": 1, "head_too_large": 1, "queue_full": 1}
    assert found.value("http_requests_total", route="unmatched", status="431") == 1


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (200, None, None),
        (400, "invalid_request_error", None),
        (400, None, None),
        (401, "invalid_api_key", "unauthorized"),
        (404, "model_not_found", None),
        (408, None, "body_too_slow"),
        (413, None, "body_too_large"),
        (429, "rate_limit_exceeded", "rate_limited"),
        (499, None, None),
        (500, "server_error", None),
        (503, "engine_restarting", "engine_restarting"),
        (503, "server_error", "unavailable"),
    ],
)
def test_reasons(status: int, code: str | None, reason: str | None) -> None:
    assert refusal_reason(status, code) == reason


def test_paths_that_are_not_there_make_no_new_series(server: LiveServer) -> None:
    for name in ("x", "y", "z"):
        server.client.get(f"/{name}")
    routes = {sample.labels["route"] for sample in scrape(server).families["http_requests"].samples}
    assert "unmatched" in routes
    assert not routes & {"/x", "/y", "/z"}


def test_facts_of_routes_are_counted() -> None:
    body = GenerateRequest.model_validate({"prompt": "a", "x": 1, "y": 2})
    metrics = ServerMetrics(512)
    facts = {"n": 3, "warnings": [*(body.warnings() or []), "max_tokens was cut to 4"]}
    metrics.on_exchange(Exchange({"type": "http", "state": {"access": facts}}, 0.0, status=200))
    metrics.on_exchange(Exchange({"type": "http"}, 0.0, status=200))
    found = exposed(metrics)
    assert found.value("roseinfer:unknown_fields_total") == 2
    assert found.value("roseinfer:request_params_n_sum") == 3
    assert found.value("roseinfer:request_params_n_count") == 1


def test_the_engines_numbers() -> None:
    stats = EngineStats(
        num_running=3,
        num_waiting=5,
        num_free_blocks=10,
        num_cached_blocks=30,
        num_total_blocks=50,
        num_preemptions=7,
        num_steps=9,
        num_prefix_queries=100,
        num_prefix_hits=64,
    )
    found = exposed(ServerMetrics(512), stats)
    assert found.value("roseinfer:num_requests_running", model_name="m") == 3
    assert found.value("roseinfer:num_requests_waiting") == 5
    assert found.value("roseinfer:kv_cache_usage_perc") == pytest.approx(0.2)
    assert found.value("roseinfer:num_preemptions_total") == 7
    assert found.value("roseinfer:prefix_cache_queries_total") == 100
    assert found.value("roseinfer:prefix_cache_hits_total") == 64


def test_an_answer_read_as_a_whole_has_a_first_token_of_its_own() -> None:
    metrics = ServerMetrics(512)
    record = RequestRecord(3, 8, arrived_at=10.0, first_token_at=10.5, last_token_at=10.5, prefill_seconds=0.4)
    metrics.on_first_token(record)
    metrics.on_tokens(record, 4, 2.0)
    record.last_token_at, record.num_output_tokens, record.finish_reason = 12.5, 5, "stop"
    metrics.on_finish(record)
    found = exposed(metrics)
    assert found.value("roseinfer:time_to_first_token_seconds_sum") == 0.5
    assert found.value("roseinfer:inter_token_latency_seconds_count") == 4
    assert found.value("roseinfer:inter_token_latency_seconds_sum") == 2.0
    assert found.value("roseinfer:request_decode_time_seconds_sum") == 2.0
    assert found.value("roseinfer:request_inference_time_seconds_sum") == pytest.approx(2.4)
    assert found.value("roseinfer:e2e_request_latency_seconds_sum") == 2.5
    assert found.value("roseinfer:request_time_per_output_token_seconds_sum") == 0.5


def test_the_build_is_named(server: LiveServer) -> None:
    assert scrape(server).value("roseinfer:build_info", version=roseinfer.__version__) == 1


def test_each_app_counts_for_itself(engine: InferenceEngine) -> None:
    for _ in range(2):
        assert Scrape(ask(engine).text).value("http_requests_total", route="unmatched", status="404") == 1


def test_metrics_need_the_key(start_server: StartServer) -> None:
    server = start_server(api_keys=["sesame"])
    assert_error(server.client.get("/metrics"), 401, code="invalid_api_key")
    found = scrape(server, Authorization="Bearer sesame")
    assert found.value("roseinfer:requests_refused_total", reason="unauthorized") == 1
