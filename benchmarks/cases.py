"""What `benchmarks/kernels.py` times: linears and attentions as compiled graphs, run as the engine runs a model.

A pass goes through many layers, each waiting for the one before. "memory" gives every layer weights (or keys and
values) of its own, four times the L3 in all, so that none is cached when its turn comes again; "cache" repeats one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.limits import l2_bytes, l3_bytes
from roseinfer.backends import Program, ProgramOptions, compile_program
from roseinfer.backends.native import _native
from roseinfer.backends.native.compiler import kv_block_bytes
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.batch import ForwardInputs
from roseinfer.graph import AttentionSpec, Graph, Value
from roseinfer.quant import get_format

Source = Literal["memory", "cache"]
DType = Literal["auto", "float32"]
BLOCK: int = _native.KV_BLOCK
MIN_SECONDS = 0.005  # of one sample
TARGET_OPERATIONS = 2e9  # of a pass over one cached weight,
MAX_REPETITIONS = 256  # unless that takes more than so many
SLOWNESS = {"scalar": 50}  # roughly, against the other instruction sets
FEW = 16  # with more tokens a weight's way from memory no longer matters
FILL_TOKENS = 512


class Case(Protocol):
    """One kernel at one size. Bytes and operations are those of one layer."""

    @property
    def isa(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str:
        """What it is plotted with."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def arithmetic(self) -> str:
        """f32, bf16 or int8: the peak that bounds it."""

    @property
    def operations(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

    def place(self, num_threads: int) -> str:
        """Where the bytes come from: memory, l3 or l2."""

    def seconds(self, num_threads: int) -> float:
        """Of one layer."""


def seconds_per_pass(program: Program, inputs: ForwardInputs) -> float:
    """After a pass that is not timed."""
    program.forward(inputs)
    num_passes, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < MIN_SECONDS:
        program.forward(inputs)
        num_passes += 1
    return elapsed / num_passes


def layers_from_memory(nbytes: int) -> int:
    return -(-4 * l3_bytes() // nbytes)


def cached_in(nbytes: int, num_threads: int) -> str:
    return "l2" if nbytes <= num_threads * l2_bytes() else "l3"


# -- linears ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearCase:
    """`num_tokens` activation rows times a weight [rows, columns]."""

    isa: str
    format: str
    dtype: DType  # activations: the format's own, or float32
    rows: int
    columns: int
    num_tokens: int
    source: Source

    @property
    def name(self) -> str:
        return f"{self.format} {self.rows}x{self.columns}"

    @property
    def family(self) -> str:
        return self.format

    @property
    def arithmetic(self) -> str:
        if self.dtype == "float32" or self.format in ("f32", "f16"):
            return "f32"
        if self.format == "bf16":
            return "bf16" if _native.has_bf16_dot(self.isa) else "f32"
        return "int8"

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.columns * self.num_tokens

    @property
    def nbytes(self) -> int:
        """Of the weight as packed: whole tiles of sixteen rows."""
        return -(-self.rows // 16) * packed_tile_bytes(self.format, self.columns)

    @property
    def num_layers(self) -> int:
        if self.source == "memory":
            return layers_from_memory(self.nbytes)
        target = TARGET_OPERATIONS / SLOWNESS.get(self.isa, 1)
        return int(min(max(target / self.operations, 2), MAX_REPETITIONS))

    def is_possible(self) -> bool:
        return self.columns % get_format(self.format).block_size == 0

    def is_realistic(self) -> bool:
        """A weight comes from there when a model runs."""
        is_cacheable = self.nbytes <= l3_bytes() // 2
        return is_cacheable if self.source == "cache" else self.num_tokens <= FEW or not is_cacheable

    def place(self, num_threads: int) -> str:
        return "memory" if self.source == "memory" else cached_in(self.nbytes, num_threads)

    def seconds(self, num_threads: int) -> float:
        largest = replace(self, num_tokens=max(self.num_tokens, FEW)) if self.source == "memory" else self
        program = linear_program(largest, num_threads)
        return seconds_per_pass(program, first_tokens(self.num_tokens)) / self.num_layers


@lru_cache(maxsize=1)
def linear_program(case: LinearCase, num_threads: int) -> Program:
    """y = x · w₀ᵀ, then y = y + x · wᵢᵀ for every other layer."""
    copies = [f"copy{i if case.source == 'memory' else 0}" for i in range(case.num_layers)]
    graph = Graph()
    x = graph.embedding("x", case.num_tokens, case.columns)
    y = graph.linear(x, copies[0], case.rows)
    for copy in copies[1:]:
        y = graph.add(graph.linear(x, copy, case.rows), y)
    finish(graph, y, case.num_tokens)
    weight = make_weight("copy", case.format, case.rows, case.columns)
    weights = {f"{copy}.weight": weight for copy in copies}
    for name, (rows, columns) in graph.weights.items():
        weights.setdefault(name, make_weight(name, "f32", rows, columns))
    options = ProgramOptions(case.num_tokens, case.num_tokens, 1, dtype=case.dtype)
    return compile_program("native", graph, weights, replace(options, num_threads=num_threads, isa=case.isa))


def finish(graph: Graph, y: Value, num_tokens: int) -> None:
    """A program has a KV cache and logits: an attention over one key, and a head that no row is asked of."""
    q, k, v = (graph.embedding(name, num_tokens, 16) for name in "qkv")
    attended = graph.attention(q, k, v, AttentionSpec(layer=0, num_heads=1, num_kv_heads=1, head_dim=16, scale=1.0))
    unasked = graph.linear(graph.take_logit_rows(attended), "unasked", y.width)
    graph.logits(graph.add(graph.take_logit_rows(y), unasked), "head", num_tokens)


def first_tokens(num_requests: int) -> ForwardInputs:
    """As many requests at their first token."""
    return make_inputs(np.ones(num_requests, dtype=np.int32), np.arange(num_requests).reshape(-1, 1))


def make_weight(name: str, format_name: str, rows: int, columns: int) -> Tensor:
    """Random rows that recur every sixteen: quantising takes longer than all that is timed here."""
    form = get_format(format_name)
    size = rows * columns // form.block_size * form.block_bytes
    return Tensor(name, format_name, (rows, columns), np.resize(sixteen_rows(format_name, columns), size))


def sixteen_rows(format_name: str, columns: int) -> npt.NDArray[np.uint8]:
    values = np.random.default_rng(0).normal(0, 0.05, 16 * columns).astype(np.float32)
    return get_format(format_name).quantize(values)


@lru_cache
def packed_tile_bytes(format_name: str, columns: int) -> int:
    rows = sixteen_rows(format_name, columns)
    return _native.pack(format_name, 16, columns, rows, _native.ThreadPool(1)).nbytes


# -- attention ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionCase:
    """Each of `num_requests` has `context` tokens, of which the last `new_tokens` are computed, and stored before."""

    isa: str
    kv_dtype: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    num_requests: int
    new_tokens: int
    source: Source

    @property
    def name(self) -> str:
        return f"attention {self.num_heads}/{self.num_kv_heads}x{self.head_dim} {self.kv_dtype} at {self.context}"

    @property
    def family(self) -> str:
        return f"attention, {self.kv_dtype}"

    @property
    def num_tokens(self) -> int:
        return self.num_requests * self.new_tokens

    @property
    def arithmetic(self) -> str:
        """Of the scores; int8 values are added up in a wider type, which the limit leaves out."""
        kind = {"bfloat16": "bf16", "q8": "int8"}.get(self.kv_dtype, "f32")
        return "f32" if kind == "bf16" and not _native.has_bf16_dot(self.isa) else kind

    @property
    def operations(self) -> int:
        """Two per element of query and key, and as many for the values, over the keys that a query may see."""
        pairs = sum(range(self.context - self.new_tokens + 1, self.context + 1))
        return 4 * self.num_requests * self.num_heads * self.head_dim * pairs

    @property
    def num_blocks(self) -> int:
        return self.num_requests * -(-self.context // BLOCK)

    @property
    def nbytes(self) -> int:
        """Keys and values of all requests."""
        return self.num_blocks * kv_block_bytes([self.spec(0)], self.kv_dtype)

    @property
    def num_layers(self) -> int:
        return layers_from_memory(self.nbytes) if self.source == "memory" else 2

    def spec(self, layer: int) -> AttentionSpec:
        return AttentionSpec(layer, self.num_heads, self.num_kv_heads, self.head_dim, scale=self.head_dim**-0.5)

    def place(self, num_threads: int) -> str:
        return "memory" if self.source == "memory" else cached_in(self.nbytes * self.num_layers, num_threads)

    def seconds(self, num_threads: int) -> float:
        program = attention_program(self, num_threads)
        tables = np.arange(self.num_blocks).reshape(self.num_requests, -1)
        lengths = np.full(self.num_requests, self.new_tokens, dtype=np.int32)
        inputs = make_inputs(lengths, tables, self.context - self.new_tokens)
        return seconds_per_pass(program, inputs) / self.num_layers


@lru_cache(maxsize=1)
def attention_program(case: AttentionCase, num_threads: int) -> Program:
    """A layer's output is the next one's query; keys and values are every layer's same."""
    graph = Graph()
    kv_width = case.num_kv_heads * case.head_dim
    max_tokens = max(case.num_tokens, FILL_TOKENS)
    x = graph.embedding("q", max_tokens, case.num_heads * case.head_dim)
    k, v = (graph.embedding(name, max_tokens, kv_width) for name in "kv")
    for layer in range(case.num_layers):
        x = graph.attention(x, k, v, case.spec(layer))
    graph.logits(graph.take_logit_rows(x), "head", max_tokens)
    weights = {name: make_weight(name, "f32", *shape) for name, shape in graph.weights.items()}
    options = ProgramOptions(case.num_blocks, max_tokens, 1, kv_dtype=case.kv_dtype)
    program = compile_program("native", graph, weights, replace(options, num_threads=num_threads, isa=case.isa))
    fill(program, case.num_blocks)
    return program


def fill(program: Program, num_blocks: int) -> None:
    """Every block gets sixteen tokens: memory that was never written would be read from one page."""
    for blocks in np.array_split(np.arange(num_blocks), -(-num_blocks * BLOCK // FILL_TOKENS)):
        program.forward(make_inputs(np.full(len(blocks), BLOCK, dtype=np.int32), blocks.reshape(-1, 1)))


def make_inputs(lengths: npt.NDArray[np.int32], tables: npt.NDArray[np.int_], first: int = 0) -> ForwardInputs:
    """Requests with so many new tokens each, from position `first` on; no logits are asked for."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = np.arange(offsets[-1], dtype=np.int32)
    return ForwardInputs(
        token_ids=tokens,
        positions=(tokens - np.repeat(offsets[:-1], lengths) + first).astype(np.int32),
        row_offsets=offsets,
        block_tables=np.ascontiguousarray(tables, dtype=np.int32),
        logit_rows=np.zeros(0, dtype=np.int32),
    )
