"""Qwen3, dense: Llama with each head of q and k normalised before the rope (Yang et al., 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.graph import Graph
from roseinfer.models._decoder import HF_NAMES, DecoderConfig, gguf_fields, hf_fields, qwen_windows
from roseinfer.models._settings import Settings

__all__ = ["HF_NAMES", "Config", "build", "from_gguf", "from_hf"]


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    has_attention_bias: bool


def from_gguf(s: Settings, tensors: Mapping[str, Tensor]) -> Config:
    return Config(**gguf_fields(s, tensors), has_attention_bias="blk.0.attn_q.bias" in tensors)


def from_hf(s: Settings, tensors: Mapping[str, Tensor]) -> Config:
    s.require("hidden_act", "silu", "swish")
    fields = hf_fields(s, tensors)
    fields["windows"] = qwen_windows(s, fields["num_layers"])
    return Config(**fields, has_attention_bias=s.boolean("attention_bias", default=False))


def build(g: Graph, c: Config) -> None:
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    bias = c.has_attention_bias
    for i in range(c.num_layers):
        w = f"blk.{i}."
        h = g.rms_norm(x, w + "attn_norm", c.norm_eps)
        q = g.linear(h, w + "attn_q", c.q_width, bias=bias)
        k = g.linear(h, w + "attn_k", c.kv_width, bias=bias)
        v = g.linear(h, w + "attn_v", c.kv_width, bias=bias)
        q = g.rope(g.rms_norm(q, w + "attn_q_norm", c.norm_eps, num_heads=c.num_heads), c.rope, c.num_heads)
        k = g.rope(g.rms_norm(k, w + "attn_k_norm", c.norm_eps, num_heads=c.num_kv_heads), c.rope, c.num_kv_heads)
        a = g.attention(q, k, v, c.attention(i))
        x = g.add(x, g.linear(a, w + "attn_output", c.hidden_size, bias=bias))
        h = g.rms_norm(x, w + "ffn_norm", c.norm_eps)
        gated = g.silu_mul(g.linear(h, w + "ffn_gate", c.ffn_size), g.linear(h, w + "ffn_up", c.ffn_size))
        x = g.add(x, g.linear(gated, w + "ffn_down", c.hidden_size))
    g.logits(g.rms_norm(g.take_logit_rows(x), "output_norm", c.norm_eps), c.output, c.vocab_size)
