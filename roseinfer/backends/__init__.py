"""What a backend gives the engine: a program compiled from a graph and its weights.

Found by folder: `roseinfer.backends.<name>.compile(graph, weights, options)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.batch import Float32Array, ForwardInputs, SampleOutput, SamplingInputs, ScoreInputs, UInt64Array
from roseinfer.graph import Graph


@dataclass(frozen=True, slots=True)
class KvFile:
    """A file that holds the KV blocks, from `offset` on, a multiple of 2 MiB, to a multiple of it."""

    fd: int
    offset: int


@dataclass(frozen=True, slots=True)
class ProgramOptions:
    """The sizes a program is compiled for; a step never exceeds them."""

    num_blocks: int
    max_batch_tokens: int  # T of a step
    max_logit_rows: int  # L of a step
    block_size: int = 16
    dtype: str = "auto"  # activations of linears: auto | float32 | bfloat16 | float16
    kv_dtype: str = "float16"  # float16 | bfloat16 | float32 | q8, where the backend has it
    num_threads: int = 0  # 0 = all cores
    isa: str = "auto"  # native only: auto | scalar | avx2 | avx512 | avx512_bf16
    progress_counter: UInt64Array | None = None  # [1], raised as long as kernels get on; a watchdog looks at it
    kv_file: KvFile | None = None  # native only: memory for KV blocks that outlives the program; None = its own


Progress = Callable[[int, int], None]  # bytes of weights loaded so far, and in all


class Program(Protocol):
    """A compiled model with its weights and its KV memory. One thread calls it at a time."""

    vocab_size: int

    def forward(self, inputs: ForwardInputs) -> None:
        """Computes the step: stores keys and values, leaves logits [L, vocab] behind for `sample`."""

    def sample(self, inputs: SamplingInputs) -> SampleOutput:
        """Chooses a token for the rows named, from the last forward's logits."""

    def score(self, inputs: ScoreInputs) -> SampleOutput:
        """Logprobs of tokens that are known already, from the last forward's logits."""

    def logits(self) -> Float32Array:
        """The last forward's logits [L, vocab], for tests and tools."""

    def memory(self) -> dict[str, int]:
        """Bytes by use: weights, kv_cache, activations."""

    def close(self) -> None: ...


def compile_program(
    backend: str,
    graph: Graph,
    weights: Mapping[str, Tensor],
    options: ProgramOptions,
    progress: Progress | None = None,
) -> Program:
    module: Any = importlib.import_module(f"{__name__}.{backend}")
    program: Program = module.compile(graph, weights, options, progress=progress)
    return program
