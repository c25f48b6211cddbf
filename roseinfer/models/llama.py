"""Llama 1-3 and what is built like it: Mistral, SmolLM, Yi, TinyLlama and many more (Touvron et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.graph import Graph
from roseinfer.models._decoder import HF_NAMES, DecoderConfig, gguf_fields, hf_fields, sliding_windows
from roseinfer.models._settings import Settings
from roseinfer.models._weights import Tensors

__all__ = ["HF_NAMES", "Config", "adapt", "build", "from_gguf", "from_hf"]


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    has_qkv_bias: bool
    has_attention_output_bias: bool
    has_mlp_bias: bool


def from_gguf(s: Settings, tensors: Mapping[str, Tensor]) -> Config:
    return Config(
        **gguf_fields(s, tensors),
        has_qkv_bias="blk.0.attn_q.bias" in tensors,
        has_attention_output_bias="blk.0.attn_output.bias" in tensors,
        has_mlp_bias="blk.0.ffn_up.bias" in tensors,
    )


def from_hf(s: Settings, tensors: Mapping[str, Tensor]) -> Config:
    s.require("hidden_act", "silu", "swish")
    has_attention_bias = s.boolean("attention_bias", default=False)
    fields = hf_fields(s, tensors)
    if s.text("model_type", default="llama") != "llama":  # Llama itself has no windows, whatever its config says
        fields["windows"] = sliding_windows(s, fields["num_layers"])
    return Config(
        **fields,
        has_qkv_bias=has_attention_bias,
        has_attention_output_bias=has_attention_bias,
        has_mlp_bias=s.boolean("mlp_bias", default=False),
    )


def adapt(tensors: Tensors, c: Config, container: str) -> Tensors:
    """GGUF holds q and k for a rope of interleaved pairs; ours turns halves."""
    if container != "gguf":
        return tensors
    q_rows, k_rows = (half_split_rows(n, c.head_dim, 2 * len(c.rope.inv_freq)) for n in (c.num_heads, c.num_kv_heads))
    result = dict(tensors)
    for name, tensor in tensors.items():
        rows = q_rows if ".attn_q." in name else k_rows if ".attn_k." in name else None
        if rows is not None and tensor.shape[0] == len(rows):
            result[name] = tensor.take_rows(rows)
    return result


def half_split_rows(num_heads: int, head_dim: int, rope_dim: int) -> npt.NDArray[np.int64]:
    """Where each row is found in a file whose heads begin with `rope_dim` interleaved rows (pairs 2i, 2i + 1)."""
    head = np.arange(head_dim)
    head[:rope_dim] = np.arange(rope_dim).reshape(-1, 2).T.reshape(-1)
    return (np.arange(num_heads)[:, None] * head_dim + head).reshape(-1)


def build(g: Graph, c: Config) -> None:
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    for i in range(c.num_layers):
        w = f"blk.{i}."
        h = g.rms_norm(x, w + "attn_norm", c.norm_eps)
        q = g.rope(g.linear(h, w + "attn_q", c.q_width, bias=c.has_qkv_bias), c.rope, c.num_heads)
        k = g.rope(g.linear(h, w + "attn_k", c.kv_width, bias=c.has_qkv_bias), c.rope, c.num_kv_heads)
        v = g.linear(h, w + "attn_v", c.kv_width, bias=c.has_qkv_bias)
        a = g.attention(q, k, v, c.attention(i))
        x = g.add(x, g.linear(a, w + "attn_output", c.hidden_size, bias=c.has_attention_output_bias))
        h = g.rms_norm(x, w + "ffn_norm", c.norm_eps)
        gate = g.linear(h, w + "ffn_gate", c.ffn_size, bias=c.has_mlp_bias)
        up = g.linear(h, w + "ffn_up", c.ffn_size, bias=c.has_mlp_bias)
        x = g.add(x, g.linear(g.silu_mul(gate, up), w + "ffn_down", c.hidden_size, bias=c.has_mlp_bias))
    x = g.rms_norm(g.take_logit_rows(x), "output_norm", c.norm_eps)
    g.logits(x, c.output, c.vocab_size)
