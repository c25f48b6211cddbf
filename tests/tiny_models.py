"""Tiny random checkpoints of every architecture and container, each with the model that says what they mean.

Hugging Face directories come from transformers, GGUF files from the `gguf` package (whose name map and
dequantisation are independent of ours), torch files from a module written here after the format's description.
`build(name, directory)` makes one; `NAMES` lists them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from roseinfer.quant import get_format

torch.set_num_threads(1)  # the matrices are so small that threads would only wait for each other

VOCAB_SIZE = 320
MAX_POSITIONS = 512
EOS_ID = 3


@dataclass(frozen=True)
class TinyModel:
    path: Path  # what `open_checkpoint` opens
    module: nn.Module  # token ids [1, T] to logits [1, T, vocab]

    @torch.inference_mode()
    def logits(self, token_ids: list[int]) -> np.ndarray:
        """[T, vocab], the reference."""
        output = self.module(torch.tensor([token_ids]))
        return getattr(output, "logits", output)[0].numpy()


Builder = Callable[[Path], TinyModel]


# -- Hugging Face -------------------------------------------------------------------------------------------------


def hf_model(model_type: str, settings: dict[str, Any]) -> PreTrainedModel:
    """Random weights, large enough that attention is sharp and logits are far from uniform."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{"eos_token_id": EOS_ID, "vocab_size": VOCAB_SIZE, **settings})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Also norms and biases, whose usual 1 and 0 would hide a mistake."""
    for name, parameter in model.named_parameters():
        if "embed" in name or "wte" in name:
            parameter.normal_(0.0, 0.5)
        elif parameter.dim() > 1:
            parameter.normal_(0.0, 1.2 / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.3)


def build_hf(
    model_type: str, settings: dict[str, Any], directory: Path, dtype: torch.dtype = torch.float32
) -> TinyModel:
    hf_model(model_type, settings).to(dtype).save_pretrained(directory)
    module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    return TinyModel(directory, module.eval())


LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "rms_norm_eps": 1e-3,  # large enough to be seen
}
QWEN = LLAMA | {"rope_theta": 1e6}
GEMMA = LLAMA | {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "sliding_window": 40,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": MAX_POSITIONS, "layer_norm_epsilon": 1e-3}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}

_HF: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama-mha": ("llama", LLAMA | {"num_key_value_heads": 4}),
    "llama-biases": ("llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", LLAMA | {"tie_word_embeddings": True}),
    "llama-head-dim": ("llama", LLAMA | {"head_dim": 64, "num_key_value_heads": 1}),
    "llama-rope-linear": ("llama", LLAMA | {"rope_parameters": LINEAR}),
    "llama-rope-llama3": ("llama", LLAMA | {"rope_parameters": LLAMA3}),
    "llama-rope-yarn": ("llama", LLAMA | {"rope_parameters": YARN}),
    "llama-rope-yarn-mscale": (
        "llama",
        LLAMA
        | {"rope_parameters": YARN | {"mscale": 1.4, "mscale_all_dim": 0.7, "truncate": False, "beta_fast": 16.0}},
    ),
    "mistral": ("mistral", LLAMA | {"sliding_window": 40}),
    "ministral": ("ministral", LLAMA | {"head_dim": 16, "sliding_window": 24, "layer_types": GEMMA["layer_types"][:3]}),
    "qwen2": ("qwen2", QWEN),
    "qwen2-window": ("qwen2", QWEN | {"use_sliding_window": True, "sliding_window": 30, "max_window_layers": 1}),
    "qwen3": ("qwen3", QWEN | {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-bias": ("qwen3", QWEN | {"head_dim": 16, "attention_bias": True}),
    "gemma3": ("gemma3_text", GEMMA),
    "gemma3-rope-linear": (
        "gemma3_text",
        GEMMA
        | {
            "rope_parameters": {
                "full_attention": LINEAR | {"rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            }
        },
    ),
    "gpt2": ("gpt2", GPT2),
    "gpt2-variant": (
        "gpt2",
        GPT2 | {"activation_function": "gelu", "n_inner": 96, "scale_attn_by_inverse_layer_idx": True},
    ),
}


# -- GGUF ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GGUFRecipe:
    """How a transformers model becomes a GGUF file: `format` for matrices whose rows its blocks divide."""

    architecture: str
    model_type: str
    settings: dict[str, Any]
    format: str
    metadata: Callable[[gguf.GGUFWriter], None] = lambda writer: None


def build_gguf(recipe: GGUFRecipe, directory: Path) -> TinyModel:
    """The module keeps the values that the file's blocks stand for, so both sides have the same weights."""
    directory.mkdir(parents=True, exist_ok=True)
    model = hf_model(recipe.model_type, recipe.settings)
    path = directory / "model.gguf"
    writer = gguf.GGUFWriter(path, recipe.architecture)
    write_metadata(writer, recipe, model.config)
    names = gguf.get_tensor_name_map(_ARCHITECTURES[recipe.architecture], model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        write_tensor(writer, recipe, target, name, parameter.detach(), model.config)
    write_rope_factors(writer, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyModel(path, model)


_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "gpt2": gguf.MODEL_ARCH.GPT2,
}


def write_metadata(writer: gguf.GGUFWriter, recipe: GGUFRecipe, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_eos_token_id(EOS_ID)
    if recipe.architecture == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        rope = config.rope_parameters
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(head_dim(config))
        writer.add_value_length(head_dim(config))
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    recipe.metadata(writer)


def head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@torch.no_grad()
def write_tensor(
    writer: gguf.GGUFWriter, recipe: GGUFRecipe, target: str, name: str, parameter: torch.Tensor, config: Any
) -> None:
    is_conv1d = ".c_" in name and parameter.dim() == 2
    values = np.ascontiguousarray(parameter.numpy().T if is_conv1d else parameter.numpy())
    if recipe.architecture == "gemma3" and target.endswith("norm.weight"):
        values = values + 1
    interleaved_heads = _interleaved_heads(recipe, target, config)
    if interleaved_heads:
        values = interleave(values, interleaved_heads)
    if values.ndim == 1 or recipe.format == "f32":
        writer.add_tensor(target, values)
        return
    kind = gguf.GGMLQuantizationType[recipe.format.upper()]
    data = get_format(recipe.format).quantize(values).reshape(values.shape[0], -1)
    writer.add_tensor(target, data, raw_dtype=kind)
    stored = gguf.quants.dequantize(data, kind).reshape(values.shape)
    if interleaved_heads:
        stored = deinterleave(stored, interleaved_heads)
    parameter.copy_(torch.from_numpy(np.ascontiguousarray(stored.T if is_conv1d else stored)))


def _interleaved_heads(recipe: GGUFRecipe, target: str, config: Any) -> int:
    """How many heads of this tensor llama.cpp's converter interleaves; 0 = it leaves the rows alone."""
    if recipe.architecture != "llama":
        return 0
    return {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(target.split(".")[-2], 0)


def interleave(values: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's `LlamaModel.permute`."""
    half = values.shape[0] // num_heads // 2
    return values.reshape(num_heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def deinterleave(values: np.ndarray, num_heads: int) -> np.ndarray:
    half = values.shape[0] // num_heads // 2
    return values.reshape(num_heads, half, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def write_rope_factors(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    """Llama 3's scaling is a tensor in GGUF: what each frequency is divided by."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        inv_freq = model.model.rotary_emb.inv_freq
        plain = rope["rope_theta"] ** -(torch.arange(len(inv_freq)) / len(inv_freq))
        writer.add_tensor("rope_freqs.weight", (plain / inv_freq).numpy())


def _linear_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(LINEAR["factor"])


def _yarn_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(YARN["factor"])
    writer.add_rope_scaling_orig_ctx_len(YARN["original_max_position_embeddings"])


def _gemma_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_sliding_window(GEMMA["sliding_window"])
    _linear_metadata(writer)


# Widths of 256 for the K-quants; Gemma's layers in the pattern that GGUF files take for granted.
WIDE = LLAMA | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
GEMMA_GGUF = GEMMA | {
    "num_hidden_layers": 7,
    "query_pre_attn_scalar": 32,
    "layer_types": None,
    "rope_parameters": {
        "full_attention": LINEAR | {"rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
_GGUF: dict[str, GGUFRecipe] = {
    "gguf-llama-f32": GGUFRecipe("llama", "llama", LLAMA, "f32"),
    "gguf-llama-q8_0": GGUFRecipe("llama", "llama", LLAMA | {"attention_bias": True}, "q8_0"),
    "gguf-llama-q4_k": GGUFRecipe("llama", "llama", WIDE | {"tie_word_embeddings": True}, "q4_k"),
    "gguf-llama-q6_k": GGUFRecipe("llama", "llama", WIDE, "q6_k"),
    "gguf-llama-rope-llama3": GGUFRecipe("llama", "llama", LLAMA | {"rope_parameters": LLAMA3}, "bf16"),
    "gguf-llama-rope-linear": GGUFRecipe(
        "llama", "llama", LLAMA | {"rope_parameters": LINEAR}, "q4_0", _linear_metadata
    ),
    "gguf-qwen2-rope-yarn": GGUFRecipe("qwen2", "qwen2", QWEN | {"rope_parameters": YARN}, "q4_1", _yarn_metadata),
    "gguf-qwen3-q5_1": GGUFRecipe("qwen3", "qwen3", QWEN | {"head_dim": 32}, "q5_1"),
    "gguf-gemma3-q5_0": GGUFRecipe("gemma3", "gemma3_text", GEMMA_GGUF, "q5_0", _gemma_metadata),
    "gguf-gpt2-f16": GGUFRecipe("gpt2", "gpt2", GPT2, "f16"),
}


# -- torch files --------------------------------------------------------------------------------------------------


class SeedAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in self.qkv_proj(x).chunk(3, dim=-1))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(a.transpose(1, 2).flatten(-2))


class SeedMLP(nn.Module):
    def __init__(self, d_model: int, d_ff: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_ff)
        self.fc2 = nn.Linear(d_ff, d_model)
        self.act = nn.GELU(approximate="tanh" if activation == "gelu_new" else "none")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class SeedBlock(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_ff: int, activation: str) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(d_model)
        self.attn = SeedAttention(d_model, n_heads)
        self.ln2 = nn.LayerNorm(d_model)
        self.mlp = SeedMLP(d_model, d_ff, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class SeedGPT(nn.Module):
    """The trainers' architecture: pre-norm blocks, learned positions, a head tied to the embedding."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        d_model, n_layers, activation = config["d_model"], config["n_layers"], config.get("activation", "gelu")
        self.token_embedding = nn.Embedding(config["vocab_size"], d_model)
        self.position_embedding = nn.Embedding(config["max_position_embeddings"], d_model)
        self.blocks = nn.ModuleList(
            SeedBlock(d_model, config["n_heads"], config["d_ff"], activation) for _ in range(n_layers)
        )
        self.ln_f = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, config["vocab_size"], bias=False)
        self.lm_head.weight = self.token_embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


SEED = {
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": MAX_POSITIONS,
    "n_layers": 3,
    "n_heads": 4,
    "d_model": 64,
    "d_ff": 128,
    "dropout": 0.1,
    "use_tensor_parallel": False,
    "use_activation_checkpoint": False,
}


def build_seed(
    settings: dict[str, Any], directory: Path, *, prefix: str = "", dtype: torch.dtype = torch.float32
) -> TinyModel:
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = SEED | settings
    model = SeedGPT(config).eval()
    randomise(model)
    model = model.to(dtype).float()  # the values that the file will hold
    state = {prefix + name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    path = directory / "model.pt"
    torch.save({"model": state, "config": config, "optimizer": {"lr": 0.1}, "step": 7}, path)
    return TinyModel(path, model)


def build_untied_seed(directory: Path) -> TinyModel:
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = SeedGPT(SEED).eval()
    model.lm_head.weight = nn.Parameter(torch.empty_like(model.token_embedding.weight))
    randomise(model)
    path = directory / "model.pt"
    torch.save({"model": model.state_dict(), "config": SEED}, path)
    return TinyModel(path, model)


BUILDERS: dict[str, Builder] = {
    **{name: partial(build_hf, *arguments) for name, arguments in _HF.items()},
    "gemma3-bf16": partial(build_hf, "gemma3_text", GEMMA, dtype=torch.bfloat16),
    "gpt2-f16": partial(build_hf, "gpt2", GPT2, dtype=torch.float16),
    **{name: partial(build_gguf, recipe) for name, recipe in _GGUF.items()},
    "torch-file": partial(build_seed, {}),
    "torch-file-tanh": partial(build_seed, {"activation": "gelu_new"}, prefix="_orig_mod.module."),
    "torch-file-bf16": partial(build_seed, {}, prefix="module.", dtype=torch.bfloat16),
    "torch-file-untied": build_untied_seed,
}
NAMES = tuple(BUILDERS)


def build(name: str, directory: Path) -> TinyModel:
    return BUILDERS[name](directory)
