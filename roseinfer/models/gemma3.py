"""Gemma 3, the text model: norms around both halves of a layer, normalised q and k, five layers of short windows to
one that sees everything (Gemma Team, 2025).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.graph import Graph, RopeSpec
from roseinfer.models._decoder import HF_NAMES as DECODER_NAMES
from roseinfer.models._decoder import DecoderConfig, Windows, gguf_fields, hf_fields, layer_types
from roseinfer.models._rope import plain_rope, rope_from_hf
from roseinfer.models._settings import MAX_LAYERS, MAX_POSITIONS, Settings
from roseinfer.models._weights import Tensors

_LOCAL_ROPE_BASE = 10_000.0
_WINDOW_PATTERN = 6

# What transformers assumes where the config.json of the larger models says nothing.
_HF_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

_NAMES = DECODER_NAMES | {
    "model.layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
    "model.layers.{}.pre_feedforward_layernorm": "blk.{}.ffn_norm",
    "model.layers.{}.post_feedforward_layernorm": "blk.{}.post_ffw_norm",
}
# The models that also see images hold this one under a prefix, an older and a newer one.
HF_NAMES = {
    **_NAMES,
    **{f"language_model.{name}": ours for name, ours in _NAMES.items()},
    **{name.replace("model.", "model.language_model.", 1): ours for name, ours in _NAMES.items()},
}
HF_DROPPED_PREFIXES = tuple(
    prefix + part for prefix in ("", "model.") for part in ("vision_tower.", "multi_modal_projector.")
)


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    local_rope: RopeSpec  # of the layers with a window
    attention_scale: float
    has_attention_bias: bool


def from_gguf(s: Settings, tensors: Mapping[str, Tensor]) -> Config:
    s.require("final_logit_softcapping", 0.0)
    fields = gguf_fields(s, tensors)
    num_layers, head_dim = fields["num_layers"], fields["head_dim"]
    if s.has("attention.sliding_window"):
        pattern = s.integer("attention.sliding_window_pattern", default=_WINDOW_PATTERN, high=MAX_LAYERS)
        fields["windows"] = _windows(
            s.integer("attention.sliding_window", high=MAX_POSITIONS), _kinds(num_layers, pattern)
        )
    # The file does not say that the 27B model, alone, scales by the width of a head's share of the hidden size.
    scaled_width = fields["hidden_size"] // fields["num_heads"] if num_layers == 62 else head_dim
    return Config(
        **fields,
        local_rope=plain_rope(s.number("rope.freq_base_swa", default=_LOCAL_ROPE_BASE, low=1.0), head_dim),
        attention_scale=scaled_width**-0.5,
        has_attention_bias=False,
    )


def from_hf(s: Settings, tensors: Mapping[str, Tensor]) -> Config:
    s = (s.section("text_config") if s.has("text_config") else s).with_defaults(_HF_DEFAULTS)
    s.require("hidden_activation", "gelu_pytorch_tanh")
    s.require("final_logit_softcapping")
    s.require("attn_logit_softcapping")
    s.require("use_bidirectional_attention", False)
    full, sliding = _hf_ropes(s)
    fields = hf_fields(s, tensors, rope=full)
    num_layers = fields["num_layers"]
    pattern = s.integer("sliding_window_pattern", default=_WINDOW_PATTERN, high=MAX_LAYERS)
    kinds = layer_types(s, num_layers) if s.has("layer_types") else _kinds(num_layers, pattern)
    fields["windows"] = _windows(s.integer("sliding_window", high=MAX_POSITIONS), kinds)
    return Config(
        **fields,
        local_rope=rope_from_hf(sliding, _LOCAL_ROPE_BASE, fields["head_dim"], fields["max_positions"]),
        attention_scale=s.number("query_pre_attn_scalar") ** -0.5,
        has_attention_bias=s.boolean("attention_bias", default=False),
    )


def _hf_ropes(s: Settings) -> tuple[Settings, Settings]:
    """Of the full and of the sliding layers: nested by layer type since transformers 5, keys of their own before."""
    nested = s.section("rope_parameters")
    full = s.section("rope_scaling") if s.has("rope_scaling") else nested.section("full_attention")
    local_base = s.number("rope_local_base_freq", default=_LOCAL_ROPE_BASE, low=1.0)
    full_base = s.number("rope_theta", default=1_000_000.0, low=1.0)
    return (
        full.with_defaults({"rope_theta": full_base}),
        nested.section("sliding_attention").with_defaults({"rope_theta": local_base}),
    )


def _kinds(num_layers: int, pattern: int) -> list[str]:
    return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(num_layers)]


def _windows(window: int, kinds: list[str]) -> Windows:
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def adapt(tensors: Tensors, c: Config, container: str) -> Tensors:
    """Hugging Face keeps norm weights as their distance from 1; GGUF files hold the sum."""
    if container != "hf":
        return tensors
    return {
        name: Tensor.from_numpy(name, tensor.numpy() + np.float32(1)) if name.endswith("norm.weight") else tensor
        for name, tensor in tensors.items()
    }


def build(g: Graph, c: Config) -> None:
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size, scale=math.sqrt(c.hidden_size))
    bias = c.has_attention_bias
    for i in range(c.num_layers):
        w = f"blk.{i}."
        rope = c.rope if c.windows[i] is None else c.local_rope
        h = g.rms_norm(x, w + "attn_norm", c.norm_eps)
        q = g.linear(h, w + "attn_q", c.q_width, bias=bias)
        k = g.linear(h, w + "attn_k", c.kv_width, bias=bias)
        v = g.linear(h, w + "attn_v", c.kv_width, bias=bias)
        q = g.rope(g.rms_norm(q, w + "attn_q_norm", c.norm_eps, num_heads=c.num_heads), rope, c.num_heads)
        k = g.rope(g.rms_norm(k, w + "attn_k_norm", c.norm_eps, num_heads=c.num_kv_heads), rope, c.num_kv_heads)
        a = g.attention(q, k, v, c.attention(i, c.attention_scale))
        a = g.linear(a, w + "attn_output", c.hidden_size, bias=bias)
        x = g.add(x, g.rms_norm(a, w + "post_attention_norm", c.norm_eps))
        h = g.rms_norm(x, w + "ffn_norm", c.norm_eps)
        gated = g.gelu_tanh_mul(g.linear(h, w + "ffn_gate", c.ffn_size), g.linear(h, w + "ffn_up", c.ffn_size))
        h = g.linear(gated, w + "ffn_down", c.hidden_size)
        x = g.add(x, g.rms_norm(h, w + "post_ffw_norm", c.norm_eps))
    g.logits(g.rms_norm(g.take_logit_rows(x), "output_norm", c.norm_eps), c.output, c.vocab_size)
