"""The CUDA benchmark: its models, what it counts, when a device is said to wait, and that every part runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import cuda, cuda_offline, cuda_start
from benchmarks.cuda_device import Mark, Memory, Multiplier, Product, clocks, describe, seconds
from benchmarks.cuda_figures import HEADER, Figure
from benchmarks.cuda_models import (
    FULL,
    TINY,
    gpt2_shape,
    llama_shape,
    make_model,
    make_tensor,
    num_operations,
    write_checkpoint,
)
from benchmarks.cuda_offline import EngineRun, PromptSource, Watch, busy_intervals, share_without_waiting
from benchmarks.cuda_steps import (
    Bench,
    Decode,
    Prefill,
    Work,
    compiled,
    linear_work,
    operation_figures,
    stack_products,
    without_layer,
)
from roseinfer.backends.cuda.program import CudaProgram
from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.batch import SampleOutput
from roseinfer.graph import Graph
from roseinfer.models import gpt2, llama, load_model
from roseinfer.text import load_tokenizer

CPU = torch.device("cpu")
BENCH = Bench(CPU, TINY, rounds=1, stack_layers=1)
SMALL = replace(
    TINY,
    decoder=llama_shape(layers=1, hidden=32, ffn=32, heads=2, kv_heads=1, vocab=40, is_tied=True),
    gpt2=gpt2_shape(layers=1, hidden=32, heads=1, vocab=40, positions=16),
    requests=2,
    prompt_len=3,
    output_len=2,
)
CASE = Decode(make_model(SMALL.decoder, "bf16"), 1, 4)


# -- models -------------------------------------------------------------------------------------------------------


def test_the_shapes_are_those_they_are_called_after() -> None:
    def parameters(shape: Any) -> int:
        graph = make_graph(shape)
        return sum(int(np.prod(weight)) for weight in graph.weights.values())

    assert parameters(FULL.decoder) == 1_235_814_400  # as Llama 3.2 1B's card says
    assert parameters(FULL.stack(32)) == 6_738_415_616  # Llama 2 7B
    assert parameters(FULL.gpt2) == 124_439_808


def make_graph(config: Any) -> Graph:
    graph = Graph()
    (gpt2 if isinstance(config, gpt2.Config) else llama).build(graph, config)
    return graph


@pytest.mark.parametrize("weight_format", ["bf16", "f16", "q8_0", "q4_k", "q6_k", "q4_0"])
def test_weights_are_random_finite_and_of_the_right_size(weight_format: str) -> None:
    values = make_tensor("w.weight", (64, 512), weight_format).numpy()
    assert values.shape == (64, 512)
    assert np.std(values) == pytest.approx(512**-0.5, rel=0.1)
    assert len({row.tobytes() for row in values}) == 64


def test_norms_scale_by_one_and_biases_add_nothing() -> None:
    assert make_tensor("norm.weight", (8,), "q4_0").numpy().tolist() == [1.0] * 8
    assert make_tensor("norm.bias", (8,), "q4_0").numpy().tolist() == [0.0] * 8


def test_the_head_has_a_format_of_its_own() -> None:
    model = make_model(TINY.quantised, "q4_k", "q6_k")
    formats = {name: tensor.format for name, tensor in model.weights.items() if len(tensor.shape) == 2}
    assert formats.pop("token_embd.weight") == "q6_k"
    assert set(formats.values()) == {"q4_k"}


def test_a_model_on_disk_is_the_one_in_memory(tmp_path: Path) -> None:
    model = make_model(TINY.decoder, "bf16")
    with open_checkpoint(write_checkpoint(model, tmp_path / "model")) as checkpoint:
        loaded = load_model(checkpoint)
        assert (loaded.config, loaded.graph) == (model.config, model.graph)
        assert list(loaded.weights) == list(model.weights)
        for name, tensor in model.weights.items():
            assert loaded.weights[name].format == tensor.format
            assert np.array_equal(loaded.weights[name].data, tensor.data)
        tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.vocab_size == TINY.decoder.vocab_size
    assert len(tokenizer.encode("née", add_bos=False)) == len("née".encode())


# -- what is counted ----------------------------------------------------------------------------------------------


def test_operations_of_a_prompt() -> None:
    c = FULL.stack(3)
    tokens = 100
    in_layer = 4096 * 4096 * 4 + 3 * 4096 * 11008
    attention = 4 * 4096 * sum(range(1, tokens + 1))
    expected = 2 * tokens * 3 * in_layer + 3 * attention + 2 * c.vocab_size * 4096
    assert num_operations(make_graph(c), tokens, 1) == expected


def test_the_librarys_products_are_those_of_a_layer() -> None:
    tokens = FULL.prefill_tokens
    of_products = sum(product.operations for product in stack_products(FULL))
    of_layer = num_operations(make_graph(FULL.stack(2)), tokens, 1) - num_operations(
        make_graph(FULL.stack(1)), tokens, 1
    )
    assert of_layer - of_products == 4 * 4096 * sum(range(1, tokens + 1))


def test_bytes_of_a_decode_step() -> None:
    case = Decode(make_model(TINY.decoder, "bf16"), 3, 20)
    assert case.kv_bytes == 3 * 2 * 16 * 2 * 2 * 2 * 16 * 2  # rows, blocks, slots, k and v, layers, heads, width, bytes
    program: Any = SimpleNamespace(memory=lambda: {"weights": 1000, "kv_cache": 1 << 40})
    assert case.num_bytes(program) == 1000 + case.kv_bytes


def test_inputs_of_a_decode_step_end_at_its_context() -> None:
    inputs = Decode(make_model(TINY.decoder, "bf16"), 3, 20).known_inputs()
    assert inputs.positions.tolist() == [19] * 3
    assert inputs.block_tables.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert len(inputs.logit_rows) == inputs.num_tokens == 3


def test_work_of_linears() -> None:
    model = make_model(TINY.decoder, "bf16")
    qkv = "linear blk.1.attn_q blk.1.attn_k blk.1.attn_v"
    assert linear_work(qkv, model, 10, 1) == Work(128 * 64 * 2, 2 * 10 * 128 * 64)
    assert linear_work("linear token_embd", model, 10, 1) == Work(320 * 64 * 2, 2 * 320 * 64)
    assert linear_work("rmsnorm", model, 10, 1) == Work()
    assert without_layer(qkv) == "linear attn_q attn_k attn_v"


def test_prefill_asks_for_the_last_tokens_logits() -> None:
    inputs = Prefill(BENCH).inputs()
    assert inputs.num_tokens == TINY.prefill_tokens
    assert inputs.logit_rows.tolist() == [TINY.prefill_tokens - 1]
    assert inputs.block_tables.shape == (1, TINY.prefill_tokens // 16)


# -- the device ---------------------------------------------------------------------------------------------------


def test_seconds_are_those_of_one_run() -> None:
    calls: list[int] = []
    taken = seconds(lambda: calls.append(sum(range(1000))), 20, CPU)
    assert len(calls) == 20
    assert 0 < taken < 0.01
    assert 0 <= Mark(CPU).seconds_until(Mark(CPU)) < 0.1


def test_rates_count_bytes_and_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.cuda_device.seconds", lambda run, repeats, device: 0.5)
    memory = Memory(CPU, 1 << 10, 1)
    assert (memory.copy_rate(), memory.read_rate()) == (4 << 10, 2 << 10)
    multiplier = Multiplier(CPU, Product("p", 2, 3, 5), 1)
    assert multiplier.rate() == 2 * 2 * 3 * 5 / 0.5


def test_a_machine_without_a_gpu_has_no_clocks() -> None:
    assert clocks(CPU) == ""
    assert describe(CPU)["torch"] == torch.__version__


def test_the_driver_is_asked_for_this_card_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(words: list[str], **_: Any) -> Any:
        asked.append(words[1:])
        has_failed = "--id=GPU-abc" in words
        return SimpleNamespace(returncode=int(has_failed), stdout="1980 MHz, 1980 MHz, 2619 MHz, 40, 99.5 W, 700 W\n")

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    assert clocks(torch.device("cuda")).startswith("clocks.sm 1980 MHz, clocks.max.sm 1980 MHz, clocks.mem 2619 MHz")
    assert ["--id=GPU-abc" in words for words in asked] == [True, False]


def test_the_profilers_device_events_are_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = torch.autograd.DeviceType
    spans = [(kinds.CUDA, 5.0, 9.0), (kinds.CPU, 0.0, 100.0), (kinds.CUDA, 1.0, 3.0), (kinds.CUDA, 2.0, 4.0)]
    events = [SimpleNamespace(device_type=kind, time_range=SimpleNamespace(start=a, end=b)) for kind, a, b in spans]
    profiler = SimpleNamespace(events=lambda: events)
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: nullcontext(profiler))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    intervals = cuda_offline.profiled_intervals(lambda: None)
    assert [(round(a * 1e6), round(b * 1e6)) for a, b in intervals] == [(1, 4), (5, 9)]


def test_measurements_take_turns() -> None:
    order: list[str] = []

    def measure(name: str, values: Iterator[float]) -> float:
        order.append(name)
        return next(values)

    bench = Bench(CPU, TINY, 3, 1)
    a, b = iter([1.0, 9.0, 2.0]), iter([5.0, 4.0, 6.0])
    assert bench.medians(lambda: measure("a", a), lambda: measure("b", b)) == [2.0, 5.0]
    assert order == ["a", "b"] * 3


# -- waiting ------------------------------------------------------------------------------------------------------


class FakeMark:
    def __init__(self, time: float, is_passed: bool) -> None:
        self.time = time
        self.is_passed = is_passed

    def seconds_until(self, later: FakeMark) -> float:
        return later.time - self.time


class FakeProgram:
    """A prompt's step without a sample, then one with; the clock goes on by the amounts given."""

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock
        self._stage = SimpleNamespace(put=lambda inputs: inputs)

    def step(self, before: float, forward: float, sample: float | None) -> None:
        self._clock[0] += before
        self._stage.put("inputs")
        self._forward(forward)
        if sample is not None:
            self._sample(sample)

    def _forward(self, seconds: float) -> None:
        self._clock[0] += seconds

    def _sample(self, seconds: float) -> None:
        self._clock[0] += seconds


def test_gaps_are_from_a_steps_end_to_the_next_ones_begin() -> None:
    clock = [0.0]
    program: Any = FakeProgram(clock)
    watch = Watch(program, lambda: FakeMark(clock[0], clock[0] > 5.0))  # type: ignore[arg-type,return-value]
    program.step(1.0, 1.0, 1.0)  # not watched
    with watch.watching():
        program.step(0.5, 1.0, None)
        program.step(0.25, 1.0, 2.0)
        program.step(0.125, 1.0, 2.0)
    program.step(1.0, 1.0, 1.0)
    assert watch.gaps() == [0.25, 0.125]
    assert [step.is_ahead for step in watch.steps] == [False, True, False]  # the second one's end was passed


def test_share_of_steps_that_did_not_wait() -> None:
    assert share_without_waiting([0.0, 10e-6, 30e-6, 1.0]) == 0.5
    assert share_without_waiting([]) == 0.0


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=12))
def test_busy_intervals_are_the_union(spans: list[tuple[int, int]]) -> None:
    intervals = [(float(start), float(start + length)) for start, length in spans]
    merged = busy_intervals(intervals)
    for moment in np.arange(0.5, 36.0):
        assert any(a < moment < b for a, b in intervals) == any(a < moment < b for a, b in merged)
    assert all(before[1] < after[0] for before, after in pairwise(merged))


# -- the report ---------------------------------------------------------------------------------------------------


def test_a_figure_is_a_line_under_the_header() -> None:
    row = Figure("decode", 1.5, "ms", 0.8, ">= 80 %", "a note").row()
    assert row.endswith("1.500 ms          80.0%  >= 80 %  a note")
    assert HEADER.index("value") + len("value") == row.index("1.500") + len("1.500")
    assert [Figure("", value, "").row().strip() for value in (0.0, 12.34, 1234.5)] == ["0", "12.3", "1,234"]


def test_a_part_that_fails_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: Bench) -> Iterator[Figure]:
        yield Figure("before", 1.0, "ms")
        raise SystemExit("the server ended")

    monkeypatch.setitem(cuda.PARTS, "start", broken)
    path = tmp_path / "deep" / "cuda.json"
    assert cuda.main(["--tiny", "--rounds", "1", "--only", "start", "limits", "--json", str(path)]) == 1
    content = json.loads(path.read_text("utf-8"))
    assert content["failed"] == {"start": "SystemExit('the server ended')"}
    assert [figure["name"] for figure in content["parts"]["start"]] == ["before"]
    assert len(content["parts"]["limits"]) == 8
    assert all(figure["value"] > 0 for figure in content["parts"]["limits"])
    assert "start failed: the server ended" in capsys.readouterr().out


def test_starts_take_turns_with_an_empty_and_a_full_kernel_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def fake(command: str, url: str, body: str, model: Path, timeout: float) -> Any:
        cache = Path(os.environ[cuda_start.CACHE])
        assert "--device cuda" in command
        assert (model / "model.safetensors").exists()
        cache.mkdir(exist_ok=True)
        (cache / str(len(seen))).touch()
        seen.append((cache.name, len(list(cache.iterdir()))))
        return SimpleNamespace(seconds=float(len(seen)))

    monkeypatch.delenv(cuda_start.CACHE, raising=False)
    monkeypatch.setattr(cuda_start, "measure", fake)
    figures = list(cuda_start.start(Bench(CPU, TINY, 2, 1)))
    assert seen == [("kernels", 1), ("kernels-0", 1), ("kernels", 2), ("kernels-1", 1), ("kernels", 3)]
    assert [figure.value for figure in figures] == [4.0, 3.0]


def test_a_server_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_start, "SERVE", "echo no driver >'{log}'; exit 3")
    with pytest.raises(RuntimeError, match=r"(?s)ended with 3.*no driver"):
        cuda_start.seconds_to_token(tmp_path / "model", tmp_path / "kernels")


# -- on the device ------------------------------------------------------------------------------------------------


def test_a_step_without_tokens_is_an_error() -> None:
    nothing = SampleOutput(np.array([3, -1], dtype=np.int32), np.empty(2, dtype=np.float32))
    program: Any = SimpleNamespace(launch=lambda *_: SimpleNamespace(collect=lambda: (nothing, None)))
    with pytest.raises(RuntimeError, match="no tokens"):
        Decode(make_model(TINY.decoder, "bf16"), 2, 16).launched_seconds(program, 1)


def test_every_launch_goes_on_with_what_the_one_before_samples() -> None:
    events: list[tuple[str, Any]] = []

    def launch(forward: Any, sampling: Any, score: None) -> Any:
        number = sum(kind == "launch" for kind, _ in events)
        events.append(("launch", forward.token_ids.tolist()))

        def collect() -> Any:
            events.append(("collect", number))
            return SampleOutput(np.zeros(2, dtype=np.int32), np.empty(0, dtype=np.float32)), None

        return SimpleNamespace(collect=collect)

    program: Any = SimpleNamespace(launch=launch)
    Decode(make_model(TINY.decoder, "bf16"), 2, 16).launched_seconds(program, 2)
    ahead = ("launch", [-1, -2])
    begin = [("launch", [1, 2]), ahead, ("collect", 0)]
    assert events == [*begin, ahead, ("collect", 1), ahead, ("collect", 2), ("collect", 3)]


@pytest.fixture(scope="module")
def program() -> Iterator[CudaProgram]:
    with compiled(CASE.model, CASE.options) as program:
        CASE.fill(program)
        yield program


def test_a_decode_step_is_timed(program: CudaProgram) -> None:
    assert CASE.launched_seconds(program, 1) > 0
    assert CASE.kernel_seconds(program, 1, CPU) > 0


def test_operations_are_timed_by_their_kind(program: CudaProgram) -> None:
    bench = Bench(CPU, SMALL, 1, 1)
    figures = list(operation_figures(bench, program, CASE.model, CASE.known_inputs(), Work(64), CASE.rows, "decode"))
    times = {figure.name.removeprefix("decode: "): figure.value for figure in figures}
    assert times.pop("all operations") == pytest.approx(sum(times.values()))
    assert {"attention", "rmsnorm", "embedding", "linear attn_q attn_k attn_v", "linear token_embd"} <= set(times)
    assert list(times.values()) == sorted(times.values(), reverse=True)
    limited = {figure.name.removeprefix("decode: ") for figure in figures if figure.share is not None}
    assert limited == {"all operations", "attention", *(name for name in times if name.startswith("linear"))}


def test_requests_run_through_the_engine() -> None:
    prompts = PromptSource(SMALL)
    with cuda_offline.running_engine(SMALL) as (engine, program):
        watch = Watch(program, lambda: Mark(CPU))
        run = EngineRun(engine, SMALL.output_len)
        with watch.watching():
            assert run.seconds(prompts.draw()) > 0
    assert len(watch.steps) >= SMALL.output_len
    assert all(gap >= 0 for gap in watch.gaps())
