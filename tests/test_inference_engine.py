"""The library's door, with a model of bytes behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import roseinfer.engine
from roseinfer.core.errors import ConfigError, ContextLengthError, EngineError, InvalidRequestError
from roseinfer.generation import Generation
from roseinfer.inference_engine import GenerateParams, InferenceEngine, dtype_of
from tests.fake_model import MAX_MODEL_LEN, RecitingProgram, fake_engine, recite


@pytest.fixture
def program() -> RecitingProgram:
    return RecitingProgram()


@pytest.fixture
def engine(program: RecitingProgram) -> Iterator[InferenceEngine]:
    with fake_engine(program) as engine:
        yield engine


def test_it_is_found_in_the_engine_package() -> None:
    assert roseinfer.engine.InferenceEngine is InferenceEngine
    with pytest.raises(AttributeError, match="InferenceEngin'"):
        _ = roseinfer.engine.InferenceEngin


@pytest.mark.parametrize("prompt", ["Hello", "", "Ünï ", "a.b"])
@pytest.mark.parametrize("max_new_tokens", [0, 1, 5, 64])
def test_generate_is_prompt_and_completion(engine: InferenceEngine, prompt: str, max_new_tokens: int) -> None:
    assert engine.generate(prompt=prompt, max_new_tokens=max_new_tokens) == prompt + recite(prompt, max_new_tokens)


@pytest.mark.parametrize("options", [{}, {"stop_on_eos": False}, {"do_sample": True, "seed": 1}])
def test_streamed_is_what_is_not_streamed(engine: InferenceEngine, options: dict[str, Any]) -> None:
    pieces = list(engine.stream_generate(prompt="Hi", max_new_tokens=50, **options))
    assert all(pieces)
    assert "Hi" + "".join(pieces) == engine.generate(prompt="Hi", max_new_tokens=50, **options)


def test_async_is_the_same(engine: InferenceEngine) -> None:
    async def collect() -> str:
        generation = engine.prepare("Hi", GenerateParams(max_new_tokens=20))
        return "".join([piece async for piece in engine.astream(generation)])

    assert "Hi" + asyncio.run(collect()) == engine.generate("Hi", max_new_tokens=20)


@pytest.mark.parametrize("max_new_tokens", [0, 1, 20, 64])
@pytest.mark.parametrize("stop_on_eos", [True, False])
def test_async_as_a_whole_is_the_same(engine: InferenceEngine, max_new_tokens: int, stop_on_eos: bool) -> None:
    params = GenerateParams(max_new_tokens=max_new_tokens, stop_on_eos=stop_on_eos)
    generation = engine.prepare("Hi", params)
    assert asyncio.run(engine.acomplete(generation)) == recite("Hi", max_new_tokens, stop_on_eos=stop_on_eos)
    assert generation.is_finished


def test_a_generation_knows_its_last_piece(engine: InferenceEngine, program: RecitingProgram) -> None:
    async def collect(generation: Generation) -> list[tuple[str, bool]]:
        return [(piece, generation.is_finished) async for piece in engine.astream(generation)]

    program.step_seconds = 0.002
    pieces = asyncio.run(collect(engine.prepare("Hi", GenerateParams(max_new_tokens=9, stop_on_eos=False))))
    assert [is_finished for _, is_finished in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 3
    assert engine.prepare("Hi", GenerateParams(max_new_tokens=0)).is_empty


def test_without_a_count_the_answer_is_64_tokens_or_what_fits(engine: InferenceEngine) -> None:
    assert engine.generate("a", stop_on_eos=False) == "a" + recite("a", 64, stop_on_eos=False)
    long = "a" * (MAX_MODEL_LEN - 3)
    assert engine.generate(long) == long + recite(long, 3)


def test_a_batch_is_computed_together(engine: InferenceEngine, program: RecitingProgram) -> None:
    program.step_seconds = 0.002
    prompts = [f"prompt {i}" for i in range(100)]
    assert engine.generate_batch(prompts, GenerateParams(max_new_tokens=9)) == [p + recite(p, 9) for p in prompts]
    assert max(program.num_rows) > 8
    assert engine.generate_batch([]) == []


def test_a_batch_is_never_too_much_for_its_own_engine() -> None:
    with fake_engine(max_running=1, max_queue=1) as small:
        assert small.generate_batch(["a"] * 20, GenerateParams(max_new_tokens=2)) == ["a" + recite("a", 2)] * 20


def test_a_batch_with_params_of_their_own(engine: InferenceEngine) -> None:
    params = [GenerateParams(max_new_tokens=n) for n in (0, 3, 7)]
    assert engine.generate_batch(["a", "b", "c"], params) == ["a", "b" + recite("b", 3), "c" + recite("c", 7)]
    with pytest.raises(InvalidRequestError, match="3 prompts and 2 params"):
        engine.generate_batch(["a", "b", "c"], params[:2])


def test_a_bad_prompt_in_a_batch_is_told_before_anything_runs(
    engine: InferenceEngine, program: RecitingProgram
) -> None:
    with pytest.raises(ContextLengthError):
        engine.generate_batch(["a", "b" * MAX_MODEL_LEN])
    assert program.num_rows == []


def test_threads_are_batched(engine: InferenceEngine, program: RecitingProgram) -> None:
    program.step_seconds = 0.002
    prompts = [f"{i}" for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        texts = list(pool.map(lambda prompt: engine.generate(prompt, max_new_tokens=20), prompts))
    assert texts == [prompt + recite(prompt, 20) for prompt in prompts]
    assert max(program.num_rows) > 8


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"max_new_tokens": "9"}, "max_new_tokens"),
        ({"max_new_tokens": 2**31}, "max_new_tokens"),
        ({"max_new_tokens": MAX_MODEL_LEN}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"stop_on_eos": 1}, "stop_on_eos"),
        ({"do_sample": None}, "do_sample"),
    ],
)
def test_a_wrong_option_names_itself(engine: InferenceEngine, options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError, match=param) as caught:
        engine.stream_generate("a", **options)  # at the call, before the first piece is asked for
    assert caught.value.param == param


@pytest.mark.parametrize("prompt", [None, 1, b"bytes", ["a"]])
def test_a_prompt_that_is_no_text(engine: InferenceEngine, prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match="prompt must be a string"):
        engine.generate(prompt)


def test_a_prompt_that_does_not_fit_names_both_counts(engine: InferenceEngine) -> None:
    with pytest.raises(ContextLengthError, match=r"600.*512") as caught:
        engine.generate("a" * 600, max_new_tokens=0)
    assert caught.value.param == "prompt"


def test_an_unknown_option_is_a_type_error(engine: InferenceEngine) -> None:
    with pytest.raises(TypeError, match="max_tokens"):
        engine.generate("a", max_tokens=3)  # type: ignore[call-arg]


def test_the_engines_seed_serves_requests_without_one() -> None:
    options: Any = {"do_sample": True, "max_new_tokens": 12, "stop_on_eos": False}
    with fake_engine(seed=7) as seeded:
        text = seeded.generate("a", **options)
        assert text == seeded.generate("a", **options) == seeded.generate("a", seed=7, **options)
        assert text != seeded.generate("a", seed=8, **options)
    with fake_engine() as unseeded:
        assert len({unseeded.generate("a", **options) for _ in range(8)}) > 1


def test_leaving_a_stream_ends_its_request(engine: InferenceEngine, program: RecitingProgram) -> None:
    program.step_seconds = 0.005
    pieces = engine.stream_generate("a", max_new_tokens=400, stop_on_eos=False)
    assert next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 3
    while engine.client.stats().num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.client.stats().num_running == 0
    assert len(program.num_rows) < 300


def test_a_fault_of_the_engine_is_raised(engine: InferenceEngine, program: RecitingProgram) -> None:
    program.failure = RuntimeError("out of ink")
    with pytest.raises(EngineError):
        engine.generate("a")
    program.failure = None
    assert engine.generate("a", max_new_tokens=2) == "a" + recite("a", 2)


def test_closing_frees_the_memory(engine: InferenceEngine, program: RecitingProgram) -> None:
    assert not program.is_closed
    engine.close()
    assert program.is_closed


def test_closing_ends_what_runs(engine: InferenceEngine, program: RecitingProgram) -> None:
    program.step_seconds = 0.01
    pieces = engine.stream_generate("a", max_new_tokens=400, stop_on_eos=False)
    assert next(pieces)
    engine.close()
    engine.close()
    with pytest.raises(EngineError):
        list(pieces)
    with pytest.raises(EngineError):
        engine.generate("a")


def test_unknown_settings_and_models_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="max_lenght"):
        InferenceEngine("smollm2-135m", max_lenght=5)
    with pytest.raises(ConfigError, match="--threads"):
        InferenceEngine("smollm2-135m", threads=-1)
    with pytest.raises(ConfigError, match="there is no file"):
        InferenceEngine("./nowhere.gguf")


def test_the_seeds_switches() -> None:
    assert dtype_of(use_amp=True, bf16=False) is None
    assert dtype_of(use_amp=True, bf16=True) == "bfloat16"
    assert dtype_of(use_amp=False, bf16=False) == "float32"
    assert dtype_of(use_amp=False, bf16=True) == "float32"
