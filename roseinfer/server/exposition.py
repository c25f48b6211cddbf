"""What was counted, as Prometheus reads it. Imported when it is first asked for: prometheus-client is not small."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

import roseinfer
from roseinfer.core.messages import EngineStats
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.metrics import Histogram, ServerMetrics

OPENMETRICS = "application/openmetrics-text"
PLAIN_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MODEL = ("model_name",)


def expose(
    engine: InferenceEngine, metrics: ServerMetrics, prefixes: Sequence[str], accept: str = ""
) -> tuple[bytes, str]:
    """The text and its content type, OpenMetrics if the Accept header names it. Takes some milliseconds.

    What vLLM tells is told once under each of the `prefixes`.
    """
    registry = CollectorRegistry()
    for prefix in prefixes:
        registry.register(_EngineCollector(engine, metrics, prefix))
    registry.register(_ServerCollector(engine, metrics))
    ProcessCollector(registry=registry)
    if OPENMETRICS in accept:
        text: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), PLAIN_TYPE


class _EngineCollector(Collector):
    """What vLLM tells of its engine, under one prefix."""

    def __init__(self, engine: InferenceEngine, metrics: ServerMetrics, prefix: str) -> None:
        self._engine = engine
        self._metrics = metrics
        self._prefix = prefix
        self._model = [engine.name]

    def collect(self) -> list[Metric]:
        with self._metrics.lock:
            histograms = [self._histogram(histogram) for histogram in self._metrics.histograms]
            return [*self._state(self._engine.client.stats()), *self._counts(), *histograms]

    def _state(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._gauge("num_requests_running", "Requests that are being computed.", stats.num_running)
        yield self._gauge("num_requests_waiting", "Requests that wait to be computed.", stats.num_waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it.", _kv_usage(stats))
        yield self._counter("num_preemptions", "Requests that lost their KV blocks.", stats.num_preemptions)
        yield self._counter("prefix_cache_queries", "Tokens looked for in the prefix cache.", stats.num_prefix_queries)
        yield self._counter("prefix_cache_hits", "Tokens found in the prefix cache.", stats.num_prefix_hits)

    def _counts(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield self._counter("prompt_tokens", "Tokens of prompts.", metrics.num_prompt_tokens)
        yield self._counter("generation_tokens", "Tokens generated.", metrics.num_generation_tokens)
        labels = (*MODEL, "finished_reason")
        finished = CounterMetricFamily(f"{self._prefix}:request_success", "Requests by their end.", labels=labels)
        for reason, count in metrics.num_finished.items():
            finished.add_metric([*self._model, reason], count)
        yield finished

    def _gauge(self, name: str, help: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(f"{self._prefix}:{name}", help, labels=MODEL)
        gauge.add_metric(self._model, value)
        return gauge

    def _counter(self, name: str, help: str, value: float) -> Metric:
        counter = CounterMetricFamily(f"{self._prefix}:{name}", help, labels=MODEL)
        counter.add_metric(self._model, value)
        return counter

    def _histogram(self, histogram: Histogram) -> Metric:
        borders = [*(str(float(border)) for border in histogram.borders), "+Inf"]
        buckets = list(zip(borders, histogram.cumulative(), strict=True))
        family = HistogramMetricFamily(f"{self._prefix}:{histogram.name}", histogram.help, labels=MODEL)
        family.add_metric(self._model, buckets, histogram.sum)
        return family


class _ServerCollector(Collector):
    """What is told of the HTTP server and of the build, under names of our own."""

    def __init__(self, engine: InferenceEngine, metrics: ServerMetrics) -> None:
        self._engine = engine
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        with self._metrics.lock:
            counts = [self._replies(), self._refusals(), self._unknown_fields()]
        return [*counts, *self._engine_state(), _build_info()]

    def _engine_state(self) -> Iterator[Metric]:
        client = self._engine.client
        stats = client.stats()
        yield CounterMetricFamily("roseinfer:engine_restarts", "Engines that died.", value=client.num_restarts)
        yield GaugeMetricFamily("roseinfer:engine_up", "Whether the engine computes.", value=client.is_ready)
        help = "KV blocks that hold nothing."
        yield GaugeMetricFamily("roseinfer:kv_blocks_free", help, value=stats.num_free_blocks)
        help = "KV blocks that hold finished requests' tokens, free for whoever needs them."
        yield GaugeMetricFamily("roseinfer:kv_blocks_cached", help, value=stats.num_cached_blocks)
        yield GaugeMetricFamily("roseinfer:kv_blocks", "KV blocks in all.", value=stats.num_total_blocks)

    def _replies(self) -> Metric:
        replies = CounterMetricFamily("http_requests", "HTTP requests by route and status.", labels=("route", "status"))
        for (route, status), count in self._metrics.num_replies.items():
            replies.add_metric([route, str(status)], count)
        return replies

    def _refusals(self) -> Metric:
        help = "Requests turned away before any work was done."
        refusals = CounterMetricFamily("roseinfer:requests_refused", help, labels=("reason",))
        for reason, count in self._metrics.num_refused.items():
            refusals.add_metric([reason], count)
        return refusals

    def _unknown_fields(self) -> Metric:
        help = "Fields of bodies that mean nothing here."
        return CounterMetricFamily("roseinfer:unknown_fields", help, value=self._metrics.num_unknown_fields)


def _build_info() -> Metric:
    labels = {"version": roseinfer.__version__, "python": platform.python_version(), "machine": platform.machine()}
    info = GaugeMetricFamily("roseinfer:build_info", "What is running; always 1.", labels=list(labels))
    info.add_metric(list(labels.values()), 1)
    return info


def _kv_usage(stats: EngineStats) -> float:
    """Cached blocks are free for whoever needs them."""
    num_used = stats.num_total_blocks - stats.num_free_blocks - stats.num_cached_blocks
    return num_used / stats.num_total_blocks if stats.num_total_blocks else 0.0
