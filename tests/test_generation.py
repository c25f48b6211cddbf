"""Several sequences of one call, run together through the library's door, with a model of bytes behind it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from roseinfer.core.errors import (
    ContextLengthError,
    EngineError,
    EngineStoppedError,
    InvalidRequestError,
    OverloadedError,
)
from roseinfer.core.messages import TokenOutput
from roseinfer.core.metrics import Observer, RequestRecord
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.generation import Generation
from roseinfer.inference_engine import InferenceEngine
from roseinfer.text.output_text import TextDelta, TextOptions
from tests.fake_model import MAX_MODEL_LEN, RecitingProgram, fake_engine, recite

PROMPTS = [b"Hi", b"a", b"a rather long beginning"]


class Log(Observer):
    def __init__(self) -> None:
        self.tokens: dict[int, list[float]] = defaultdict(list)  # by record: the time that each took
        self.finished: list[RequestRecord] = []

    def on_first_token(self, record: RequestRecord) -> None:
        assert record.first_token_seconds is not None
        self.tokens[id(record)].append(record.first_token_seconds)

    def on_tokens(self, record: RequestRecord, num_tokens: int, seconds: float) -> None:
        assert seconds >= 0
        self.tokens[id(record)] += [seconds / num_tokens] * num_tokens

    def on_finish(self, record: RequestRecord) -> None:
        self.finished.append(record)


@pytest.fixture
def program() -> RecitingProgram:
    return RecitingProgram()


@pytest.fixture
def engine(program: RecitingProgram) -> Iterator[InferenceEngine]:
    with fake_engine(program) as engine:
        engine.observer = Log()
        yield engine


def log_of(engine: InferenceEngine) -> Log:
    assert isinstance(engine.observer, Log)
    return engine.observer


def prepare(engine: InferenceEngine, n: int = 1, stop: tuple[str, ...] = (), **params: Any) -> list[Generation]:
    settings: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 20, **params}
    return engine.prepare_ids(PROMPTS, SamplingParams(**settings), TextOptions(stop=stop), n)


def recited(max_tokens: int = 20) -> list[str]:
    return [recite(prompt.decode(), max_tokens, stop_on_eos=False) for prompt in PROMPTS]


async def collect(engine: InferenceEngine, generations: list[Generation]) -> list[str]:
    texts = [""] * len(generations)
    async for deltas in engine.arun(generations):
        assert deltas
        for generation, delta in deltas:
            texts[generation.index] += delta.text
    return texts


def run_in_threads_way(engine: InferenceEngine, generations: list[Generation]) -> list[str]:
    texts = [""] * len(generations)
    for generation, delta in engine.run(generations):
        texts[generation.index] += delta.text
    return texts


@pytest.mark.parametrize("n", [1, 3])
def test_all_ways_of_running_give_each_sequence_its_own_text(engine: InferenceEngine, n: int) -> None:
    expected = [text for text in recited() for _ in range(n)]
    assert run_in_threads_way(engine, prepare(engine, n)) == expected
    assert asyncio.run(collect(engine, prepare(engine, n))) == expected
    whole = asyncio.run(engine.arun_whole(prepare(engine, n)))
    assert [delta.text for delta in whole] == expected
    assert [(delta.num_tokens, delta.finish_reason) for delta in whole] == [(20, "length")] * 3 * n


def test_choices_differ_by_their_number_alone(engine: InferenceEngine) -> None:
    def texts() -> list[str]:
        deltas = asyncio.run(engine.arun_whole(prepare(engine, 4, temperature=1.0, seed=5, max_tokens=12)))
        return [delta.text for delta in deltas]

    first = texts()
    assert len(set(first)) > 6
    assert texts() == first


@pytest.mark.parametrize("stop", [("5",), ("€ f", "zz"), ("S", "hlt")])
def test_a_stop_string_ends_its_own_sequence(engine: InferenceEngine, stop: tuple[str, ...]) -> None:
    def cut(text: str) -> str:
        return text[: min([text.find(string) for string in stop if string in text], default=len(text))]

    expected = [cut(text) for text in recited(40)]
    assert [
        delta.text for delta in asyncio.run(engine.arun_whole(prepare(engine, stop=stop, max_tokens=40)))
    ] == expected
    assert run_in_threads_way(engine, prepare(engine, stop=stop, max_tokens=40)) == expected
    generations = prepare(engine, stop=stop, max_tokens=40)
    assert asyncio.run(collect(engine, generations)) == expected
    for generation, text in zip(generations, recited(40), strict=True):
        ended = any(string in text for string in stop)
        assert generation.record.finish_reason == ("stop" if ended else "length")
        assert (generation.record.stop_reason in stop) == ended


def test_what_was_stopped_is_computed_no_further(engine: InferenceEngine, program: RecitingProgram) -> None:
    program.step_seconds = 0.005
    generations = prepare(engine, stop=("ü", "a"), max_tokens=MAX_MODEL_LEN - 30)
    asyncio.run(engine.arun_whole(generations))
    wait_until_idle(engine)
    assert len(program.num_rows) < 60


def test_usage_counts_what_belongs_to_the_text(engine: InferenceEngine) -> None:
    generation = prepare(engine, stop=(" für",), max_tokens=60)[0]
    text = asyncio.run(collect(engine, [generation]))[0]
    assert generation.record.num_output_tokens == len((text + " für").encode())
    assert generation.record.num_prompt_tokens == len(PROMPTS[0])


def test_no_tokens_are_no_work(engine: InferenceEngine, program: RecitingProgram) -> None:
    generations = prepare(engine, max_tokens=0)
    deltas = asyncio.run(engine.arun_whole(generations))
    assert [(delta.text, delta.finish_reason, delta.num_tokens) for delta in deltas] == [("", "length", 0)] * 3
    assert run_in_threads_way(engine, prepare(engine, max_tokens=0)) == [""] * 3
    assert program.num_rows == []


def test_a_prompt_can_be_scored_without_an_answer(engine: InferenceEngine) -> None:
    generations = prepare(engine, max_tokens=0, prompt_logprobs=2)
    deltas = asyncio.run(engine.arun_whole(generations))
    assert [(delta.text, delta.token_ids, delta.num_tokens) for delta in deltas] == [("", [], 0)] * 3
    for generation, prompt in zip(generations, PROMPTS, strict=True):
        assert generation.prompt_logprobs is not None
        assert len(generation.prompt_logprobs.logprobs) == len(prompt) - 1
        assert generation.record.num_output_tokens == 0
        assert generation.record.finish_reason == "length"


def test_too_many_sequences_are_refused_whole() -> None:
    with fake_engine(max_running=2, max_queue=2) as small:
        with pytest.raises(InvalidRequestError, match=r"6 sequences.*4") as caught:
            prepare(small, 2)
        assert caught.value.param == "n"

        async def crowd() -> None:
            running = small.arun(prepare(small, max_tokens=100))
            await anext(running)
            with pytest.raises(OverloadedError):
                await small.arun_whole(prepare(small))
            assert small.client.stats().num_running + small.client.stats().num_waiting <= 3
            await running.aclose()

        asyncio.run(crowd())


def test_tokens_that_do_not_fit_are_an_error_or_cut(engine: InferenceEngine) -> None:
    with pytest.raises(
        ContextLengthError, match=r"2 tokens and max_tokens is 511, together 513.* 512 tokens"
    ) as caught:
        prepare(engine, max_tokens=MAX_MODEL_LEN - 1)
    assert caught.value.param == "max_tokens"
    params = SamplingParams(max_tokens=10**6, temperature=0.0, ignore_eos=True)
    generation = engine.prepare_ids([b"Hi"], params, cut=True)[0]
    assert generation.request.max_tokens == MAX_MODEL_LEN - 2
    with pytest.raises(ContextLengthError, match="600"):
        engine.prepare_ids([b"a" * 600], params, cut=True)


def test_an_observer_hears_of_every_token_and_end(engine: InferenceEngine, program: RecitingProgram) -> None:
    program.step_seconds = 0.002
    streamed, whole = prepare(engine), prepare(engine)
    asyncio.run(collect(engine, streamed))
    asyncio.run(engine.arun_whole(whole))
    log = log_of(engine)
    assert log.finished == [generation.record for generation in [*streamed, *whole]]
    for generation in [*streamed, *whole]:
        record = generation.record
        times = log.tokens[id(record)]
        assert len(times) == record.num_output_tokens == 20
        assert record.first_token_at is not None
        assert record.last_token_at is not None
        assert times[0] == pytest.approx(record.first_token_at - record.arrived_at)
        assert sum(times[1:]) == pytest.approx(record.decode_seconds)
        assert record.decode_seconds >= 19 * 0.002
        assert record.prefill_seconds >= 0.002


def test_leaving_counts_as_aborted(engine: InferenceEngine, program: RecitingProgram) -> None:
    program.step_seconds = 0.002

    async def leave() -> None:
        running = engine.arun(prepare(engine, max_tokens=400))
        await anext(running)
        await running.aclose()

    asyncio.run(leave())
    wait_until_idle(engine)
    assert [record.finish_reason for record in log_of(engine).finished] == ["abort"] * 3


def test_a_fault_ends_the_whole_call(engine: InferenceEngine, program: RecitingProgram) -> None:
    program.failure = RuntimeError("out of ink")
    with pytest.raises(EngineError, match="out of ink"):
        asyncio.run(engine.arun_whole(prepare(engine)))
    wait_until_idle(engine)
    assert sorted({record.finish_reason or "" for record in log_of(engine).finished}) in (["abort", "error"], ["error"])


@pytest.mark.parametrize("error", [None, "the engine died 3 times"])
def test_an_engine_that_goes_away_is_no_fault_of_the_request(engine: InferenceEngine, error: str | None) -> None:
    generation = prepare(engine)[0]
    with pytest.raises(EngineStoppedError, match=error or "stopped before"):
        generation.take([TokenOutput("a", [], finish_reason="abort", error=error)])
    assert generation.record.finish_reason == "abort"


def test_behind_the_end_there_is_nothing(engine: InferenceEngine) -> None:
    generation = prepare(engine, stop=("ü",), max_tokens=60)[0]
    outputs = list(engine.client.stream_sync(generation.request))
    deltas: list[TextDelta] = [generation.take([output]) for output in outputs]
    end = next(index for index, delta in enumerate(deltas) if delta.finish_reason)
    assert [(delta.text, delta.num_tokens) for delta in deltas[end + 1 :]] == [("", 0)] * (len(deltas) - end - 1)
    assert len(deltas) > end + 1


def wait_until_idle(engine: InferenceEngine) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        stats = engine.client.stats()
        if stats.num_running == stats.num_waiting == 0:
            return
        time.sleep(0.01)
    raise AssertionError("requests are left")
