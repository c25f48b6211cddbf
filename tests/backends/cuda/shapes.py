"""Graphs with the shapes of real models, one layer of each unless they say otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.graph import AttentionSpec, Graph, RopeSpec
from roseinfer.quant import get_format


@dataclass(frozen=True)
class Shape:
    """`format` is that of the matrices."""

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ff_width: int
    vocab_size: int
    format: str
    window: int | None = None
    has_head_norms: bool = False
    is_gpt2: bool = False
    weight_dtype: str = "auto"
    num_layers: int = 1


LLAMA_1B = (2048, 32, 8, 64, 8192, 16032)
SHAPES = {
    "llama-1b": Shape(*LLAMA_1B, "bf16"),
    "llama-1b-fp8": Shape(*LLAMA_1B, "bf16", weight_dtype="fp8"),
    **{f"llama-1b-{name}": Shape(*LLAMA_1B, name) for name in ("q4_0", "q4_1", "q8_0", "q4_k", "q6_k")},
    "qwen3": Shape(1024, 16, 8, 128, 3072, 8000, "bf16", has_head_norms=True),
    "gemma3": Shape(640, 4, 1, 256, 2048, 8192, "bf16", window=512, has_head_norms=True),
    "gpt2": Shape(768, 12, 12, 64, 3072, 50257, "f16", is_gpt2=True),
    "odd": Shape(1152, 6, 6, 80, 2560, 5000, "f16"),
}


def make_graph(shape: Shape) -> tuple[Graph, dict[str, Tensor]]:
    """Its weights are zeros that take no memory."""
    graph = Graph()
    (_gpt2 if shape.is_gpt2 else _llama)(graph, shape)
    return graph, {name: _zeros(name, size, shape.format) for name, size in graph.weights.items()}


def make_random(shape: Shape) -> tuple[Graph, dict[str, Tensor]]:
    """Its weights keep the size of what they are multiplied with."""
    from benchmarks.random_model import BlockPool, TensorSpec  # needs gguf, which kernels do not

    graph, zeros = make_graph(shape)
    random, blocks = np.random.default_rng(0), BlockPool(0)
    weights: dict[str, Tensor] = {}
    for name, tensor in zeros.items():
        if len(tensor.shape) == 1:
            values = random.normal(0.0 if name.endswith(".bias") else 1.0, 0.1, tensor.shape)
            data = values.astype(np.float32).view(np.uint8)
        else:
            data = blocks.data(TensorSpec(name, tensor.format, *tensor.shape)).reshape(-1)
        weights[name] = Tensor(name, tensor.format, tensor.shape, data)
    return graph, weights


def _llama(g: Graph, s: Shape) -> None:
    rope = RopeSpec(tuple(10000.0 ** (-i / (s.head_dim // 2)) for i in range(s.head_dim // 2)))
    x = g.embedding("embedding", s.vocab_size, s.width)
    for n in range(s.num_layers):
        spec = AttentionSpec(n, s.num_heads, s.num_kv_heads, s.head_dim, s.head_dim**-0.5, s.window)
        h = g.rms_norm(x, f"{n}.attn_norm", 1e-5)
        q = g.linear(h, f"{n}.q", s.num_heads * s.head_dim)
        k, v = (g.linear(h, f"{n}.{name}", s.num_kv_heads * s.head_dim) for name in "kv")
        if s.has_head_norms:
            q = g.rms_norm(q, f"{n}.q_norm", 1e-6, num_heads=s.num_heads)
            k = g.rms_norm(k, f"{n}.k_norm", 1e-6, num_heads=s.num_kv_heads)
        a = g.attention(g.rope(q, rope, s.num_heads), g.rope(k, rope, s.num_kv_heads), v, spec)
        x = g.add(x, g.linear(a, f"{n}.o", s.width))
        h = g.rms_norm(x, f"{n}.ffn_norm", 1e-5)
        h = g.silu_mul(g.linear(h, f"{n}.gate", s.ff_width), g.linear(h, f"{n}.up", s.ff_width))
        x = g.add(x, g.linear(h, f"{n}.down", s.width))
    g.logits(g.rms_norm(g.take_logit_rows(x), "output_norm", 1e-5), "embedding", s.vocab_size)


def _gpt2(g: Graph, s: Shape) -> None:
    x = g.add(g.embedding("embedding", s.vocab_size, s.width), g.position_embedding("positions", 1024, s.width))
    for n in range(s.num_layers):
        spec = AttentionSpec(n, s.num_heads, s.num_kv_heads, s.head_dim, s.head_dim**-0.5)
        h = g.layer_norm(x, f"{n}.norm1", 1e-5)
        q, k, v = (g.linear(h, f"{n}.{name}", s.width, bias=True) for name in "qkv")
        x = g.add(x, g.linear(g.attention(q, k, v, spec), f"{n}.o", s.width, bias=True))
        h = g.linear(g.layer_norm(x, f"{n}.norm2", 1e-5), f"{n}.fc", s.ff_width, bias=True)
        x = g.add(x, g.linear(g.activation(h, "gelu_tanh"), f"{n}.proj", s.width, bias=True))
    g.logits(g.layer_norm(g.take_logit_rows(x), "output_norm", 1e-5), "embedding", s.vocab_size)


def _zeros(name: str, size: tuple[int, ...], matrix_format: str) -> Tensor:
    kind = get_format(matrix_format if len(size) == 2 else "f32")
    count = int(np.prod(size)) // kind.block_size * kind.block_bytes
    return Tensor(name, kind.name, size, np.zeros(count, dtype=np.uint8))
