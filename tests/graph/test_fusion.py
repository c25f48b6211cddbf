"""Fusion: the operations each architecture becomes, the values that must be left alone, and the same meaning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from roseinfer.backends import compile_program
from roseinfer.checkpoints import open_checkpoint
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.graph import AttentionSpec, Graph, Op, RopeSpec, Value
from roseinfer.graph.fusion import Fused, FusedAttention, FusedLinear, fuse, inputs_of, outputs_of
from roseinfer.graph.graph import Activation, Add, Gated, LayerNorm, RMSNorm, Rope, TakeLogitRows
from roseinfer.models import Model, load_model
from roseinfer.quant import get_format
from tests import tiny_models
from tests.harness import OPTIONS, teacher_forced_logits
from tests.tiny_models import TinyModel

WIDTH, HEADS, HEAD_DIM, VOCAB = 32, 2, 16, 24
ROPE = RopeSpec(tuple(1.0 / 10 ** (i / 2) for i in range(HEAD_DIM // 2)))
FIRST, ATTENTION = (AttentionSpec(layer, HEADS, HEADS, HEAD_DIM, HEAD_DIM**-0.5) for layer in (0, 1))


def describe(op: Fused) -> str:
    """`linear q,k,v`, `linear gate,up gated +residual`, `attention rope`, `RMSNorm`: an operation in a few words."""
    if isinstance(op, FusedLinear):
        parts = [",".join(name.rsplit(".", 2)[-2] for name in op.weights)]
        parts += [type(op.epilogue).__name__.lower()] if op.epilogue else []
        parts += ["+residual"] if op.residual else []
        return " ".join(["linear", *parts])
    if isinstance(op, FusedAttention):
        norms = ["norms"] if op.q_norm and op.k_norm else []
        return " ".join(["attention", *norms, *(["rope"] if op.rope else [])])
    return type(op.kind).__name__


def describe_all(graph: Graph) -> list[str]:
    return [describe(op) for op in fuse(graph)]


LLAMA_LAYER = [
    "RMSNorm",
    "linear attn_q,attn_k,attn_v",
    "attention rope",
    "linear attn_output +residual",
    "RMSNorm",
    "linear ffn_gate,ffn_up gated",
    "linear ffn_down +residual",
]
QWEN3_LAYER = [*LLAMA_LAYER[:2], "attention norms rope", *LLAMA_LAYER[3:]]
# Gemma norms what it adds, so the sums stay on their own.
GEMMA_LAYER = [
    *QWEN3_LAYER[:3],
    "linear attn_output",
    "RMSNorm",
    "Add",
    *LLAMA_LAYER[4:6],
    "linear ffn_down",
    "RMSNorm",
    "Add",
]
GPT2_LAYER = [
    "LayerNorm",
    "linear attn_q,attn_k,attn_v",
    "attention",
    "linear attn_output +residual",
    "LayerNorm",
    "linear ffn_up activation",
    "linear ffn_down +residual",
]


def load(tiny: TinyModel) -> Model:
    return load_model(open_checkpoint(tiny.path))


@pytest.mark.parametrize(
    ("name", "layer", "num_layers"),
    [
        ("llama", LLAMA_LAYER, 3),
        ("qwen2", LLAMA_LAYER, 3),
        ("qwen3", QWEN3_LAYER, 3),
        ("gemma3", GEMMA_LAYER, 4),
        ("gpt2", GPT2_LAYER, 3),
        ("torch-file", GPT2_LAYER, 3),
    ],
)
def test_a_layer_becomes_few_operations(
    name: str, layer: list[str], num_layers: int, tiny_model: Callable[[str], TinyModel]
) -> None:
    described = describe_all(load(tiny_model(name)).graph)
    start = described.index(layer[0])
    assert described[start : start + num_layers * len(layer)] == layer * num_layers
    norm, head = layer[0], described[-1]
    assert described[start + num_layers * len(layer) : -1] in ([norm, "TakeLogitRows"], ["TakeLogitRows", norm])
    assert head in ("linear output", "linear token_embd")


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_the_order_respects_inputs_and_no_value_is_lost(name: str, tiny_model: Callable[[str], TinyModel]) -> None:
    graph = load(tiny_model(name)).graph
    made: set[Value] = set()
    for op in fuse(graph):
        assert made.issuperset(inputs_of(op)), f"{describe(op)} reads what is not there yet"
        assert made.isdisjoint(outputs_of(op)), f"{describe(op)} makes a value again"
        made.update(outputs_of(op))
    assert graph.logits_value in made


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_every_weight_is_used_as_often_as_before(name: str, tiny_model: Callable[[str], TinyModel]) -> None:
    graph = load(tiny_model(name)).graph
    before = sorted(op.kind.weight for op in graph.ops if hasattr(op.kind, "weight"))
    assert sorted(weight for op in fuse(graph) for weight in weights_of(op)) == before


def weights_of(op: Fused) -> list[str]:
    if isinstance(op, FusedLinear):
        return list(op.weights)
    if isinstance(op, FusedAttention):
        return [norm.weight for norm in (op.q_norm, op.k_norm) if norm]
    return [op.kind.weight] if hasattr(op.kind, "weight") else []


# -- hand-made graphs: what must not be fused ---------------------------------------------------------------------


def finish(graph: Graph, x: Value) -> Graph:
    graph.logits(graph.take_logit_rows(x), "output", VOCAB)
    return graph


def start() -> tuple[Graph, Value]:
    """With an attention, since there is no model without keys and values."""
    graph = Graph()
    x = graph.embedding("token_embd", VOCAB, WIDTH)
    return graph, graph.attention(x, x, x, FIRST)


def activation_read_twice() -> Graph:
    g, x = start()
    h = g.linear(x, "up", WIDTH)
    return finish(g, g.add(g.activation(h, "gelu"), h))


def gate_read_twice() -> Graph:
    g, x = start()
    gate, up = g.linear(x, "gate", WIDTH), g.linear(x, "up", WIDTH)
    return finish(g, g.add(g.silu_mul(gate, up), gate))


def gate_and_up_of_different_inputs() -> Graph:
    g, x = start()
    y = g.rms_norm(x, "norm", 1e-5)
    return finish(g, g.silu_mul(g.linear(x, "gate", WIDTH), g.linear(y, "up", WIDTH)))


def a_sum_with_itself() -> Graph:
    g, x = start()
    h = g.linear(x, "up", WIDTH)
    return finish(g, g.add(h, h))


def two_linears_added() -> Graph:
    g, x = start()
    return finish(g, g.add(g.linear(x, "a", WIDTH, bias=True), g.linear(x, "b", WIDTH)))


def a_sum_read_twice() -> Graph:
    g, x = start()
    s = g.add(x, g.linear(x, "a", WIDTH))
    return finish(g, g.add(s, g.linear(s, "b", WIDTH)))


def an_activated_residual() -> Graph:
    g, x = start()
    return finish(g, g.add(x, g.activation(g.linear(x, "a", WIDTH, bias=True), "gelu_tanh")))


def a_lone_activation() -> Graph:
    g, x = start()
    return finish(g, g.activation(x, "silu"))


def rotated_keys_read_twice() -> Graph:
    """The store turns heads in place, so a value somebody else reads must be turned by an op of its own."""
    g, x = start()
    q, k, v = (g.linear(x, name, WIDTH) for name in ("q", "k", "v"))
    turned = g.rope(k, ROPE, HEADS)
    return finish(g, g.add(g.attention(g.rope(q, ROPE, HEADS), turned, v, ATTENTION), turned))


def values_that_are_the_keys_before_rotation() -> Graph:
    g, x = start()
    q, k = g.linear(x, "q", WIDTH), g.linear(x, "k", WIDTH)
    return finish(g, g.attention(g.rope(q, ROPE, HEADS), g.rope(k, ROPE, HEADS), k, ATTENTION))


def queries_read_behind_attention() -> Graph:
    g, x = start()
    q, k, v = (g.linear(x, name, WIDTH) for name in ("q", "k", "v"))
    return finish(g, g.add(g.attention(g.rope(q, ROPE, HEADS), g.rope(k, ROPE, HEADS), v, ATTENTION), q))


def normed_values_that_are_the_keys() -> Graph:
    g, x = start()
    q, k = g.linear(x, "q", WIDTH), g.linear(x, "k", WIDTH)
    qn, kn = (g.rms_norm(t, n, 1e-3, num_heads=HEADS) for t, n in ((q, "qn"), (k, "kn")))
    return finish(g, g.attention(g.rope(qn, ROPE, HEADS), g.rope(kn, ROPE, HEADS), k, ATTENTION))


def queries_and_keys_turned_differently() -> Graph:
    g, x = start()
    q, k, v = (g.linear(x, name, WIDTH) for name in ("q", "k", "v"))
    other = RopeSpec(ROPE.inv_freq[:4], 0.5)
    return finish(g, g.attention(g.rope(q, ROPE, HEADS), g.rope(k, other, HEADS), v, ATTENTION))


def norms_with_different_eps() -> Graph:
    g, x = start()
    q, k, v = (g.linear(x, name, WIDTH) for name in ("q", "k", "v"))
    qn, kn = (g.rms_norm(t, n, eps, num_heads=HEADS) for t, n, eps in ((q, "qn", 1e-1), (k, "kn", 1e-3)))
    return finish(g, g.attention(g.rope(qn, ROPE, HEADS), g.rope(kn, ROPE, HEADS), v, ATTENTION))


def norms_over_the_whole_row() -> Graph:
    g, x = start()
    q, k, v = (g.linear(x, name, WIDTH) for name in ("q", "k", "v"))
    qn, kn = (g.rms_norm(t, n, 1e-3) for t, n in ((q, "qn"), (k, "kn")))
    return finish(g, g.attention(g.rope(qn, ROPE, HEADS), g.rope(kn, ROPE, HEADS), v, ATTENTION))


def an_embedding_that_is_a_residual_and_a_linears_input() -> Graph:
    g, x = start()
    h = g.layer_norm(x, "norm", 1e-3)
    return finish(g, g.add(g.linear(h, "a", WIDTH), h))


def a_head_with_a_bias_behind_a_norm() -> Graph:
    g, x = start()
    g.logits(g.rms_norm(g.take_logit_rows(x), "norm", 1e-3), "token_embd", VOCAB, bias=True)
    return g


GRAPHS: dict[Callable[[], Graph], list[str]] = {
    activation_read_twice: ["linear up", "Activation", "Add"],
    gate_read_twice: ["linear gate,up", "Gated", "Add"],
    gate_and_up_of_different_inputs: ["RMSNorm", "linear gate", "linear up", "Gated"],
    a_sum_with_itself: ["linear up", "Add"],
    two_linears_added: ["linear b", "linear a +residual"],
    a_sum_read_twice: ["linear a +residual", "linear b +residual"],
    an_activated_residual: ["linear a activation +residual"],
    a_lone_activation: ["Activation"],
    rotated_keys_read_twice: ["linear q,k,v", "Rope", "Rope", "attention", "Add"],
    values_that_are_the_keys_before_rotation: ["linear q,k", "Rope", "Rope", "attention"],
    queries_read_behind_attention: ["linear q,k,v", "Rope", "Rope", "attention", "Add"],
    normed_values_that_are_the_keys: ["linear q,k", "RMSNorm", "RMSNorm", "attention rope"],
    queries_and_keys_turned_differently: ["linear q,k,v", "Rope", "Rope", "attention"],
    norms_with_different_eps: ["linear q,k,v", "RMSNorm", "RMSNorm", "attention rope"],
    norms_over_the_whole_row: ["linear q,k,v", "RMSNorm", "RMSNorm", "attention rope"],
    an_embedding_that_is_a_residual_and_a_linears_input: ["LayerNorm", "linear a +residual"],
    a_head_with_a_bias_behind_a_norm: ["TakeLogitRows", "RMSNorm"],
}
GRAPH_IDS = [make.__name__ for make in GRAPHS]


@pytest.mark.parametrize(("make", "expected"), GRAPHS.items(), ids=GRAPH_IDS)
def test_what_others_read_is_left_alone(make: Callable[[], Graph], expected: list[str]) -> None:
    described = describe_all(make())
    assert described[:2] == ["Embedding", "attention"]
    assert [op for op in described[2:-1] if op != "TakeLogitRows"] == [op for op in expected if op != "TakeLogitRows"]
    assert described[-1] in ("linear output", "linear token_embd")


@pytest.mark.parametrize("make", GRAPHS, ids=GRAPH_IDS)
@pytest.mark.parametrize("weight_format", ["f32", "q8_0"])
def test_the_meaning_stays(make: Callable[[], Graph], weight_format: str) -> None:
    """The native backend fuses, torch runs op by op; float32 activations, whatever the weights."""
    graph = make()
    weights = {name: random_tensor(name, shape, weight_format) for name, shape in graph.weights.items()}
    token_ids = np.random.default_rng(4).integers(0, VOCAB, 40).tolist()
    native, plain = (
        teacher_forced_logits(compile_program(backend, graph, weights, OPTIONS), token_ids, [17, 1])
        for backend in ("native", "torch")
    )
    np.testing.assert_allclose(native, plain, rtol=1e-4, atol=1e-4)


def random_tensor(name: str, shape: tuple[int, ...], weight_format: str) -> Tensor:
    rng = np.random.default_rng(sum(name.encode()))
    values = rng.normal(1.0 if len(shape) == 1 else 0.0, 0.3, shape).astype(np.float32)
    stored = weight_format if len(shape) == 2 else "f32"
    return Tensor(name, stored, shape, get_format(stored).quantize(values.reshape(-1)))


# -- what a backend asks for --------------------------------------------------------------------------------------


def test_linears_that_want_other_inputs_are_not_merged() -> None:
    g, x = start()
    q, k, v = (g.linear(x, name, WIDTH) for name in ("q", "k", "v"))
    finish(g, g.attention(q, k, v, ATTENTION))
    fused = fuse(g, lambda weight: "f32" if weight == "k.weight" else "q8")
    assert [describe(op) for op in fused][2:5] == ["linear q,v", "linear k", "attention"]


def test_gate_and_up_that_want_other_inputs_are_not_merged() -> None:
    g, x = start()
    finish(g, g.silu_mul(g.linear(x, "gate", WIDTH), g.linear(x, "up", WIDTH)))
    fused = fuse(g, lambda weight: weight)
    assert [describe(op) for op in fused][2:5] == ["linear gate", "linear up", "Gated"]


def test_biases_and_outputs_keep_their_order() -> None:
    g, x = start()
    values = [g.linear(x, name, width, bias=bias) for name, width, bias in (("a", 8, False), ("b", 16, True))]
    sums = [g.linear(value, f"{i}", WIDTH) for i, value in enumerate(values)]
    finish(g, g.silu_mul(*sums))
    linear = fuse(g)[2]
    assert isinstance(linear, FusedLinear)
    assert linear.outputs == tuple(values)
    assert (linear.weights, linear.biases) == (("a.weight", "b.weight"), (None, "b.bias"))


def test_single_operations_stay_the_graphs_own() -> None:
    g, x = start()
    finish(g, g.activation(g.rope(g.add(g.layer_norm(x, "n", 1e-5), x), ROPE, HEADS), "silu"))
    kinds = [type(op.kind) for op in fuse(g) if isinstance(op, Op)]
    assert kinds[1:] == [LayerNorm, Add, Rope, Activation, TakeLogitRows]
    assert not {Gated, RMSNorm} & set(kinds)
