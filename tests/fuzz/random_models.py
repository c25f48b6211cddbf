"""Tiny models of any architecture, container and size: settings and tensors of random bytes that load as they are.

Names and shapes are those of the graph that the architecture's own `build` makes, so a new one needs no change here.
"""

from __future__ import annotations

import importlib
import random
import re
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.graph import Graph
from roseinfer.models._settings import Settings
from roseinfer.quant import get_format

DECODERS = ("llama", "qwen2", "qwen3", "gemma3")
ARCHITECTURES = (*DECODERS, "gpt2")
FLOATS = ("f32", "f16", "bf16")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    vocab: int = 48
    hidden: int = 32
    ffn: int = 64
    layers: int = 1
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 16
    positions: int = 128

    @staticmethod
    def odd(rng: random.Random, vocab: int | None = None) -> Sizes:
        """Sizes that no kernel likes: single columns, remainders of every tile, heads of two dimensions."""
        kv_heads = rng.choice([1, 1, 2, 3])
        heads, head_dim = kv_heads * rng.choice([1, 2, 3, 5]), rng.choice([2, 4, 6, 16, 18, 34, 64, 80])
        return Sizes(
            vocab=vocab or rng.choice([1, 2, 7, 15, 16, 17, 33, 100]),
            hidden=rng.choice([1, 2, 3, 15, 17, 32, 33, 64, 96, 256]),
            ffn=rng.choice([1, 2, 15, 17, 31, 32, 33, 64, 65, 256]),
            layers=rng.choice([1, 1, 2]),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            positions=rng.choice([1, 15, 16, 17, 128, 2**20]),
        )

    def of_gpt2(self) -> Sizes:
        """Its heads share the hidden size."""
        return Sizes(**{**self.__dict__, "hidden": self.heads * self.head_dim})


class Weight(NamedTuple):
    format: str
    shape: tuple[int, ...]
    data: bytes


# -- settings -----------------------------------------------------------------------------------------------------


def gguf_settings(architecture: str, sizes: Sizes) -> dict[str, Any]:
    """The metadata below `<architecture>.`"""
    settings: dict[str, Any] = {
        "context_length": sizes.positions,
        "embedding_length": sizes.hidden,
        "feed_forward_length": sizes.ffn,
        "block_count": sizes.layers,
        "attention.head_count": sizes.heads,
    }
    if architecture == "gpt2":
        return settings | {"attention.layer_norm_epsilon": 1e-5}
    return settings | {
        "attention.head_count_kv": sizes.kv_heads,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": sizes.head_dim,
    }


def hf_settings(architecture: str, sizes: Sizes) -> dict[str, Any]:
    """config.json"""
    if architecture == "gpt2":
        names = {"n_embd": "hidden", "n_inner": "ffn", "n_layer": "layers", "n_head": "heads"}
        names |= {"n_positions": "positions", "vocab_size": "vocab"}
        return {"model_type": "gpt2"} | {name: getattr(sizes, field) for name, field in names.items()}
    settings: dict[str, Any] = {
        "model_type": {"gemma3": "gemma3_text"}.get(architecture, architecture),
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "max_position_embeddings": sizes.positions,
        "rms_norm_eps": 1e-5,
        "eos_token_id": min(2, sizes.vocab - 1),
    }
    if architecture == "gemma3":
        settings |= {"query_pre_attn_scalar": 16, "sliding_window": 20, "layer_types": ["sliding_attention"]}
        settings["layer_types"] *= sizes.layers
    return settings


def torch_settings(sizes: Sizes) -> dict[str, Any]:
    names = {"vocab_size": "vocab", "max_position_embeddings": "positions", "n_layers": "layers"}
    names |= {"n_heads": "heads", "d_model": "hidden", "d_ff": "ffn"}
    return {name: getattr(sizes, field) for name, field in names.items()}


# -- shapes, under the names of the containers --------------------------------------------------------------------


def gguf_shapes(architecture: str, sizes: Sizes) -> Shapes:
    module = importlib.import_module(f"roseinfer.models.{architecture}")
    settings = Settings(gguf_settings(architecture, sizes))
    embedding = Tensor("", "f32", (sizes.vocab, sizes.hidden), np.empty(0, np.uint8))
    return _graph_shapes(module, module.from_gguf(settings, {"token_embd.weight": embedding}))


def hf_shapes(architecture: str, sizes: Sizes) -> Shapes:
    module = importlib.import_module(f"roseinfer.models.{architecture}")
    shapes = _graph_shapes(module, module.from_hf(Settings(hf_settings(architecture, sizes)), {}))
    if architecture == "gpt2":
        shapes = _fused(shapes)
        transposed = module._HF_TRANSPOSED
        shapes = {name: shape[::-1] if name.endswith(transposed) else shape for name, shape in shapes.items()}
    return _renamed(shapes, module.HF_NAMES)


def torch_shapes(sizes: Sizes) -> Shapes:
    module = importlib.import_module("roseinfer.models.gpt2")
    shapes = _graph_shapes(module, module.from_torch_file(Settings(torch_settings(sizes)), {}))
    return _renamed(_fused(shapes), module.TORCH_FILE_NAMES)


def _graph_shapes(module: Any, config: Any) -> Shapes:
    graph = Graph()
    module.build(graph, config)
    return dict(graph.weights)


def _fused(shapes: Shapes) -> Shapes:
    """q, k and v as the one projection that GPT-2's files hold."""
    fused: Shapes = {}
    for name, shape in shapes.items():
        if ".attn_q." in name:
            fused[name.replace("attn_q", "attn_qkv")] = (3 * shape[0], *shape[1:])
        elif ".attn_k." not in name and ".attn_v." not in name:
            fused[name] = shape
    return fused


def _renamed(shapes: Shapes, names: dict[str, str | None]) -> Shapes:
    theirs = {ours: name for name, ours in reversed(names.items()) if ours}
    renamed = {}
    for name, shape in shapes.items():
        part, leaf = name.rsplit(".", 1)
        layer = re.search(r"\.(\d+)\.", part)
        pattern = re.sub(r"\.\d+\.", ".{}.", part)
        renamed[theirs[pattern].format(layer.group(1) if layer else "") + "." + leaf] = shape
    return renamed


# -- weights ------------------------------------------------------------------------------------------------------


def random_weights(shapes: Shapes, formats: tuple[str, ...], rng: random.Random, *, is_wild: bool) -> dict[str, Weight]:
    """Each matrix in one of the formats that its rows fit, vectors in floats. Wild bytes hold NaN and infinity."""
    return {name: _random_weight(shape, formats, rng, is_wild) for name, shape in shapes.items()}


def _random_weight(shape: tuple[int, ...], formats: tuple[str, ...], rng: random.Random, is_wild: bool) -> Weight:
    fitting = [name for name in formats if shape[-1] % get_format(name).block_size == 0]
    fitting = fitting if len(shape) == 2 and fitting else [name for name in formats if name in FLOATS]
    weight_format = get_format(rng.choice(fitting or ["f32"]))
    num_blocks = prod(shape) // weight_format.block_size
    if is_wild:
        data = rng.randbytes(num_blocks * weight_format.block_bytes)
    else:
        values = np.random.default_rng(rng.getrandbits(32)).normal(0, 0.3, prod(shape)).astype(np.float32)
        data = weight_format.quantize(values).tobytes()
    return Weight(weight_format.name, shape, data)
