"""The kernel benchmark: what its cases multiply, from where, and what it says about them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cases, kernels, limits
from benchmarks.cases import AttentionCase, LinearCase
from benchmarks.limits import Limits
from roseinfer.backends.native import _native
from roseinfer.quant import get_format

ISA = _native.isa("auto")
LINEAR = LinearCase(ISA, "q4_1", "auto", 48, 64, 4, "memory")
ATTENTION = AttentionCase(ISA, "float16", 4, 2, 32, context=48, num_requests=2, new_tokens=3, source="memory")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small caches and short samples: what a case needs to be uncached is quickly made."""
    for module in (cases, limits):
        monkeypatch.setattr(module, "l3_bytes", lambda: 16 << 10)
    monkeypatch.setattr(limits, "MEMORY_BYTES", 8 << 20)
    monkeypatch.setattr(limits, "SECONDS", 0.001)
    monkeypatch.setattr(cases, "MIN_SECONDS", 0.0001)
    cases.linear_program.cache_clear()
    cases.attention_program.cache_clear()


def test_bytes_and_operations_of_a_linear() -> None:
    assert LINEAR.operations == 2 * 48 * 64 * 4
    assert LINEAR.nbytes == 48 * 64 // 32 * get_format("q4_1").block_bytes
    assert replace(LINEAR, rows=41).nbytes == LINEAR.nbytes  # three whole tiles


def test_weights_from_memory_are_distinct_and_four_times_the_l3() -> None:
    assert LINEAR.num_layers * LINEAR.nbytes >= 4 * (16 << 10)
    from_memory = cases.linear_program(LINEAR, 1).memory()["weights"]
    from_cache = cases.linear_program(replace(LINEAR, source="cache"), 1).memory()["weights"]
    assert from_memory - from_cache == (LINEAR.num_layers - 1) * LINEAR.nbytes


def test_a_weight_is_timed_from_where_it_comes_when_a_model_runs() -> None:
    small, large = LINEAR, replace(LINEAR, rows=4800)
    expected = {("memory", 4): (True, True), ("memory", 64): (False, True), ("cache", 64): (True, False)}
    for (source, num_tokens), (of_small, of_large) in expected.items():
        for case, is_realistic in ((small, of_small), (large, of_large)):
            sized = replace(case, source=source, num_tokens=num_tokens)  # type: ignore[arg-type]
            assert sized.is_realistic() == is_realistic
    assert not replace(LINEAR, format="q4_k").is_possible()


@pytest.mark.parametrize("isa", _native.available_isas())
def test_arithmetic_is_what_the_backend_computes_in(isa: str) -> None:
    of_bf16 = "bf16" if _native.has_bf16_dot(isa) else "f32"
    expected = {"q4_1": "int8", "q6_k": "int8", "bf16": of_bf16, "f16": "f32", "f32": "f32"}
    for name, arithmetic in expected.items():
        case = replace(LINEAR, isa=isa, format=name)
        assert (case.arithmetic, replace(case, dtype="float32").arithmetic) == (arithmetic, "f32")
    assert replace(ATTENTION, isa=isa, kv_dtype="bfloat16").arithmetic == of_bf16


def test_bytes_and_operations_of_attention() -> None:
    keys_seen = [46, 47, 48]
    assert ATTENTION.operations == sum(2 * 4 * 32 * (2 * n) * 2 for n in keys_seen)
    assert ATTENTION.num_tokens == 6
    program = cases.attention_program(ATTENTION, 1)
    assert program.memory()["kv_cache"] == ATTENTION.nbytes * ATTENTION.num_layers >= 4 * (16 << 10)


def test_inputs_are_requests_at_the_end_of_their_context() -> None:
    inputs = cases.make_inputs(np.array([2, 2], dtype=np.int32), np.array([[0, 1], [2, 3]]), 30)
    assert inputs.token_ids.tolist() == [0, 1, 2, 3]
    assert inputs.positions.tolist() == [30, 31, 30, 31]
    assert inputs.row_offsets.tolist() == [0, 2, 4]
    assert inputs.logit_rows.size == 0


def test_the_floor_is_the_limit_that_takes_longer() -> None:
    measured = Limits([ISA], _native.ThreadPool(1))
    measured.samples[ISA] |= {"memory": [10.0], "l2": [40.0], "f32": [50.0], "int8": [100.0]}
    decode, prefill = replace(LINEAR, num_tokens=1), replace(LINEAR, num_tokens=4096)
    samples = [3e-6, 1e-6, 2e-6]
    result = kernels.make_result(decode, samples, measured, 1)
    assert (result.limit, result.seconds) == ("memory", 2e-6)
    assert result.figures()["fraction"] == pytest.approx(decode.nbytes / 10e9 / 2e-6)
    result = kernels.make_result(prefill, samples, measured, 1)
    assert result.limit == "int8"
    assert result.figures()["fraction"] == pytest.approx(prefill.operations / 100e9 / 2e-6)
    del measured.samples[ISA]["int8"]
    assert kernels.make_result(prefill, samples, measured, 1).limit == "f32"


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "deep" / "kernels.json"
    arguments = ["--isas", ISA, "--formats", "q4_0", "f32", "--shapes", "48x64", "--num-tokens", "1", "64"]
    kernels.main([*arguments, "--kv-dtypes", "--rounds", "2", "--threads", "2", "--json", str(path)])
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def test_the_report_has_every_case_and_the_limits(report: dict[str, Any]) -> None:
    assert report["threads"] == 2
    assert {"memory", "l3", "l2", "f32", "int8"} <= set(report["limits"][ISA])
    found = [(f["kernel"], f["num_tokens"], f["place"]) for f in report["kernels"]]
    # f32's 12 KiB are too many for half of an L3 of 16 KiB: always from memory
    assert found == [
        ("q4_0 48x64", 1, "memory"),
        ("q4_0 48x64", 1, "l2"),
        ("q4_0 48x64", 64, "l2"),
        ("f32 48x64", 1, "memory"),
        ("f32 48x64", 64, "memory"),
    ]
    assert all(len(f["samples"]) == 2 and 0 < f["seconds"] < 1 for f in report["kernels"])


def test_attention_is_timed_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ATTENTION_SIZES", ((64, 1, 1, "memory"), (64, 1, 64, "cache")))
    kernels.main(["--quick", "--formats", "--kv-dtypes", "float16", "--rounds", "1", "--threads", "1"])
    rows = [row for row in capsys.readouterr().out.splitlines() if "attention" in row]
    assert len(rows) == 2
    assert "memory" in rows[0]
