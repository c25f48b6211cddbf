"""A graph compiled for torch: weights as dense tensors on the device, ops run in the graph's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from roseinfer.backends import ProgramOptions, Progress
from roseinfer.backends.sampling import sample, score
from roseinfer.backends.torch import ops
from roseinfer.backends.torch.kv_cache import PagedKVCache
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.batch import Float32Array, ForwardInputs, SampleOutput, SamplingInputs, ScoreInputs
from roseinfer.core.errors import ConfigError
from roseinfer.graph import AttentionSpec, Graph
from roseinfer.graph import graph as kinds

_DTYPES = {
    "auto": torch.float32,
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def compile(
    graph: Graph,
    weights: Mapping[str, Tensor],
    options: ProgramOptions,
    progress: Progress | None = None,
    device: str = "cpu",
) -> TorchProgram:
    program = TorchProgram(graph, weights, options, torch.device(device))
    if progress is not None:
        total = sum(tensor.data.nbytes for tensor in weights.values())
        progress(total, total)
    return program


class TorchProgram:
    """`roseinfer.backends.Program` in torch; beyond it, dtypes may be float64 too."""

    def __init__(
        self, graph: Graph, weights: Mapping[str, Tensor], options: ProgramOptions, device: torch.device
    ) -> None:
        self.vocab_size = graph.vocab_size
        self._graph = graph
        self._options = options
        self._device = device
        self._dtype = _dtype("dtype", options.dtype)
        self._weights = {name: self._dense(tensor) for name, tensor in weights.items()}
        self._kv_cache = PagedKVCache(
            graph.attention_specs, options.num_blocks, options.block_size, _dtype("kv_dtype", options.kv_dtype), device
        )
        self._logits = torch.empty((0, self.vocab_size), dtype=self._dtype, device=device)

    @torch.inference_mode()
    def forward(self, inputs: ForwardInputs) -> None:
        self._check(inputs)
        step = _Step(self._weights, self._kv_cache, inputs, self._device)
        values: list[torch.Tensor] = []
        for op in self._graph.ops:
            values.append(_RUNNERS[type(op.kind)](step, op.kind, *(values[value.index] for value in op.inputs)))
        assert self._graph.logits_value is not None
        self._logits = values[self._graph.logits_value.index]

    def sample(self, inputs: SamplingInputs) -> SampleOutput:
        return sample(self.logits(), inputs)

    def score(self, inputs: ScoreInputs) -> SampleOutput:
        return score(self.logits(), inputs)

    def logits(self) -> Float32Array:
        return self._logits.float().cpu().numpy()

    def memory(self) -> dict[str, int]:
        return {
            "weights": sum(weight.nbytes for weight in self._weights.values()),
            "kv_cache": self._kv_cache.num_bytes,
            "activations": self._logits.nbytes,
        }

    def close(self) -> None:
        self._weights.clear()

    def _dense(self, tensor: Tensor) -> torch.Tensor:
        # A copy: the values may be a view into a read-only mapping of the file.
        return torch.tensor(tensor.numpy(), dtype=self._dtype, device=self._device)

    def _check(self, inputs: ForwardInputs) -> None:
        """A step within the sizes compiled for, positions consecutive: the other side of `ForwardInputs`' contract."""
        offsets = inputs.row_offsets
        assert inputs.num_tokens == len(inputs.positions) == offsets[-1] <= self._options.max_batch_tokens
        assert len(inputs.logit_rows) <= self._options.max_logit_rows
        assert len(inputs.block_tables) == len(offsets) - 1
        assert offsets[0] == 0
        assert (np.diff(offsets) > 0).all()
        for start, end in pairwise(offsets):
            assert (np.diff(inputs.positions[start:end]) == 1).all()


class _Step:
    """One forward step: the inputs on the device, and a method per op kind."""

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        kv_cache: PagedKVCache,
        inputs: ForwardInputs,
        device: torch.device,
    ) -> None:
        self._weights = weights
        self._kv_cache = kv_cache
        self._token_ids, self._positions, self._block_tables, self._logit_rows = (
            torch.tensor(array, dtype=torch.int64, device=device)
            for array in (inputs.token_ids, inputs.positions, inputs.block_tables, inputs.logit_rows)
        )
        self._rows = [slice(a, b) for a, b in pairwise(inputs.row_offsets)]

    def embedding(self, op: kinds.Embedding) -> torch.Tensor:
        return ops.embedding(self._token_ids, self._weights[op.weight], op.scale)

    def position_embedding(self, op: kinds.PositionEmbedding) -> torch.Tensor:
        return ops.embedding(self._positions, self._weights[op.weight])

    def linear(self, op: kinds.Linear, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weights[op.weight], self._weights[op.bias] if op.bias else None)

    def rms_norm(self, op: kinds.RMSNorm, x: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(x, self._weights[op.weight], op.eps, op.num_heads)

    def layer_norm(self, op: kinds.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        return ops.layer_norm(x, self._weights[op.weight], self._weights[op.bias], op.eps)

    def rope(self, op: kinds.Rope, x: torch.Tensor) -> torch.Tensor:
        return ops.rope(x, self._positions, op.spec, op.num_heads)

    def attention(self, op: kinds.Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.unflatten(-1, (-1, op.spec.head_dim)) for x in (q, k, v))
        return torch.cat([self._attend(op.spec, i, q[row], k[row], v[row]) for i, row in enumerate(self._rows)])

    def gated(self, op: kinds.Gated, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return ops.ACTIVATIONS[op.activation](gate) * up

    def activation(self, op: kinds.Activation, x: torch.Tensor) -> torch.Tensor:
        return ops.ACTIVATIONS[op.kind](x)

    def add(self, op: kinds.Add, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b

    def take_logit_rows(self, op: kinds.TakeLogitRows, x: torch.Tensor) -> torch.Tensor:
        return x[self._logit_rows]

    def _attend(self, spec: AttentionSpec, row: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        positions, table = self._positions[self._rows[row]], self._block_tables[row]
        self._kv_cache.store(spec.layer, table, positions, k, v)
        first, last = int(positions[0]), int(positions[-1])
        # Blocks that slid out of every query's window may be gone: only what is seen is read.
        start = max(0, first - spec.window + 1) if spec.window else 0
        keys_at = torch.arange(start, last + 1, device=q.device)
        k, v = self._kv_cache.load(spec.layer, table, keys_at, q.dtype)
        distance = positions[:, None] - keys_at
        visible = distance >= 0
        if spec.window:
            visible &= distance < spec.window
        return ops.attention(q, k, v, visible, spec.scale)


_RUNNERS: dict[type, Callable[..., torch.Tensor]] = {
    kinds.Embedding: _Step.embedding,
    kinds.PositionEmbedding: _Step.position_embedding,
    kinds.Linear: _Step.linear,
    kinds.RMSNorm: _Step.rms_norm,
    kinds.LayerNorm: _Step.layer_norm,
    kinds.Rope: _Step.rope,
    kinds.Attention: _Step.attention,
    kinds.Gated: _Step.gated,
    kinds.Activation: _Step.activation,
    kinds.Add: _Step.add,
    kinds.TakeLogitRows: _Step.take_logit_rows,
}


def _dtype(option: str, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ConfigError(f"{option} must be one of {', '.join(_DTYPES)}, got {name!r}")
    return _DTYPES[name]
