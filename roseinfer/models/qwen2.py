"""Qwen2 and Qwen2.5: Llama with biases on q, k and v (Yang et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.graph import Graph
from roseinfer.models._decoder import HF_NAMES, DecoderConfig, gguf_fields, hf_fields, qwen_windows
from roseinfer.models._settings import Settings

__all__ = ["HF_NAMES", "Config", "build", "from_gguf", "from_hf"]


Config = DecoderConfig


def from_gguf(s: Settings, tensors: Mapping[str, Tensor]) -> Config:
    return Config(**gguf_fields(s, tensors))


def from_hf(s: Settings, tensors: Mapping[str, Tensor]) -> Config:
    s.require("hidden_act", "silu", "swish")
    fields = hf_fields(s, tensors)
    return Config(**fields | {"windows": qwen_windows(s, fields["num_layers"])})


def build(g: Graph, c: Config) -> None:
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    for i in range(c.num_layers):
        w = f"blk.{i}."
        h = g.rms_norm(x, w + "attn_norm", c.norm_eps)
        q = g.rope(g.linear(h, w + "attn_q", c.q_width, bias=True), c.rope, c.num_heads)
        k = g.rope(g.linear(h, w + "attn_k", c.kv_width, bias=True), c.rope, c.num_kv_heads)
        v = g.linear(h, w + "attn_v", c.kv_width, bias=True)
        x = g.add(x, g.linear(g.attention(q, k, v, c.attention(i)), w + "attn_output", c.hidden_size))
        h = g.rms_norm(x, w + "ffn_norm", c.norm_eps)
        gated = g.silu_mul(g.linear(h, w + "ffn_gate", c.ffn_size), g.linear(h, w + "ffn_up", c.ffn_size))
        x = g.add(x, g.linear(gated, w + "ffn_down", c.hidden_size))
    g.logits(g.rms_norm(g.take_logit_rows(x), "output_norm", c.norm_eps), c.output, c.vocab_size)
