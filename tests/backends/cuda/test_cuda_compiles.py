"""Every kernel compiles for GPUs that need not be there, and what comes out fits them, multiplies with their units for
that, and never contracts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from roseinfer.core.machine import usable_cores
from tests.backends.cuda.shapes import SHAPES

ROOT = Path(__file__).parents[3]
SHARED_MEMORY = {80: 99 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}  # of a program; sm_80 itself has more
LIBRARY_KERNELS = {"store_kv_kernel", "rope_kernel", "sample_kernel", "logprobs_kernel"}  # sines, logarithms
# Bytes that a thread stores and loads because registers do not suffice. Attention keeps what a split and what all
# splits amount to in them; the sampler has 512 threads for a row, and so 128 registers for each.
SPILLED: dict[tuple[int, Any], int] = {
    (80, ("attention_kernel", 64)): 80,
    (86, ("attention_kernel", 80)): 64,
    (86, ("attention_kernel", 128)): 56,
    (89, ("attention_kernel", 80)): 64,
    (89, ("attention_kernel", 128)): 56,
    (90, ("attention_kernel", 80)): 324,
    (90, ("attention_kernel", 128)): 316,
    (90, "sample_kernel"): 308,
}


@dataclass(frozen=True)
class Case:
    """What is compiled: a model of `SHAPES`, steps of so many tokens."""

    model: str
    dtype: str
    arch: int
    steps: tuple[int, ...]
    sampler: bool = False
    machine_code: bool = False

    def __str__(self) -> str:
        return f"{self.model}-{self.dtype}-sm_{self.arch}{'-machine-code' * self.machine_code}"

    @property
    def head_dim(self) -> int:
        return SHAPES[self.model].head_dim

    def compile(self, cache: Path) -> list[dict[str, Any]]:
        """What is said of each kernel."""
        environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "tests.backends.cuda.compile_kernels", self.model, self.dtype, str(self.arch)]
        command += ["--steps", *map(str, self.steps)]
        command += ["--no-sampler"] * (not self.sampler) + ["--machine-code"] * self.machine_code
        done = subprocess.run(
            command, env=environ | {"TRITON_CACHE_DIR": str(cache)}, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


CASES = [
    Case("llama-1b", "bfloat16", 90, (1, 2048), sampler=True),
    Case("llama-1b-q4_k", "float16", 80, (20,)),
    Case("gemma3", "bfloat16", 90, (40,)),
    Case("gpt2", "float16", 80, (1,), sampler=True),
    Case("qwen3", "bfloat16", 80, (2048,)),
    Case("odd", "float32", 80, (1,)),
]
EVERY_CASE = [
    Case(model, dtype, arch, (1, 20, 40, 100, 2048), sampler=True, machine_code=True)
    for model in SHAPES
    for dtype in ("bfloat16", "float16", "float32")
    for arch in SHARED_MEMORY
    if arch in (80, 90) or (dtype == "bfloat16" and model in ("llama-1b", "llama-1b-q4_k", "qwen3", "gemma3"))
]

Compiled = Callable[[Case], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiled]:
    """Compiles the cases that are to be tested, on all cores."""
    cases = {item.callspec.params["case"] for item in request.session.items if item.module is request.module}
    with ThreadPoolExecutor(usable_cores()) as executor:
        cache = tmp_path_factory.mktemp("triton")
        results: dict[Case, Future[list[dict[str, Any]]]] = {
            case: executor.submit(case.compile, cache) for case in [*CASES, *EVERY_CASE] if case in cases
        }
        yield lambda case: results[case].result()
        for result in results.values():
            result.cancel()


@pytest.fixture
def kernels(compiled: Compiled, case: Case) -> list[dict[str, Any]]:
    return compiled(case)


every_case = pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in EVERY_CASE)], ids=str
)


@every_case
def test_every_kernel_is_compiled(case: Case, kernels: list[dict[str, Any]]) -> None:
    expected = {
        "_linear_kernel",
        "attention_kernel",
        "store_kv_kernel",
        "_embedding_kernel",
        "take_rows_kernel",
        "_fill",
    }
    if case.sampler:
        expected |= {"sample_kernel", "logprobs_kernel", "count_kernel", "edit_kernel", "bias_kernel"}
    assert expected <= {kernel["kernel"] for kernel in kernels}
    assert all(kernel["registers"] > 0 for kernel in kernels)


@every_case
def test_registers_suffice(case: Case, kernels: list[dict[str, Any]]) -> None:
    """Not for attention in float32, and over wide heads, which are there for what is not worth tuning."""
    for kernel in kernels:
        is_attention = kernel["kernel"] == "attention_kernel"
        if not is_attention or (case.dtype != "float32" and case.head_dim <= 128):
            key = ("attention_kernel", case.head_dim) if is_attention else kernel["kernel"]
            assert kernel["spilled_bytes"] <= SPILLED.get((case.arch, key), 0), kernel


@every_case
def test_shared_memory_suffices(case: Case, kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[case.arch], kernel


@every_case
def test_products_of_tiles_are_those_of_the_device(case: Case, kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        multiplies = kernel["kernel"] in ("_linear_kernel", "attention_kernel") and case.dtype != "float32"
        expected = ("wgmma" if case.arch == 90 else "mma.sync") if multiplies else None
        assert {name for name, count in kernel["products"].items() if count} == ({expected} - {None}), kernel


@every_case
def test_nothing_is_contracted(case: Case, kernels: list[dict[str, Any]]) -> None:
    """Only the products of float32, and what CUDA's library says, are multiply-adds."""
    for kernel in kernels:
        assert kernel["contracted"] == 0, kernel
        is_product = kernel["kernel"] in ("_linear_kernel", "attention_kernel") and case.dtype == "float32"
        if kernel["kernel"] not in LIBRARY_KERNELS and not is_product:
            assert kernel["fused"] == 0, kernel
        # Exact divisions are made of multiply-adds, too: the sampler has some.
        if case.machine_code and kernel["kernel"] not in ("sample_kernel", "logprobs_kernel", "edit_kernel"):
            assert kernel["fused_in_machine_code"] == kernel["fused"], kernel
