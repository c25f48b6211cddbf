"""The growth benchmark: lengths and times, over a model whose steps take as long as they are told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import growth
from tests.fake_model import MAX_MODEL_LEN, RecitingProgram, fake_engine

STEP = 0.01


@pytest.fixture
def program() -> RecitingProgram:
    program = RecitingProgram()
    program.step_seconds = STEP
    return program


def test_prompts_double_up_to_the_longest() -> None:
    assert growth.prompt_lens(100) == [16, 32, 64, 100]
    assert growth.prompt_lens(64) == [16, 32, 64]


def test_prefill_is_the_prompts_steps_and_tpot_one(program: RecitingProgram) -> None:
    with fake_engine(program) as engine:
        prefill, tpot = growth.run(engine.client, 300, np.random.default_rng(0))
    assert len(program.num_rows) == 2 + growth.OUTPUT_LEN - 1  # 300 tokens take two steps of at most 256
    assert 2 * STEP <= prefill < 20 * STEP
    assert STEP <= tpot < 10 * STEP


def test_lengths_end_where_the_model_does() -> None:
    with fake_engine() as engine:
        points = list(growth.measure(engine.client, 10_000, 2))
    assert [p.prompt_len for p in points] == [16, 32, 64, 128, 256, MAX_MODEL_LEN - growth.OUTPUT_LEN]
    assert all(p.context == p.prompt_len + 16 and p.prefill > 0 and p.tpot > 0 for p in points)


def test_the_report_goes_to_the_screen_and_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "InferenceEngine", lambda model, threads: fake_engine())
    growth.main(["a-model", "--rounds", "1", "--max-len", "64", "--json", str(tmp_path / "new" / "growth.json")])
    content = json.loads((tmp_path / "new" / "growth.json").read_text("utf-8"))
    assert [p["prompt_len"] for p in content["models"]["fake"]] == [16, 32]
    assert "fake" in capsys.readouterr().out
