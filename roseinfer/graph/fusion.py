"""What a backend that likes few, large operations runs instead of the graph's single ops.

    linear + activation, gate · up linears + gated, linear + add   → one linear with an epilogue
    linears that read the same value                               → one linear with several outputs
    head norms, rope and attention                                 → one attention with its store

Every other op stays as it is. The meaning does not change: values that others read too are left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from roseinfer.graph.graph import (
    Activation,
    Add,
    Attention,
    AttentionSpec,
    Gated,
    Graph,
    Linear,
    Op,
    RMSNorm,
    Rope,
    RopeSpec,
    Value,
)


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """outputs[i] = epilogue(x @ weights[i].T + biases[i]) + residual. A `Gated` epilogue takes two weights, gate
    and up, and has one output."""

    x: Value
    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    outputs: tuple[Value, ...]
    epilogue: Activation | Gated | None = None
    residual: Value | None = None

    @property
    def activation(self) -> str:
        """The epilogue's, empty for none."""
        if isinstance(self.epilogue, Gated):
            return self.epilogue.activation
        return self.epilogue.kind if self.epilogue else ""


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """Head norms (q and k), then rope, then the store of k and v, then attention."""

    q: Value
    k: Value
    v: Value
    output: Value
    spec: AttentionSpec
    rope: RopeSpec | None = None
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None


Fused = FusedLinear | FusedAttention | Op
K = TypeVar("K", bound=Rope | RMSNorm)


def fuse(graph: Graph, input_kind: Callable[[str], Hashable] = lambda weight: None) -> list[Fused]:
    """The fused operations in an order that respects their inputs.

    `input_kind(weight)` says in which form a weight wants its input; linears of different kinds never share one.
    """
    return _Fuser(graph, input_kind).run()


class _Fuser:
    def __init__(self, graph: Graph, input_kind: Callable[[str], Hashable]) -> None:
        self.ops = graph.ops
        self.input_kind = input_kind
        self.uses = Counter(value.index for op in graph.ops for value in op.inputs)
        if graph.logits_value is not None:
            self.uses[graph.logits_value.index] += 1
        self.fused: dict[int, Fused] = {}  # by the index of the op it ends with
        self.taken: set[int] = set()  # ops that another one has swallowed

    def run(self) -> list[Fused]:
        for op in self.ops:
            self.fused[op.output.index] = self._fuse_op(op)
        remaining = [self.fused[op.output.index] for op in self.ops if op.output.index not in self.taken]
        return _merge_siblings(remaining, self.input_kind)

    def _fuse_op(self, op: Op) -> Fused:
        match op.kind:
            case Linear(weight, bias):
                return FusedLinear(op.inputs[0], (weight,), (bias,), (op.output,))
            case Activation():
                return self._fuse_activation(op, op.kind)
            case Gated():
                return self._fuse_gated(op, op.kind)
            case Add():
                return self._fuse_add(op)
            case Attention(spec):
                return self._fuse_attention(op, spec)
        return op

    def _plain_linear(self, value: Value) -> FusedLinear | None:
        """The linear that makes `value`, if nobody else reads it and nothing was fused into it yet."""
        made = self.fused[value.index]
        is_plain = isinstance(made, FusedLinear) and made.epilogue is None and made.residual is None
        return made if is_plain and self.uses[value.index] == 1 else None  # type: ignore[return-value]

    def _fuse_activation(self, op: Op, kind: Activation) -> Fused:
        linear = self._plain_linear(op.inputs[0])
        if linear is None:
            return op
        self.taken.add(op.inputs[0].index)
        return replace(linear, outputs=(op.output,), epilogue=kind)

    def _fuse_gated(self, op: Op, kind: Gated) -> Fused:
        gate, up = (self._plain_linear(value) for value in op.inputs)
        if gate is None or up is None or gate.x != up.x:
            return op
        if self.input_kind(gate.weights[0]) != self.input_kind(up.weights[0]):
            return op
        self.taken.update(value.index for value in op.inputs)
        return FusedLinear(gate.x, gate.weights + up.weights, gate.biases + up.biases, (op.output,), kind)

    def _fuse_add(self, op: Op) -> Fused:
        for value, other in (op.inputs, op.inputs[::-1]):
            made = self.fused[value.index]
            fits = isinstance(made, FusedLinear) and made.residual is None and self.uses[value.index] == 1
            if fits and value != other:
                assert isinstance(made, FusedLinear)
                self.taken.add(value.index)
                return replace(made, outputs=(op.output,), residual=other)
        return op

    def _fuse_attention(self, op: Op, spec: AttentionSpec) -> Fused:
        q, k, v = op.inputs
        fused = FusedAttention(q, k, v, op.output, spec)
        q_rope, k_rope = (self._private(value, Rope) for value in (q, k))
        if q_rope is None or k_rope is None or q_rope[0].spec != k_rope[0].spec:
            return fused
        self.taken.update((q.index, k.index))
        return self._fuse_head_norms(replace(fused, q=q_rope[1], k=k_rope[1], rope=q_rope[0].spec))

    def _fuse_head_norms(self, fused: FusedAttention) -> FusedAttention:
        q_norm, k_norm = (self._private(value, RMSNorm) for value in (fused.q, fused.k))
        if q_norm is None or k_norm is None or q_norm[0].eps != k_norm[0].eps:
            return fused
        if (q_norm[0].num_heads, k_norm[0].num_heads) != (fused.spec.num_heads, fused.spec.num_kv_heads):
            return fused
        self.taken.update((fused.q.index, fused.k.index))
        return replace(fused, q=q_norm[1], k=k_norm[1], q_norm=q_norm[0], k_norm=k_norm[0])

    def _private(self, value: Value, kind: type[K]) -> tuple[K, Value] | None:
        """The op of that kind that makes `value`, and its input, if nobody else reads either: backends turn and norm
        heads in place.
        """
        op = self.ops[value.index]
        if isinstance(op.kind, kind) and all(self.uses[v.index] == 1 for v in (value, *op.inputs)):
            return op.kind, op.inputs[0]
        return None


def _merge_siblings(ops: list[Fused], input_kind: Callable[[str], Hashable]) -> list[Fused]:
    """Plain linears that read the same value become one, where the first of them stands."""
    merged: list[Fused] = []
    places: dict[tuple[int, Hashable], int] = {}
    for op in ops:
        if isinstance(op, FusedLinear) and op.epilogue is None and op.residual is None:
            key = (op.x.index, input_kind(op.weights[0]))
            if key in places:
                first = merged[places[key]]
                assert isinstance(first, FusedLinear)
                merged[places[key]] = replace(
                    first,
                    weights=first.weights + op.weights,
                    biases=first.biases + op.biases,
                    outputs=first.outputs + op.outputs,
                )
                continue
            places[key] = len(merged)
        merged.append(op)
    return merged


def inputs_of(op: Fused) -> tuple[Value, ...]:
    if isinstance(op, FusedLinear):
        return (op.x,) if op.residual is None else (op.x, op.residual)
    if isinstance(op, FusedAttention):
        return (op.q, op.k, op.v)
    return op.inputs


def outputs_of(op: Fused) -> tuple[Value, ...]:
    return op.outputs if isinstance(op, FusedLinear) else (op.output,)


def lifetimes(ops: Sequence[Fused], logits: Value) -> tuple[dict[int, int], dict[int, int]]:
    """By a value's index, the number of the operation that makes it, and of the last one that reads it; the logits are
    read behind all of them.
    """
    born = {value.index: i for i, op in enumerate(ops) for value in outputs_of(op)}
    last = dict(born)
    for i, op in enumerate(ops):
        for value in inputs_of(op):
            last[value.index] = i
    last[logits.index] = len(ops)
    return born, last
