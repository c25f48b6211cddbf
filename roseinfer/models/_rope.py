"""Rotary frequencies: the plain ones and their scalings (linear, llama3, yarn), as Hugging Face and GGUF spell them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import CheckpointError, UnsupportedModelError
from roseinfer.graph import RopeSpec
from roseinfer.models._settings import MAX_POSITIONS, Settings

Frequencies = npt.NDArray[np.float64]


def rope_from_hf(rope: Settings, theta: float, head_dim: int, max_positions: int) -> RopeSpec:
    """`rope` is config.json's `rope_scaling` or, since transformers 5, `rope_parameters`; `theta` and
    `max_positions` are the config's own, which `rope` may override.
    """
    kind = rope.text("rope_type", "type", default="default")
    theta = rope.number("rope_theta", default=theta, low=1.0)
    rope.require("partial_rotary_factor", 1.0)
    rope.require("full_attention")  # one rope per layer type: the model has to know
    if kind not in _HF_SCALINGS:
        raise UnsupportedModelError(f"rope_type {kind!r} is not supported (only {', '.join(_HF_SCALINGS)})")
    inv_freq, scale = _HF_SCALINGS[kind](rope, theta, plain_frequencies(theta, _even_dim(head_dim)), max_positions)
    return _spec(inv_freq, scale)


def extended_length(rope: Settings, max_positions: int) -> int:
    """Yarn's users leave `max_position_embeddings` at the length before the scaling, or set it to that after it."""
    if rope.text("rope_type", "type", default="default") != "yarn" or not rope.has("original_max_position_embeddings"):
        return max_positions
    stretched = rope.number("factor", default=1.0) * _original_length(rope, max_positions)
    return max(max_positions, int(min(stretched, MAX_POSITIONS)))


def rope_from_gguf(s: Settings, tensors: Mapping[str, Tensor], head_dim: int, max_positions: int) -> RopeSpec:
    """`s` holds the architecture's keys; `rope_freqs.weight`, where there is one, divides the frequencies."""
    theta = s.number("rope.freq_base", default=10000.0, low=1.0)
    dim = _even_dim(s.integer("rope.dimension_count", default=head_dim, high=head_dim))
    inv_freq = plain_frequencies(theta, dim) / _frequency_factors(tensors, dim)
    kind = s.text("rope.scaling.type", default="linear")
    factor = s.number("rope.scaling.factor", "rope.scale_linear", default=1.0)
    if kind == "linear":
        return _spec(inv_freq / factor)
    if kind == "yarn":
        return _spec(_gguf_yarn_ramp(s, theta, inv_freq, factor, max_positions), _gguf_yarn_scale(s, factor))
    if kind != "none":
        raise UnsupportedModelError(f"rope.scaling.type {kind!r} is not supported (only none, linear, yarn)")
    return _spec(inv_freq)


def plain_rope(theta: float, head_dim: int) -> RopeSpec:
    return _spec(plain_frequencies(theta, _even_dim(head_dim)))


def plain_frequencies(theta: float, dim: int) -> Frequencies:
    """theta^(-2i/dim) for i < dim / 2 (Su et al., 2021)."""
    return np.asarray(theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim))


def _spec(inv_freq: Frequencies, scale: float = 1.0) -> RopeSpec:
    # float32, as trainers keep them: at long positions the rounding is part of the model.
    with np.errstate(over="ignore"):
        rounded = inv_freq.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise CheckpointError("the rope settings give frequencies beyond float32")
    return RopeSpec(tuple(rounded.tolist()), scale)


def _even_dim(dim: int) -> int:
    if dim < 2 or dim % 2:
        raise CheckpointError(f"the rotary dimension must be even and at least 2, got {dim}")
    return dim


def _frequency_factors(tensors: Mapping[str, Tensor], dim: int) -> Frequencies:
    tensor = tensors.get("rope_freqs.weight")
    if tensor is None:
        return np.ones(dim // 2)
    if tensor.shape != (dim // 2,):
        raise CheckpointError(f"rope_freqs.weight has shape {list(tensor.shape)}, expected [{dim // 2}]")
    factors = tensor.numpy().astype(np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise CheckpointError("rope_freqs.weight holds a factor that is not a number above 0")
    return factors


# -- scalings -----------------------------------------------------------------------------------------------------


def _hf_default(rope: Settings, theta: float, inv_freq: Frequencies, max_positions: int) -> tuple[Frequencies, float]:
    return inv_freq, 1.0


def _hf_linear(rope: Settings, theta: float, inv_freq: Frequencies, max_positions: int) -> tuple[Frequencies, float]:
    return inv_freq / rope.number("factor"), 1.0


def _hf_llama3(rope: Settings, theta: float, inv_freq: Frequencies, max_positions: int) -> tuple[Frequencies, float]:
    """Long wavelengths are stretched, short ones kept, those between interpolated (Llama 3.1's `apply_scaling`)."""
    factor, low, high = (rope.number(k) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise CheckpointError(f"rope: high_freq_factor {high} must be above low_freq_factor {low}")
    rotations = _original_length(rope, max_positions) * inv_freq / (2 * math.pi)
    kept = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * inv_freq / factor + kept * inv_freq, 1.0


def _hf_yarn(rope: Settings, theta: float, inv_freq: Frequencies, max_positions: int) -> tuple[Frequencies, float]:
    original = _original_length(rope, max_positions)
    factor = rope.number("factor", default=max_positions / original)
    ramped = yarn_ramp(
        inv_freq,
        theta,
        factor,
        original,
        beta_fast=rope.number("beta_fast", default=32.0),
        beta_slow=rope.number("beta_slow", default=1.0),
        truncate=rope.boolean("truncate", default=True),
    )
    if rope.has("attention_factor"):
        return ramped, rope.number("attention_factor")
    if rope.has("mscale") and rope.has("mscale_all_dim"):
        return ramped, _mscale(factor, rope.number("mscale")) / _mscale(factor, rope.number("mscale_all_dim"))
    return ramped, _mscale(factor)


_HF_SCALINGS: dict[str, Callable[[Settings, float, Frequencies, int], tuple[Frequencies, float]]] = {
    "default": _hf_default,
    "linear": _hf_linear,
    "llama3": _hf_llama3,
    "yarn": _hf_yarn,
}


def _gguf_yarn_ramp(s: Settings, theta: float, inv_freq: Frequencies, factor: float, max_positions: int) -> Frequencies:
    s.require("rope.scaling.yarn_ext_factor", 1.0, -1.0)  # -1 is llama.cpp's "as the type says"
    return yarn_ramp(
        inv_freq,
        theta,
        factor,
        s.integer("rope.scaling.original_context_length", default=max_positions, high=MAX_POSITIONS),
        beta_fast=s.number("rope.scaling.yarn_beta_fast", default=32.0),
        beta_slow=s.number("rope.scaling.yarn_beta_slow", default=1.0),
    )


def _gguf_yarn_scale(s: Settings, factor: float) -> float:
    s.require("rope.scaling.yarn_log_multiplier")
    return _mscale(factor) * s.number("rope.scaling.attn_factor", default=1.0)


def yarn_ramp(
    inv_freq: Frequencies,
    theta: float,
    factor: float,
    original_length: int,
    *,
    beta_fast: float,
    beta_slow: float,
    truncate: bool = True,
) -> Frequencies:
    """YaRN (Peng et al., 2023): frequencies that turn more than `beta_fast` times within the original context are
    kept, those that turn less than `beta_slow` times divided by `factor`, a linear ramp between them.
    """
    if theta == 1.0:
        raise CheckpointError("yarn needs a rope base above 1")
    dim = 2 * len(inv_freq)

    def index_of(rotations: float) -> float:
        return dim * math.log(original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index_of(beta_fast), index_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if high == low else high
    stretched = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    return np.asarray(inv_freq / factor * stretched + inv_freq * (1 - stretched))


def _mscale(factor: float, multiplier: float = 1.0) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * multiplier * math.log(factor) + 1.0


def _original_length(rope: Settings, max_positions: int) -> int:
    return rope.integer("original_max_position_embeddings", default=max_positions, high=MAX_POSITIONS)
