"""What a backend gives the engine: a program compiled from a graph and its weights, and what it has to be sized for.

Found by folder: `roseinfer.backends.<name>` is a module with what `Backend` lists.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.batch import Float32Array, ForwardInputs, SampleOutput, SamplingInputs, ScoreInputs, UInt64Array
from roseinfer.core.errors import DeviceError
from roseinfer.graph import AttentionSpec, Graph


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
    weight_dtype: str = "auto"  # of unquantised matrices: auto | fp8, where the backend has it
    kv_dtype: str = "float16"  # float16 | bfloat16 | float32 | q8, where the backend has it
    num_threads: int = 0  # 0 = all cores
    isa: str = "auto"  # native only: auto | scalar | avx2 | avx512 | avx512_bf16
    is_restart: bool = False  # KV memory that is not there any more is no error: `reserve` gives what there is
    fast: bool = False  # a row's result may depend on the rows beside it, where that is faster
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


class Launched(Protocol):
    """A step that is under way."""

    def collect(self) -> tuple[SampleOutput | None, SampleOutput | None]:
        """Waits for its end. What was sampled, and what was scored; None where nothing was to be.

        Called once, unless the program is closed before. Raises whatever went wrong with the step.
        """


@runtime_checkable
class LookaheadProgram(Program, Protocol):
    """A program whose device computes while the host goes on.

    Step k + 1 is launched before step k is collected, so two are under way at most. They are computed and collected in
    the order of their launches. `forward`, `sample` and `score` are called only where no step is under way.
    """

    def launch(self, forward: ForwardInputs, sampling: SamplingInputs | None, score: ScoreInputs | None) -> Launched:
        """Starts a whole step: forward, then sampling and scoring, where there is anything to sample or to score.

        Where the launch before is under way, `forward.token_ids` may refer to its samples. The logits have no edits.
        Raises if nothing is under way of this step; blocks of its rows may have been written all the same.
        """


def compile_program(
    backend: str,
    graph: Graph,
    weights: Mapping[str, Tensor],
    options: ProgramOptions,
    progress: Progress | None = None,
) -> Program:
    return backend_module(backend).compile(graph, weights, options, progress=progress)


class Backend(Protocol):
    """A backend's module. The torch oracle has `compile` only, and no engine is loaded with it."""

    DEFAULT_BATCH_TOKENS: int  # of a step, where nobody says how many
    DEFAULT_REQUEST_TOKENS: int  # that an automatic KV cache has for each running request

    def compile(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        options: ProgramOptions,
        progress: Progress | None = None,
    ) -> Program:
        """Copies the weights. Raises ConfigError, DeviceError or UnsupportedModelError for what it does not have.

        A program whose KV memory grows has `reserve(num_blocks)`, see `BlockPool`; one on a GPU has `device_name`.
        """

    def check_device(self) -> None:
        """Raises DeviceError where there is no device that it can run on."""

    def kv_block_bytes(self, specs: list[AttentionSpec], kv_dtype: str) -> int:
        """Bytes of one block of 16 tokens over all layers."""

    def choose_kv_dtype(self, kv_dtype: str, dtype: str, isa: str, weights: Mapping[str, Tensor]) -> str:
        """What `kv_dtype` is, or what auto stands for."""

    def kv_memory(self, weights: Mapping[str, Tensor], dtype: str, weight_dtype: str) -> int:
        """The most bytes for an automatic KV cache beside these weights, held as the options of that name say."""


def backend_module(name: str) -> Backend:
    """Raises DeviceError if what it stands on cannot be imported."""
    try:
        module: Any = importlib.import_module(f"{__name__}.{name}")
    except (ImportError, OSError) as error:
        raise DeviceError(f"the {name} backend cannot be loaded: {error}; --device chooses another") from error
    backend: Backend = module
    return backend
