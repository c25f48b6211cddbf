"""JSON schemas with a real model: whatever it finishes satisfies its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from roseinfer.core.messages import Grammar
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.generation import Generation, merge
from roseinfer.inference_engine import InferenceEngine
from roseinfer.text.output_text import TextDelta
from tests.constraints.schemas import load_schemas, parse, validator_of

SCHEMAS = load_schemas()


@pytest.fixture(scope="module")
def engine(smollm2_path: Path) -> Iterator[InferenceEngine]:
    with InferenceEngine(str(smollm2_path)) as engine:
        yield engine


def prepare(engine: InferenceEngine, index: int, max_tokens: int = 80) -> Generation:
    name, schema = SCHEMAS[index]
    ids = engine.tokenizer.encode(f"An example of {name.rpartition('/')[2]} as JSON, as short as possible:\n")
    grammar = Grammar("json_schema", json.dumps(schema))
    params = SamplingParams(max_tokens=max_tokens, temperature=0.7, seed=index, grammar=grammar)
    return engine.prepare_ids([ids], params)[0]


def run(engine: InferenceEngine, generations: list[Generation]) -> list[str]:
    deltas: dict[str, list[TextDelta]] = {generation.request.request_id: [] for generation in generations}
    for generation, delta in engine.run(generations):
        deltas[generation.request.request_id].append(delta)
    return [merge(parts).text for parts in deltas.values()]


@pytest.mark.timeout(900)
def test_what_is_finished_is_valid(engine: InferenceEngine) -> None:
    assert len(SCHEMAS) >= 200
    generations = [prepare(engine, index) for index in range(len(SCHEMAS))]
    texts = run(engine, generations)
    finished = [index for index, each in enumerate(generations) if each.record.finish_reason == "stop"]
    for index in finished:
        name, schema = SCHEMAS[index]
        problems = list(validator_of(schema).iter_errors(parse(texts[index])))
        assert not problems, f"{name}: {texts[index]!r}: {problems[0].message}"
    assert len(finished) > len(SCHEMAS) / 2


def test_an_answer_does_not_depend_on_its_neighbours(engine: InferenceEngine) -> None:
    indices = range(0, len(SCHEMAS), 24)
    together = run(engine, [prepare(engine, index, 40) for index in indices])
    assert [run(engine, [prepare(engine, index, 40)])[0] for index in indices] == together
