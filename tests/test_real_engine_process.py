"""SmolLM2 in a process of its own: the same answers as in this one, also when the process is killed on the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from roseinfer.core.messages import Grammar
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.engine.process import EngineProcess
from roseinfer.inference_engine import InferenceEngine

KINDS = [
    SamplingParams(max_tokens=60, temperature=0.0, logprobs=2),
    SamplingParams(max_tokens=40, temperature=0.9, seed=1, top_p=0.9, presence_penalty=0.5),
    SamplingParams(max_tokens=40, temperature=0.8, seed=2, grammar=Grammar("regex", "[a-z ]{30,200}")),
    SamplingParams(max_tokens=40, temperature=0.0, prompt_logprobs=1, repetition_penalty=1.2),
]

TEXT = "The engine goes on where it stood, whatever has become of the one before. " * 4


@pytest.fixture(scope="module")
def here(smollm2_path: Path) -> Iterator[InferenceEngine]:
    with InferenceEngine(str(smollm2_path)) as engine:
        yield engine


@pytest.fixture(scope="module")
def apart(smollm2_path: Path) -> Iterator[InferenceEngine]:
    with InferenceEngine(str(smollm2_path), engine_process=True) as engine:
        yield engine


def answers(engine: InferenceEngine, kill: bool = False) -> list[object]:
    """Everything that is said of each kind of request, run together; `kill`: with engines that die on the way."""

    def run(index: int) -> object:
        ids = engine.tokenizer.encode_prompt(f"Number {index}: {TEXT} The capital of France is")
        [generation] = engine.prepare_ids([ids], KINDS[index])
        said = []
        for number, (_, delta) in enumerate(engine.run([generation])):
            said.append((delta.text, delta.token_ids, [(t.logprob, t.top) for t in delta.tokens], delta.finish_reason))
            if kill and index == 0 and number in (20, 40):
                end_engine(engine)
        return "".join(text for text, *_ in said), [each[1:] for each in said], generation.prompt_logprobs

    with ThreadPoolExecutor(len(KINDS)) as pool:
        return list(pool.map(run, range(len(KINDS))))


def end_engine(engine: InferenceEngine, sent: signal.Signals = signal.SIGKILL) -> None:
    host = engine.client._host
    assert isinstance(host, EngineProcess)
    os.kill(host.pid or 0, sent)


def test_both_give_the_same_answers(here: InferenceEngine, apart: InferenceEngine) -> None:
    assert here.info == apart.info
    assert answers(apart) == answers(here)


def answer_of(engine: InferenceEngine, prompt: list[int]) -> tuple[int, list[object]]:
    """How much of the prompt came from the cache; the tokens, each with its logprob and the likeliest beside it."""
    [generation] = engine.prepare_ids([prompt], SamplingParams(max_tokens=8, temperature=0.0, logprobs=5))
    tokens = [(t.token_id, t.logprob, t.top) for _, delta in engine.run([generation]) for t in delta.tokens]
    return generation.record.num_cached_tokens, list(tokens)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory here")
@pytest.mark.parametrize(("sent", "is_kept"), [(signal.SIGKILL, True), (signal.SIGSEGV, False)])
def test_the_prefix_cache_outlives_an_engine_that_was_sound(
    apart: InferenceEngine, sent: signal.Signals, is_kept: bool
) -> None:
    prompt = list(range(100, 180))
    _, expected = answer_of(apart, prompt)
    assert answer_of(apart, prompt) == (64, expected)
    num_restarts = apart.client.num_restarts
    end_engine(apart, sent)
    while apart.client.num_restarts == num_restarts or not apart.client.is_ready:
        time.sleep(0.01)
    assert answer_of(apart, prompt) == (64 if is_kept else 0, expected)


def test_killed_engines_change_nothing(here: InferenceEngine, apart: InferenceEngine) -> None:
    num_restarts = apart.client.num_restarts
    assert answers(apart, kill=True) == answers(here)
    assert apart.client.num_restarts == num_restarts + 2
