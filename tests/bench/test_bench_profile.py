"""`--profile`: steps of each kind add up, and the real program has the operations that one expects."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from roseinfer.bench import profile as profiling
from roseinfer.bench.profile import print_profile, profile_workload
from roseinfer.bench.workloads import Workload
from roseinfer.core.batch import ForwardInputs
from roseinfer.core.config import load_config
from roseinfer.core.errors import ConfigError
from roseinfer.engine.engine import Engine
from tests.fake_engine import make_scheduler
from tests.fake_model import RecitingProgram


class ProfiledProgram(RecitingProgram):
    """A step takes a millisecond in `linear` per row and call, of which there are two, and nothing in `rope`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_profiled = False

    def start_profile(self) -> None:
        assert not self.is_profiled
        self.is_profiled = True

    def forward(self, inputs: ForwardInputs) -> None:
        super().forward(inputs)
        time.sleep(2e-3 * self.num_rows[-1])

    def profile(self) -> list[tuple[str, int, float]]:
        assert self.is_profiled
        self.is_profiled = False
        return [("linear", 2, 2e-3 * self.num_rows[-1]), ("rope", 1, 0.0)] if self.num_rows else []


@pytest.fixture
def program() -> ProfiledProgram:
    return ProfiledProgram()


@pytest.fixture
def engine(program: ProfiledProgram) -> Engine:
    return Engine(program, make_scheduler(num_blocks=256, max_batch_tokens=32))


def test_steps_are_told_apart(engine: Engine, program: ProfiledProgram) -> None:
    """Three prompts of 40 tokens in steps of at most 32, then nine more tokens each; after one request to warm up."""
    workload = Workload(name="x", num_requests=9, concurrency=3, input_len=40, output_len=10)
    prefill, decode = profile_workload(engine, program, workload, Random(0))
    num_warm_up_steps = 2 + 9
    assert prefill.num_steps + decode.num_steps == len(program.num_rows) - num_warm_up_steps
    assert prefill.num_steps == 4  # 120 tokens
    assert 8 <= decode.num_steps <= 9
    assert decode.calls == {"linear": 2 * decode.num_steps, "rope": decode.num_steps}
    assert decode.op_seconds["linear"] == pytest.approx(2e-3 * sum(program.num_rows[-decode.num_steps :]))
    assert decode.seconds >= decode.op_seconds["linear"]
    assert decode.rest_seconds == pytest.approx(decode.seconds - decode.op_seconds["linear"])


def test_without_decoding_there_is_no_table_of_it(engine: Engine, program: ProfiledProgram) -> None:
    phases = profile_workload(engine, program, Workload(name="x", input_len=5, output_len=1), Random(0))
    assert [(phase.name, phase.num_steps) for phase in phases] == [("steps with a prompt", 1)]


def test_a_fault_is_told(engine: Engine, program: ProfiledProgram) -> None:
    program.failure = RuntimeError("broken kernel")
    with pytest.raises(ConfigError, match="broken kernel"):
        profile_workload(engine, program, Workload(name="x", input_len=5), Random(0))


def test_tables(
    engine: Engine, program: ProfiledProgram, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profiling, "_load", lambda config: (engine, program))
    print_profile(load_config({}, environ={}), [Workload(name="mine", input_len=40, output_len=3)], seed=0)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "mine  1 at once; 40 tokens in, 3 out" in lines
    assert any(line.startswith("steps with a prompt: 2, ") for line in lines)
    assert any(line.startswith("decode steps: 2, ") for line in lines)
    linear = [line.split() for line in lines if line.startswith("linear")]
    assert [row[1:3] for row in linear] == [["4", "2.000"]] * 2
    assert sum(line.startswith("outside the operations") for line in lines) == 2
    assert program.is_closed


def test_the_real_program(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config({"model": str(smollm2_path)}, environ={})
    print_profile(config, [Workload(name="x", input_len=40, output_len=4)], seed=0)
    out = capsys.readouterr().out
    prefill, decode = out.split("decode steps:")
    for part in (prefill, decode):
        assert "linear q4_1" in part
        assert "attention" in part
    shares = [float(line.split()[-2]) for line in decode.splitlines() if line.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))


def unprofiled(*_: Any, **__: Any) -> tuple[Engine, None]:
    return Engine(RecitingProgram(), make_scheduler()), None


def test_a_program_without_profile(monkeypatch: pytest.MonkeyPatch, smollm2_path: Path) -> None:
    monkeypatch.setattr("roseinfer.engine.loader.build_engine", unprofiled)
    config = load_config({"model": str(smollm2_path)}, environ={})
    with pytest.raises(ConfigError, match="--profile: the program of this device keeps no profile"):
        print_profile(config, [Workload(name="x")], seed=0)
