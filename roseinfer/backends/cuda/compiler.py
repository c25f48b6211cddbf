"""Graph + weights → CUDA program: fuses, plans memory, and makes of each fused operation a function of a step.

Activations are float32, but for those that only linears read: these have the compute dtype, which is what tensor cores
multiply. So the residual stream loses nothing from one layer to the next, whatever the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from roseinfer.backends import ProgramOptions
from roseinfer.backends.cuda.inputs import StepInputs
from roseinfer.backends.cuda.kernels import elementwise
from roseinfer.backends.cuda.kernels.attention import (
    SPLIT_KEYS,
    attention,
    attention_workspace_floats,
    tokens_per_tile,
)
from roseinfer.backends.cuda.kernels.embedding import embedding
from roseinfer.backends.cuda.kernels.library_linear import is_worth_it, library_linear
from roseinfer.backends.cuda.kernels.linear import linear, linear_workspace_floats
from roseinfer.backends.cuda.kernels.norms import layer_norm, rms_norm
from roseinfer.backends.cuda.kernels.store_kv import store_kv
from roseinfer.backends.cuda.kernels.workspace import Workspace
from roseinfer.backends.cuda.kv_cache import KvLayer
from roseinfer.backends.cuda.weights import Weights
from roseinfer.graph import AttentionSpec, Graph, Op, Value
from roseinfer.graph.fusion import Fused, FusedAttention, FusedLinear, fuse, inputs_of, lifetimes, outputs_of
from roseinfer.graph.graph import (
    Activation,
    Add,
    Embedding,
    Gated,
    LayerNorm,
    PositionEmbedding,
    RMSNorm,
    Rope,
    TakeLogitRows,
)
from roseinfer.graph.memory import Span, plan_memory

ATTENTION_PROGRAMS = 264  # wanted at once: two for each multiprocessor of a large GPU
MAX_PARTIAL_FLOATS = 16 << 20  # of attention's split work: 64 MiB
NUM_COUNTERS = 1 << 16

Operation = Callable[[StepInputs], None]


@dataclass(frozen=True)
class Buffer:
    """A value's memory [most rows, width]; the rows of several values may lie side by side."""

    memory: torch.Tensor
    rows: str  # tokens | logits

    def of(self, step: StepInputs) -> torch.Tensor:
        return self.memory[: step.num(self.rows)]


@dataclass(frozen=True)
class Compiled:
    """Operations in their order, and what they compute in."""

    operations: list[tuple[str, Operation]]  # with a name for profiles
    logits: Buffer
    tile_sizes: tuple[int, ...]  # tokens of attention's query tiles
    activation_bytes: int


class Compiler:
    """`layers`: the KV cache of each attention layer."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        options: ProgramOptions,
        layers: Mapping[int, KvLayer],
        device: torch.device,
    ) -> None:
        self.graph = graph
        self.weights = weights
        self.options = options
        self.layers = layers
        self.device = device
        self.fused = fuse(graph, weights.layout)

    def compile(self) -> Compiled:
        assert self.graph.logits_value is not None
        self.buffers, arena_bytes = self.plan_buffers()
        self.workspace = Workspace(self.device, max(self.linear_floats(), self.attention_floats()), NUM_COUNTERS)
        operations = [(_name(op), self.emit(op)) for op in self.fused]
        workspace_bytes = self.workspace.partials.nbytes + self.workspace.counters.nbytes
        return Compiled(
            operations,
            self.buffers[self.graph.logits_value.index],
            tuple(sorted({tokens_per_tile(spec) for spec in self.graph.attention_specs})),
            arena_bytes + workspace_bytes,
        )

    # -- memory ---------------------------------------------------------------------------------------------

    def plan_buffers(self) -> tuple[dict[int, Buffer], int]:
        """A buffer for each value; outputs of one linear are parts of one. Returns the bytes of all, too."""
        groups = [outputs_of(op) for op in self.fused]
        assert self.graph.logits_value is not None
        _, last = lifetimes(self.fused, self.graph.logits_value)
        spans = [Span(self._num_bytes(g), i, max(last[v.index] for v in g)) for i, g in enumerate(groups)]
        offsets, total = plan_memory(spans)
        arena = torch.empty(max(total, 1), dtype=torch.uint8, device=self.device)
        buffers: dict[int, Buffer] = {}
        for group, span, offset in zip(groups, spans, offsets, strict=True):
            memory = arena[offset : offset + span.size].view(self._dtype(group)).view(self._num_rows(group[0]), -1)
            parts = memory.split([value.width for value in group], dim=1)
            buffers |= {v.index: Buffer(part, v.rows) for v, part in zip(group, parts, strict=True)}
        return buffers, total

    def _num_rows(self, value: Value) -> int:
        return self.options.max_batch_tokens if value.rows == "tokens" else self.options.max_logit_rows

    def _num_bytes(self, group: tuple[Value, ...]) -> int:
        return self._num_rows(group[0]) * sum(value.width for value in group) * self._dtype(group).itemsize

    def _dtype(self, group: tuple[Value, ...]) -> torch.dtype:
        indices = {value.index for value in group}
        readers = [op for op in self.fused if indices & {value.index for value in inputs_of(op)}]
        is_multiplied = all(
            isinstance(op, FusedLinear) and (op.residual is None or op.residual.index not in indices) for op in readers
        )
        return self.weights.dtype if readers and is_multiplied else torch.float32

    def linear_floats(self) -> int:
        matrices = [self.weights.matrix(*op.weights) for op in self.fused if isinstance(op, FusedLinear)]
        return max((linear_workspace_floats(matrix, self.options.max_batch_tokens) for matrix in matrices), default=1)

    def attention_floats(self) -> int:
        """Enough for one token, whatever its context, and not much more than that for many."""
        context = -(-self.options.num_blocks * self.options.block_size // SPLIT_KEYS)
        specs = self.graph.attention_specs
        least = max((attention_workspace_floats(1, s.num_heads, s.head_dim, context) for s in specs), default=1)
        tokens = self.options.max_batch_tokens
        most = max((attention_workspace_floats(tokens, s.num_heads, s.head_dim, context) for s in specs), default=1)
        return max(least, min(most, MAX_PARTIAL_FLOATS))

    def num_splits(self, spec: AttentionSpec, step: StepInputs) -> int:
        """How many programs may share the keys of a query tile: several where tiles alone would not fill the device."""
        most = -(-step.context // SPLIT_KEYS)
        num_tiles = step.tiles[tokens_per_tile(spec)].rows.shape[0] * spec.num_kv_heads
        return 1 if num_tiles > NUM_COUNTERS else min(most, -(-ATTENTION_PROGRAMS // num_tiles))

    # -- operations -----------------------------------------------------------------------------------------

    def emit(self, op: Fused) -> Operation:
        if isinstance(op, FusedLinear):
            return self.emit_linear(op)
        if isinstance(op, FusedAttention):
            return self.emit_attention(op)
        return self.emit_single(op)

    def emit_linear(self, op: FusedLinear) -> Operation:
        matrix = self.weights.matrix(*op.weights)
        widths = [self.graph.weights[name][0] for name in op.weights]
        bias = self.weights.joined_vector(op.biases, widths)
        x, out = self.buffer(op.x), self.joined_output(op)
        residual = self.buffer(op.residual) if op.residual else None
        gated = isinstance(op.epilogue, Gated)
        epilogue = {"bias": bias, "activation": op.activation, "gated": gated}
        # cuBLAS chooses its kernel by the number of tokens, so an answer would depend on its neighbours.
        by_library = self.options.fast and matrix.layout == "dense"

        def run(step: StepInputs) -> None:
            given = residual.of(step) if residual else None
            if by_library and is_worth_it(step.num(x.rows)):
                library_linear(x.of(step), matrix, out.of(step), residual=given, **epilogue)
            else:
                linear(x.of(step), matrix, out.of(step), residual=given, workspace=self.workspace, **epilogue)

        return run

    def emit_attention(self, op: FusedAttention) -> Operation:
        spec, layer = op.spec, self.layers[op.spec.layer]
        q, k, v, out = (self.buffer(value) for value in (op.q, op.k, op.v, op.output))
        settings = {
            "inv_freq": self.inv_freq(op.rope.inv_freq) if op.rope else None,
            "rope_scale": op.rope.scale if op.rope else 1.0,
            "q_norm": self.weights.vector(op.q_norm.weight) if op.q_norm else None,
            "k_norm": self.weights.vector(op.k_norm.weight) if op.k_norm else None,
            "eps": op.q_norm.eps if op.q_norm else 0.0,
        }

        def run(step: StepInputs) -> None:
            rotated = q.of(step)
            store_kv(
                rotated, k.of(step), v.of(step), step.positions, step.token_rows, step.block_tables, layer, **settings
            )
            attention(
                rotated,
                out.of(step),
                step.positions,
                step.row_offsets,
                step.block_tables,
                step.tiles[tokens_per_tile(spec)],
                layer,
                spec,
                self.num_splits(spec, step),
                self.workspace,
            )

        return run

    def emit_single(self, op: Op) -> Operation:
        out = self.buffer(op.output)
        inputs = [self.buffer(value) for value in op.inputs]
        weights = self.weights
        match op.kind:
            case Embedding(weight, scale):
                table = weights.matrix(weight)
                return lambda step: embedding(step.token_ids, table, out.of(step), scale)
            case PositionEmbedding(weight):
                table = weights.matrix(weight)
                return lambda step: embedding(step.positions, table, out.of(step), 1.0)
            case RMSNorm(weight, eps, num_heads):
                norm = partial(rms_norm, weight=weights.vector(weight), eps=eps, num_heads=num_heads)
                return lambda step: norm(inputs[0].of(step), out=out.of(step))
            case LayerNorm(weight, bias, eps):
                norm = partial(layer_norm, weight=weights.vector(weight), bias=weights.vector(bias), eps=eps)
                return lambda step: norm(inputs[0].of(step), out=out.of(step))
            case Rope(spec, num_heads):
                inv_freq = self.inv_freq(spec.inv_freq)
                return lambda step: elementwise.rope(
                    inputs[0].of(step), step.positions, inv_freq, spec.scale, out.of(step), num_heads
                )
            case Add():
                return lambda step: elementwise.add(inputs[0].of(step), inputs[1].of(step), out.of(step))
            case Activation(kind):
                return lambda step: elementwise.activate(inputs[0].of(step), out.of(step), kind)
            case Gated(activation):
                return lambda step: elementwise.gate(inputs[0].of(step), inputs[1].of(step), out.of(step), activation)
            case TakeLogitRows():
                return lambda step: elementwise.take_rows(inputs[0].of(step), step.logit_rows, out.of(step))
        raise AssertionError(f"no CUDA kernel for {op.kind}")

    def buffer(self, value: Value) -> Buffer:
        return self.buffers[value.index]

    def joined_output(self, op: FusedLinear) -> Buffer:
        """The outputs of a linear side by side, as they lie in memory."""
        first = self.buffer(op.outputs[0])
        width = sum(value.width for value in op.outputs)
        memory = first.memory.as_strided((first.memory.shape[0], width), (first.memory.stride(0), 1))
        return Buffer(memory, first.rows)

    def inv_freq(self, values: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)


def _name(op: Fused) -> str:
    if isinstance(op, FusedLinear):
        return f"linear {' '.join(name.removesuffix('.weight') for name in op.weights)}"
    return "attention" if isinstance(op, FusedAttention) else type(op.kind).__name__.lower()
