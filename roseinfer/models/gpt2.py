"""GPT-2: learned positions, LayerNorm, biases everywhere (Radford et al., 2019); also the torch files of the project's
own trainers, which differ in names and, by default, in the exact GELU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import CheckpointError, UnsupportedModelError
from roseinfer.graph import AttentionSpec, Graph
from roseinfer.models._settings import MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB_SIZE, Settings
from roseinfer.models._weights import Tensors, split_rows, transpose

Gelu = Literal["gelu", "gelu_tanh"]

_ACTIVATIONS: dict[str, Gelu] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

_HF_MODULES: dict[str, str | None] = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "h.{}.ln_1": "blk.{}.attn_norm",
    "h.{}.attn.c_attn": "blk.{}.attn_qkv",
    "h.{}.attn.c_proj": "blk.{}.attn_output",
    "h.{}.attn": None,  # the causal mask, which old releases saved as attn.bias and attn.masked_bias
    "h.{}.ln_2": "blk.{}.ffn_norm",
    "h.{}.mlp.c_fc": "blk.{}.ffn_up",
    "h.{}.mlp.c_proj": "blk.{}.ffn_down",
}
HF_NAMES = {
    "lm_head": "output",
    **_HF_MODULES,  # as OpenAI's checkpoints have them
    **{f"transformer.{name}": ours for name, ours in _HF_MODULES.items()},
}
TORCH_FILE_NAMES = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "blocks.{}.ln1": "blk.{}.attn_norm",
    "blocks.{}.attn.qkv_proj": "blk.{}.attn_qkv",
    "blocks.{}.attn.out_proj": "blk.{}.attn_output",
    "blocks.{}.ln2": "blk.{}.ffn_norm",
    "blocks.{}.mlp.fc1": "blk.{}.ffn_up",
    "blocks.{}.mlp.fc2": "blk.{}.ffn_down",
    "ln_f": "output_norm",
    "lm_head": "output",
}
# Conv1D modules, which keep their weights as [in, out].
_HF_TRANSPOSED = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int
    max_positions: int
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    activation: Gelu
    is_tied: bool
    norm_eps: float = 1e-5
    is_scaled_by_layer: bool = False

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise CheckpointError(f"hidden size {self.hidden_size} does not split into {self.num_heads} heads")

    def attention(self, layer: int) -> AttentionSpec:
        head_dim = self.hidden_size // self.num_heads
        scale = head_dim**-0.5 / (layer + 1 if self.is_scaled_by_layer else 1)
        return AttentionSpec(layer, self.num_heads, self.num_heads, head_dim, scale)


def from_gguf(s: Settings, tensors: Mapping[str, Tensor]) -> Config:
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError("tensor token_embd.weight is missing")
    return Config(
        vocab_size=embedding.shape[0],
        max_positions=s.integer("context_length", high=MAX_POSITIONS),
        hidden_size=s.integer("embedding_length"),
        ffn_size=s.integer("feed_forward_length"),
        num_layers=s.integer("block_count", high=MAX_LAYERS),
        num_heads=s.integer("attention.head_count", high=MAX_HEADS),
        activation="gelu_tanh",
        is_tied="output.weight" not in tensors,
        norm_eps=s.number("attention.layer_norm_epsilon", high=1.0),
    )


def from_hf(s: Settings, tensors: Mapping[str, Tensor]) -> Config:
    s.require("scale_attn_weights", True)
    s.require("add_cross_attention", False)
    hidden_size = s.integer("n_embd")
    return Config(
        vocab_size=s.integer("vocab_size", high=MAX_VOCAB_SIZE),
        max_positions=s.integer("n_positions", high=MAX_POSITIONS),
        hidden_size=hidden_size,
        ffn_size=s.integer("n_inner", default=4 * hidden_size, high=1 << 22),
        num_layers=s.integer("n_layer", high=MAX_LAYERS),
        num_heads=s.integer("n_head", high=MAX_HEADS),
        activation=_activation(s.text("activation_function", default="gelu_new")),
        is_tied="output.weight" not in tensors,
        norm_eps=s.number("layer_norm_epsilon", default=1e-5, high=1.0),
        is_scaled_by_layer=s.boolean("scale_attn_by_inverse_layer_idx", default=False),
    )


def from_torch_file(s: Settings, tensors: Mapping[str, Tensor]) -> Config:
    return Config(
        vocab_size=s.integer("vocab_size", default=32000, high=MAX_VOCAB_SIZE),
        max_positions=s.integer("max_position_embeddings", default=1024, high=MAX_POSITIONS),
        hidden_size=s.integer("d_model", default=768),
        ffn_size=s.integer("d_ff", default=3072),
        num_layers=s.integer("n_layers", default=12, high=MAX_LAYERS),
        num_heads=s.integer("n_heads", default=12, high=MAX_HEADS),
        activation=_activation(s.text("activation", default="gelu")),
        is_tied="output.weight" not in tensors,
    )


def _activation(name: str) -> Gelu:
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(f"activation {name!r:.80} is not supported (only {', '.join(_ACTIVATIONS)})")
    return _ACTIVATIONS[name]


def adapt(tensors: Tensors, c: Config, container: str) -> Tensors:
    if container == "hf":
        tensors = {
            name: transpose(tensor) if name.endswith(_HF_TRANSPOSED) else tensor for name, tensor in tensors.items()
        }
    return split_rows(tensors, "attn_qkv", {f"attn_{part}": c.hidden_size for part in "qkv"})


def build(g: Graph, c: Config) -> None:
    x = g.embedding("token_embd", c.vocab_size, c.hidden_size)
    x = g.add(x, g.position_embedding("position_embd", c.max_positions, c.hidden_size))
    for i in range(c.num_layers):
        w = f"blk.{i}."
        h = g.layer_norm(x, w + "attn_norm", c.norm_eps)
        q, k, v = (g.linear(h, f"{w}attn_{part}", c.hidden_size, bias=True) for part in "qkv")
        a = g.attention(q, k, v, c.attention(i))
        x = g.add(x, g.linear(a, w + "attn_output", c.hidden_size, bias=True))
        h = g.layer_norm(x, w + "ffn_norm", c.norm_eps)
        h = g.activation(g.linear(h, w + "ffn_up", c.ffn_size, bias=True), c.activation)
        x = g.add(x, g.linear(h, w + "ffn_down", c.hidden_size, bias=True))
    x = g.layer_norm(g.take_logit_rows(x), "output_norm", c.norm_eps)
    g.logits(x, "token_embd" if c.is_tied else "output", c.vocab_size)
