"""What `connect` finds out about servers of all kinds, and what it says of those that are none."""

from __future__ import annotations

import asyncio
import socket
from random import Random
from typing import Any

import pytest

from roseinfer.bench.discovery import connect
from roseinfer.bench.load import run_workload
from roseinfer.bench.metrics import Run
from roseinfer.bench.prompts import WORDS
from roseinfer.bench.workloads import Workload
from roseinfer.core.errors import ConfigError
from tests.bench.fake_servers import serving, tokenize
from tests.fake_model import byte_tokenizer

WORKLOAD = Workload(name="x", num_requests=4, input_len=30, output_len=6, concurrency=2)


def measure(url: str, workload: Workload = WORKLOAD, **options: Any) -> tuple[dict[str, Any], Run]:
    async def go() -> tuple[dict[str, Any], Run]:
        target = await connect(url, **options)
        try:
            prompts = await target.prompts.make(workload, Random(0))
            return target.facts(), await run_workload(target, workload, prompts, Random(0))
        finally:
            target.close()

    return asyncio.run(go())


def test_completions_with_token_ids() -> None:
    with serving(bos=(5,)) as (url, role):
        facts, run = measure(url)
    assert facts == {
        "url": url,
        "model": "fake",
        "protocol": "POST /v1/completions",
        "prompts": "token ids of the server's /tokenize",
    }
    asked = role.streamed()
    assert len(asked) == 4
    for body in asked:
        assert body["prompt"][0] == 5
        assert set(body["prompt"][1:]) <= set(tokenize(" ".join(WORDS)))
        assert body["model"] == "fake"
    assert [r.num_input_tokens for r in run.complete] == [30] * 4
    assert [(r.num_output_tokens, r.counted_by) for r in run.complete] == [(6, "usage")] * 4
    assert [r.num_cached_tokens for r in run.complete] == [None] * 4


def test_completions_with_text_counted_by_the_server() -> None:
    with serving(takes_ids=False, bos=(5,), num_cached=16) as (url, role):
        facts, run = measure(url)
    assert facts["prompts"] == "text, counted by the server's /tokenize"
    assert all(isinstance(body["prompt"], str) for body in role.streamed())
    assert [(r.num_input_tokens, r.num_cached_tokens) for r in run.complete] == [(30, 16)] * 4


def test_completions_with_ids_of_a_tokenizer_here() -> None:
    with serving(has_tokenize=False) as (url, _):
        facts, run = measure(url, tokenizer=byte_tokenizer())
    assert facts["prompts"] == "token ids of the tokenizer here"
    assert [r.num_input_tokens for r in run.complete] == [30] * 4


@pytest.mark.parametrize("bos", [(), (5,)])
def test_completions_with_text_that_usage_counts(bos: tuple[int, ...]) -> None:
    with serving(has_tokenize=False, bos=bos) as (url, _):
        facts, run = measure(url)
    assert facts["prompts"] == "text, length estimated from usage"
    assert [r.num_input_tokens for r in run.complete] == [30] * 4


def test_completions_of_a_server_that_counts_nothing() -> None:
    with serving(has_tokenize=False, has_usage=False, model=None) as (url, role):
        facts, run = measure(url)
    assert facts["prompts"].startswith("text, counted in words")
    assert "model" not in facts
    assert "model" not in role.streamed()[0]
    assert {len(body["prompt"].split()) for body in role.streamed()} == {30}
    assert [(r.num_input_tokens, r.num_output_tokens, r.counted_by) for r in run.complete] == [(None, 6, "chunks")] * 4


def test_generate_with_a_tokenizer() -> None:
    with serving(protocol="generate", has_tokenize=False) as (url, role):
        facts, run = measure(url, tokenizer=byte_tokenizer())
    assert facts["protocol"] == "POST /generate"
    assert facts["prompts"] == "text, counted by the tokenizer here"
    assert {len(body["prompt"]) for body in role.streamed()} == {30}
    assert [r.num_input_tokens for r in run.complete] == [30] * 4
    assert [(r.num_output_tokens, r.counted_by) for r in run.complete] == [(6, "max_new_tokens")] * 4
    assert [len(r.chunk_times) for r in run.complete] == [4] * 4  # two of six tokens had no text


def test_generate_without_a_tokenizer() -> None:
    with serving(protocol="generate", has_tokenize=False) as (url, role):
        facts, run = measure(url)
    assert facts["prompts"] == "text, counted in words: no tokenizer here, see --tokenizer"
    assert {len(body["prompt"].split()) for body in role.streamed()} == {30}
    assert [r.num_input_tokens for r in run.complete] == [None] * 4


@pytest.mark.parametrize("protocol", ["completions", "generate"])
def test_times_are_the_servers(protocol: str) -> None:
    """40 ms to the first token, 5 ms to each of five more; no client can see them earlier."""
    workload = Workload(name="x", num_requests=2, input_len=8, output_len=6)
    with serving(protocol=protocol, first_seconds=0.04, gap_seconds=0.005) as (url, role):
        _, run = measure(url, workload)
    for request, received_at in zip(run.complete, role.received_at[-2:], strict=True):
        assert request.start <= received_at
        assert request.ttft >= 0.04
        assert request.tpot is not None
        assert request.e2e >= 0.04 + 5 * 0.005
        assert request.ttft + 5 * request.tpot == pytest.approx(request.e2e)
        assert all(request.start < time <= request.end for time in request.chunk_times)


def test_requests_overlap_as_the_workload_says() -> None:
    with serving(gap_seconds=0.002) as (url, role):
        measure(url)
    assert role.max_running == 2


def test_refusals_are_errors_of_their_requests() -> None:
    with serving(fail_with=503) as (url, _):
        _, run = measure(url)
    assert run.errors == ["HTTP 503: too busy"] * 4


def test_a_reply_that_is_cut_off_is_an_error() -> None:
    with serving(cut_after=3) as (url, _):
        _, run = measure(url)
    assert run.errors == ["the connection was closed before the reply was complete"] * 4


def test_the_key_is_sent() -> None:
    with serving(api_key="sesame") as (url, _):
        _, run = measure(url, api_key="sesame")
        assert len(run.complete) == 4
        with pytest.raises(ConfigError, match=r"answers HTTP 401; see --api-key: .*no key"):
            measure(url)


def test_a_server_of_something_else() -> None:
    with serving(protocol="none") as (url, _), pytest.raises(ConfigError) as caught:
        measure(url)
    assert str(caught.value) == f"{url}: there is neither /v1/completions nor /generate"


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ConfigError, match=f"{url}: .*Connect call failed"):
        measure(url)
