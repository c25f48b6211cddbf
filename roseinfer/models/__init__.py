"""Model architectures: one file each, found by name; `load_model` turns a checkpoint into a graph and its weights.

An architecture's file defines `Config`, `from_gguf` and `from_hf` (settings and renamed tensors to a Config),
`HF_NAMES` (Hugging Face module names to ours, which are GGUF's), `build(graph, config)` and, where tensors have to be
changed, `adapt(tensors, config, container)`. Files with a leading underscore are what they share.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from roseinfer.checkpoints import Checkpoint
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import UnsupportedModelError
from roseinfer.graph import Graph
from roseinfer.models._settings import Settings
from roseinfer.models._weights import Tensors, drop_repeated_output, fit, rename

ALIASES = {
    "gemma3_text": "gemma3",
    "mistral": "llama",
    "ministral": "llama",
}


class ModelConfig(Protocol):
    """What every architecture's Config has; the rest is its own."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_positions(self) -> int: ...


@dataclass(frozen=True)
class Model:
    """A graph and exactly the weights it names, in its shapes; they may be views into the checkpoint's files."""

    architecture: str
    config: ModelConfig
    graph: Graph
    weights: dict[str, Tensor]
    max_model_len: int
    eos_ids: tuple[int, ...]  # () where the checkpoint does not say


@cache
def architecture_names() -> tuple[str, ...]:
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def load_model(checkpoint: Checkpoint) -> Model:
    """Raises `UnsupportedModelError` for an architecture or variant that is not there, `CheckpointError` for settings
    or tensors that do not make up the architecture; the message names the key or the tensor.
    """
    name = ALIASES.get(checkpoint.architecture, checkpoint.architecture)
    if name not in architecture_names():
        known = ", ".join(sorted({*architecture_names(), *ALIASES}))
        raise UnsupportedModelError(f"architecture {name!r:.80} is not supported (supported: {known})")
    module: Any = importlib.import_module(f"{__name__}.{name}")
    config, tensors = _READERS[checkpoint.container](module, checkpoint)
    graph = Graph()
    module.build(graph, config)
    return Model(
        architecture=name,
        config=config,
        graph=graph,
        weights=fit(tensors, graph.weights),
        max_model_len=config.max_positions,
        eos_ids=_eos_ids(checkpoint, config.vocab_size),
    )


# -- containers ---------------------------------------------------------------------------------------------------

_GGUF_NAMES: dict[str, str | None] = {
    "rope_freqs": None,  # part of the config's rope by then
    "blk.{}.attn_rot_embd": None,  # what converters of 2023 wrote of it
}


def _read_gguf(module: Any, checkpoint: Checkpoint) -> tuple[Any, Tensors]:
    settings = Settings.below(f"{checkpoint.architecture}.", checkpoint.config)
    tensors = drop_repeated_output(dict(checkpoint.tensors))
    config = module.from_gguf(settings, tensors)
    return config, _adapt(module, rename(tensors, _GGUF_NAMES), config, "gguf")


def _read_hf(module: Any, checkpoint: Checkpoint) -> tuple[Any, Tensors]:
    settings = Settings(checkpoint.config)
    if settings.has("quantization_config"):
        raise UnsupportedModelError("quantised safetensors (quantization_config) are not supported; GGUF files are")
    dropped: tuple[str, ...] = getattr(module, "HF_DROPPED_PREFIXES", ())
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(dropped)}
    tensors = drop_repeated_output(rename(kept, module.HF_NAMES))
    config = module.from_hf(settings, tensors)
    return config, _adapt(module, tensors, config, "hf")


def _read_torch_file(module: Any, checkpoint: Checkpoint) -> tuple[Any, Tensors]:
    if not hasattr(module, "from_torch_file"):
        raise UnsupportedModelError(f"torch files do not hold {checkpoint.architecture} models")
    tensors = drop_repeated_output(rename(checkpoint.tensors, module.TORCH_FILE_NAMES))
    config = module.from_torch_file(Settings(checkpoint.config), tensors)
    return config, _adapt(module, tensors, config, "torch_file")


_READERS = {"gguf": _read_gguf, "hf": _read_hf, "torch_file": _read_torch_file}


def _adapt(module: Any, tensors: Tensors, config: Any, container: str) -> Tensors:
    if not hasattr(module, "adapt"):
        return tensors
    adapted: Tensors = module.adapt(tensors, config, container)
    return adapted


def _eos_ids(checkpoint: Checkpoint, vocab_size: int) -> tuple[int, ...]:
    """The tokens that end an answer: GGUF's end of sequence, turn and message; Hugging Face's generation_config
    before its config.
    """
    settings = Settings(checkpoint.config)
    if checkpoint.container == "gguf":
        names = [f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom")]
        return tuple(dict.fromkeys(i for name in names for i in settings.token_ids(name, vocab_size=vocab_size)))
    generation = Settings(checkpoint.generation_config or {}, "generation_config.")
    source = generation if generation.has("eos_token_id") else settings
    return tuple(dict.fromkeys(source.token_ids("eos_token_id", vocab_size=vocab_size)))
