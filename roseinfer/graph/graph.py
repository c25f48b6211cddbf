"""The graph a model file builds: about fifteen op kinds over rows of features, with shape checks.

A value is a matrix [rows, width] of activations, where the rows are the step's tokens, or only those whose
logits are wanted. The graph names weights and states their shapes; it knows neither their formats nor the
backend that will run it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Rows = Literal["tokens", "logits"]


class GraphError(ValueError):
    """A model file built something that cannot be: a defect of ours, never of a user's file."""


@dataclass(frozen=True, slots=True)
class Value:
    """[rows, width] float activations; `index` is the op that makes it."""

    index: int
    width: int
    rows: Rows = "tokens"


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions (Su et al., 2021): element i of the first half turns with element i of the second half
    by position × inv_freq[i]; both results are multiplied by `scale` (yarn's attention factor).

    Containers that interleave the pairs are permuted when loaded. `len(inv_freq) * 2 <= head_dim`; the
    elements behind it are left alone (partial rotary).
    """

    inv_freq: tuple[float, ...]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Causal attention of `num_heads` queries over `num_kv_heads` keys and values of layer `layer`.

    `window`: a token sees itself and the window - 1 before it; None = all.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Embedding:  # out[t] = weight[token_ids[t]] * scale
    weight: str
    scale: float


@dataclass(frozen=True, slots=True)
class PositionEmbedding:  # out[t] = weight[positions[t]]
    weight: str


@dataclass(frozen=True, slots=True)
class Linear:  # out = x @ weight.T + bias, weight [out_features, in_features]
    weight: str
    bias: str | None


@dataclass(frozen=True, slots=True)
class RMSNorm:  # per head of width // num_heads features: x / sqrt(mean(x²) + eps) * weight
    weight: str
    eps: float
    num_heads: int = 1


@dataclass(frozen=True, slots=True)
class LayerNorm:  # (x - mean) / sqrt(var + eps) * weight + bias
    weight: str
    bias: str
    eps: float


@dataclass(frozen=True, slots=True)
class Rope:
    spec: RopeSpec
    num_heads: int


@dataclass(frozen=True, slots=True)
class Attention:  # inputs q, k, v; stores k and v in the KV cache, then attends
    spec: AttentionSpec


@dataclass(frozen=True, slots=True)
class Gated:  # activation(gate) * up
    activation: Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class Activation:
    kind: Literal["gelu", "gelu_tanh", "silu"]


@dataclass(frozen=True, slots=True)
class Add:
    pass


@dataclass(frozen=True, slots=True)
class TakeLogitRows:  # the rows whose logits are wanted
    pass


OpKind = (
    Embedding
    | PositionEmbedding
    | Linear
    | RMSNorm
    | LayerNorm
    | Rope
    | Attention
    | Gated
    | Activation
    | Add
    | TakeLogitRows
)


@dataclass(frozen=True, slots=True)
class Op:
    kind: OpKind
    inputs: tuple[Value, ...]
    output: Value


@dataclass
class Graph:
    """Filled by a model's `build`; read by a backend's compiler. `logits_value` is the last op's output."""

    ops: list[Op] = field(default_factory=list)
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)  # name → shape, in order of first use
    logits_value: Value | None = None

    # -- building -------------------------------------------------------------------------------------------

    def embedding(self, name: str, vocab_size: int, width: int, scale: float = 1.0) -> Value:
        weight = self._weight(f"{name}.weight", (vocab_size, width))
        return self._add(Embedding(weight, scale), (), width)

    def position_embedding(self, name: str, max_positions: int, width: int) -> Value:
        weight = self._weight(f"{name}.weight", (max_positions, width))
        return self._add(PositionEmbedding(weight), (), width)

    def linear(self, x: Value, name: str, out_features: int, *, bias: bool = False) -> Value:
        weight = self._weight(f"{name}.weight", (out_features, x.width))
        bias_name = self._weight(f"{name}.bias", (out_features,)) if bias else None
        return self._add(Linear(weight, bias_name), (x,), out_features)

    def rms_norm(self, x: Value, name: str, eps: float, *, num_heads: int = 1) -> Value:
        """Normalises each of `num_heads` equal parts of a row with the same weight."""
        if x.width % num_heads:
            raise GraphError(f"{name}: {x.width} features do not split into {num_heads} heads")
        weight = self._weight(f"{name}.weight", (x.width // num_heads,))
        return self._add(RMSNorm(weight, eps, num_heads), (x,), x.width)

    def layer_norm(self, x: Value, name: str, eps: float) -> Value:
        weight = self._weight(f"{name}.weight", (x.width,))
        bias = self._weight(f"{name}.bias", (x.width,))
        return self._add(LayerNorm(weight, bias, eps), (x,), x.width)

    def rope(self, x: Value, spec: RopeSpec, num_heads: int) -> Value:
        if x.width % num_heads or 2 * len(spec.inv_freq) > x.width // num_heads:
            raise GraphError(f"rope of {2 * len(spec.inv_freq)} features on {x.width} / {num_heads} heads")
        return self._add(Rope(spec, num_heads), (x,), x.width)

    def attention(self, q: Value, k: Value, v: Value, spec: AttentionSpec) -> Value:
        q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        if (q.width, k.width, v.width) != (q_width, kv_width, kv_width) or spec.num_heads % spec.num_kv_heads:
            raise GraphError(f"attention widths {q.width}, {k.width}, {v.width} against {spec}")
        return self._add(Attention(spec), (q, k, v), q_width)

    def silu_mul(self, gate: Value, up: Value) -> Value:
        return self._add(Gated("silu"), self._same(gate, up), gate.width)

    def gelu_tanh_mul(self, gate: Value, up: Value) -> Value:
        return self._add(Gated("gelu_tanh"), self._same(gate, up), gate.width)

    def activation(self, x: Value, kind: Literal["gelu", "gelu_tanh", "silu"]) -> Value:
        return self._add(Activation(kind), (x,), x.width)

    def add(self, a: Value, b: Value) -> Value:
        return self._add(Add(), self._same(a, b), a.width)

    def take_logit_rows(self, x: Value) -> Value:
        return self._add(TakeLogitRows(), (x,), x.width, rows="logits")

    def logits(self, x: Value, name: str, vocab_size: int, *, bias: bool = False) -> None:
        """The output head: `name` may be an embedding's, then the weight is shared (tied)."""
        if x.rows != "logits":
            raise GraphError("logits want the rows of take_logit_rows")
        self.logits_value = self.linear(x, name, vocab_size, bias=bias)

    # -- reading --------------------------------------------------------------------------------------------

    @property
    def attention_specs(self) -> list[AttentionSpec]:
        """One per layer, in layer order."""
        specs = [op.kind.spec for op in self.ops if isinstance(op.kind, Attention)]
        return sorted(specs, key=lambda spec: spec.layer)

    @property
    def vocab_size(self) -> int:
        assert self.logits_value is not None, "the model built no logits"
        return self.logits_value.width

    @property
    def max_positions(self) -> int | None:
        """The rows of a learned position table, None where positions are rotary."""
        tables = [self.weights[op.kind.weight][0] for op in self.ops if isinstance(op.kind, PositionEmbedding)]
        return min(tables) if tables else None

    # -- parts ----------------------------------------------------------------------------------------------

    def _weight(self, name: str, shape: tuple[int, ...]) -> str:
        if self.weights.setdefault(name, shape) != shape:
            raise GraphError(f"{name} is used as {shape} and as {self.weights[name]}")
        return name

    def _same(self, a: Value, b: Value) -> tuple[Value, Value]:
        if (a.width, a.rows) != (b.width, b.rows):
            raise GraphError(f"[{a.rows}, {a.width}] and [{b.rows}, {b.width}] do not match")
        return a, b

    def _add(self, kind: OpKind, inputs: tuple[Value, ...], width: int, rows: Rows | None = None) -> Value:
        value = Value(len(self.ops), width, rows or (inputs[0].rows if inputs else "tokens"))
        self.ops.append(Op(kind, inputs, value))
        return value
