"""What the rotary decoder families share: their sizes, read from either container, and the names of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import CheckpointError, UnsupportedModelError
from roseinfer.graph import AttentionSpec, RopeSpec
from roseinfer.models._rope import extended_length, rope_from_gguf, rope_from_hf
from roseinfer.models._settings import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB_SIZE, Settings

Windows = tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float
    rope: RopeSpec
    windows: Windows  # per layer; None = full attention
    is_tied: bool

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(f"{self.num_heads} heads are no multiple of {self.num_kv_heads} key-value heads")

    @property
    def q_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def output(self) -> str:
        """The weight of the output head."""
        return "token_embd" if self.is_tied else "output"

    def attention(self, layer: int, scale: float | None = None) -> AttentionSpec:
        return AttentionSpec(
            layer=layer,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5 if scale is None else scale,
            window=self.windows[layer],
        )


def gguf_fields(s: Settings, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `DecoderConfig` from the metadata llama.cpp's converters write below `<architecture>.`"""
    if s.integer("expert_count", default=0, low=0):
        raise UnsupportedModelError("mixture-of-experts models are not supported")
    hidden_size = s.integer("embedding_length")
    num_layers = s.integer("block_count", high=MAX_LAYERS)
    num_heads = s.integer("attention.head_count", high=MAX_HEADS)
    head_dim = s.integer("attention.key_length", default=_head_dim(hidden_size, num_heads, s), high=MAX_HEAD_DIM)
    s.require("attention.value_length", head_dim)
    max_positions = s.integer("context_length", high=MAX_POSITIONS)
    return {
        "vocab_size": _num_embeddings(tensors),
        "hidden_size": hidden_size,
        "ffn_size": s.integer("feed_forward_length"),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": s.integer("attention.head_count_kv", default=num_heads, high=MAX_HEADS),
        "head_dim": head_dim,
        "max_positions": max_positions,
        "norm_eps": s.number("attention.layer_norm_rms_epsilon", high=1.0),
        "rope": rope_from_gguf(s, tensors, head_dim, max_positions),
        "windows": (None,) * num_layers,
        "is_tied": "output.weight" not in tensors,
    }


def hf_fields(s: Settings, tensors: Mapping[str, Tensor], rope: Settings | None = None) -> dict[str, Any]:
    """The fields of `DecoderConfig` from a config.json; `rope` where its rope settings are elsewhere than usual."""
    rope = rope or s.section("rope_scaling", "rope_parameters")
    hidden_size = s.integer("hidden_size")
    num_layers = s.integer("num_hidden_layers", high=MAX_LAYERS)
    num_heads = s.integer("num_attention_heads", high=MAX_HEADS)
    head_dim = s.integer("head_dim", default=_head_dim(hidden_size, num_heads, s), high=MAX_HEAD_DIM)
    max_positions = s.integer("max_position_embeddings", high=MAX_POSITIONS)
    return {
        "vocab_size": s.integer("vocab_size", high=MAX_VOCAB_SIZE),
        "hidden_size": hidden_size,
        "ffn_size": s.integer("intermediate_size"),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": s.integer("num_key_value_heads", default=num_heads, high=MAX_HEADS),
        "head_dim": head_dim,
        "max_positions": extended_length(rope, max_positions),
        "norm_eps": s.number("rms_norm_eps", default=1e-6, high=1.0),
        "rope": rope_from_hf(rope, s.number("rope_theta", default=10000.0, low=1.0), head_dim, max_positions),
        "windows": (None,) * num_layers,
        "is_tied": is_tied_hf(s, tensors),
    }


def is_tied_hf(s: Settings, tensors: Mapping[str, Tensor]) -> bool:
    """A head of its own counts even in a config that says tied; equal copies are gone by now."""
    return "output.weight" not in tensors and s.boolean("tie_word_embeddings", default=True)


def sliding_windows(s: Settings, num_layers: int) -> Windows:
    """`sliding_window`, on all layers or on those that `layer_types` says."""
    if not s.has("sliding_window"):
        return (None,) * num_layers
    window = s.integer("sliding_window", high=MAX_POSITIONS)
    if not s.has("layer_types"):
        return (window,) * num_layers
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types(s, num_layers))


def qwen_windows(s: Settings, num_layers: int) -> Windows:
    """Qwen's windows are off by default, and begin at layer `max_window_layers` where `layer_types` does not say."""
    if not s.boolean("use_sliding_window", default=False):
        return (None,) * num_layers
    windows = sliding_windows(s, num_layers)
    first = 0 if s.has("layer_types") else s.integer("max_window_layers", default=28, low=0)
    return tuple(window if layer >= first else None for layer, window in enumerate(windows))


def layer_types(s: Settings, num_layers: int) -> list[str]:
    """ "full_attention" or "sliding_attention" per layer."""
    kinds = s.sequence("layer_types", num_layers)
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModelError(f"layer type {kind!r:.80} is not supported")
    return kinds


def _head_dim(hidden_size: int, num_heads: int, s: Settings) -> int:
    if not s.has("head_dim", "attention.key_length") and hidden_size % num_heads:
        raise CheckpointError(f"hidden size {hidden_size} does not split into {num_heads} heads")
    return hidden_size // num_heads


def _num_embeddings(tensors: Mapping[str, Tensor]) -> int:
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError("tensor token_embd.weight is missing")
    return embedding.shape[0]


HF_NAMES: dict[str, str | None] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
    "model.layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "model.layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "model.layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "model.layers.{}.self_attn.o_proj": "blk.{}.attn_output",
    "model.layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
    "model.layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
    "model.layers.{}.self_attn.rotary_emb": None,  # inv_freq, which old releases saved
    "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
    "model.layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "model.layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "model.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
}
