"""config.json and generation_config.json beside sound weights and a sound tokenizer."""

from __future__ import annotations

import json
import random
from typing import Any

from tests.fuzz.judge import receive_model as receive
from tests.fuzz.mutant import Mutant
from tests.fuzz.random_models import ARCHITECTURES, DECODERS, Sizes
from tests.fuzz.safetensors_format import CONFIG, random_base
from tests.fuzz.small_vocabularies import tokenizer_files
from tests.mutants import mutate_json

__all__ = ["make", "make_bases", "receive", "sound"]

GENERATION_CONFIG = "generation_config.json"
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32.0, "mscale": 1.0}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_ROPES = [{"rope_type": "default", "rope_theta": 1e4}, {"type": "linear", "factor": 2.0}, _YARN, _LLAMA3]
_WORDS: list[Any] = [*ARCHITECTURES, "mistral", "gemma3_text", "mixtral", "silu", "gelu", "gelu_pytorch_tanh", "relu"]
_WORDS += ["linear", "yarn", "llama3", "dynamic", "default", "longrope", "sliding_attention", "full_attention", *_ROPES]
_WORDS += [
    ["sliding_attention"],
    ["x"],
    16,
    33,
    64,
    96,
    1e-5,
    -1.0,
    1e300,
    5e-324,
    2**1000,
    "1",
    "32",
    {"full_attention": {}},
]
_WORDS += [[0], [47], [48], [-1], [1.0], [True], [[1]], {"rope_type": ["yarn"]}, {"text_config": {}}]
_ADDED = ["rope_scaling", "rope_parameters", "rope_theta", "head_dim", "sliding_window", "layer_types", "hidden_act"]
_ADDED += ["attention_bias", "mlp_bias", "use_sliding_window", "max_window_layers", "tie_word_embeddings", "auto_map"]
_ADDED += ["quantization_config", "text_config", "partial_rotary_factor", "attention_factor", "query_pre_attn_scalar"]
_ADDED += [
    "final_logit_softcapping",
    "activation_function",
    "scale_attn_by_inverse_layer_idx",
    "use_bidirectional_attention",
]


def make_bases() -> list[dict[str, bytes]]:
    rng = random.Random(0)
    tokenizer = {name: text.encode() for name, text in tokenizer_files()[1].items()}
    bases = []
    for architecture in ARCHITECTURES:
        for rope in [None, *(_ROPES if architecture in DECODERS[:3] else [])]:
            base = random_base(architecture, Sizes(), rng, is_wild=False, num_shards=1)
            changed = base.config if rope is None else base.config | {"rope_scaling": rope}
            bases.append({**base.files(), **tokenizer, CONFIG: json.dumps(changed).encode()})
    return bases


def sound(bases: list[dict[str, bytes]]) -> list[Mutant]:
    return [Mutant(base) for base in bases]


def make(bases: list[dict[str, bytes]], rng: random.Random) -> Mutant:
    files = dict(rng.choice(bases))
    name = rng.choice([CONFIG, CONFIG, CONFIG, GENERATION_CONFIG])
    value = json.loads(files[name])
    if name == CONFIG and rng.random() < 0.4:
        value[rng.choice(_ADDED)] = rng.choice(_WORDS)
    files[name] = mutate_json(json.dumps(value), rng, _WORDS)
    return Mutant(files)
