"""Graphs with the shapes of real models, one layer of each, whose weights are zeros that take no memory."""

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
    graph = Graph()
    (_gpt2 if shape.is_gpt2 else _llama)(graph, shape)
    return graph, {name: _zeros(name, size, shape.format) for name, size in graph.weights.items()}


def _llama(g: Graph, s: Shape) -> None:
    rope = RopeSpec(tuple(10000.0 ** (-i / (s.head_dim // 2)) for i in range(s.head_dim // 2)))
    spec = AttentionSpec(0, s.num_heads, s.num_kv_heads, s.head_dim, s.head_dim**-0.5, s.window)
    x = g.embedding("embedding", s.vocab_size, s.width)
    h = g.rms_norm(x, "attn_norm", 1e-5)
    q = g.linear(h, "q", s.num_heads * s.head_dim)
    k, v = (g.linear(h, name, s.num_kv_heads * s.head_dim) for name in "kv")
    if s.has_head_norms:
        q = g.rms_norm(q, "q_norm", 1e-6, num_heads=s.num_heads)
        k = g.rms_norm(k, "k_norm", 1e-6, num_heads=s.num_kv_heads)
    a = g.attention(g.rope(q, rope, s.num_heads), g.rope(k, rope, s.num_kv_heads), v, spec)
    x = g.add(x, g.linear(a, "o", s.width))
    h = g.rms_norm(x, "ffn_norm", 1e-5)
    x = g.add(x, g.linear(g.silu_mul(g.linear(h, "gate", s.ff_width), g.linear(h, "up", s.ff_width)), "down", s.width))
    g.logits(g.rms_norm(g.take_logit_rows(x), "output_norm", 1e-5), "embedding", s.vocab_size)


def _gpt2(g: Graph, s: Shape) -> None:
    spec = AttentionSpec(0, s.num_heads, s.num_kv_heads, s.head_dim, s.head_dim**-0.5)
    x = g.add(g.embedding("embedding", s.vocab_size, s.width), g.position_embedding("positions", 1024, s.width))
    h = g.layer_norm(x, "norm1", 1e-5)
    q, k, v = (g.linear(h, name, s.width, bias=True) for name in "qkv")
    x = g.add(x, g.linear(g.attention(q, k, v, spec), "o", s.width, bias=True))
    h = g.activation(g.linear(g.layer_norm(x, "norm2", 1e-5), "fc", s.ff_width, bias=True), "gelu_tanh")
    x = g.add(x, g.linear(h, "proj", s.width, bias=True))
    g.logits(g.layer_norm(g.take_logit_rows(x), "norm3", 1e-5), "embedding", s.vocab_size)


def _zeros(name: str, size: tuple[int, ...], matrix_format: str) -> Tensor:
    kind = get_format(matrix_format if len(size) == 2 else "f32")
    count = int(np.prod(size)) // kind.block_size * kind.block_bytes
    return Tensor(name, kind.name, size, np.zeros(count, dtype=np.uint8))
