"""config.json as older transformers wrote it means the same as today's."""

from __future__ import annotations

from typing import Any

import pytest

from roseinfer.graph import RopeSpec
from roseinfer.models import gemma3, llama, qwen2
from roseinfer.models._rope import plain_rope
from roseinfer.models._settings import Settings
from tests.tiny_models import GEMMA, LLAMA, LLAMA3, QWEN, YARN

VOCAB = {"vocab_size": 320}


def rope_of(module: Any, **config: Any) -> RopeSpec:
    return module.from_hf(Settings(LLAMA | VOCAB | config), {}).rope


@pytest.mark.parametrize("scaling", [LLAMA3, YARN, {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}])
@pytest.mark.parametrize("type_key", ["type", "rope_type"])
def test_rope_scaling_beside_rope_theta(scaling: dict[str, Any], type_key: str) -> None:
    old = {key: value for key, value in scaling.items() if key not in ("rope_type", "rope_theta")}
    old[type_key] = scaling["rope_type"]
    expected = rope_of(llama, rope_parameters=scaling)
    assert rope_of(llama, rope_theta=scaling["rope_theta"], rope_scaling=old) == expected
    assert expected != plain_rope(scaling["rope_theta"], 16)


def test_plain_rope_theta() -> None:
    assert rope_of(qwen2, rope_theta=5e5) == plain_rope(5e5, 16)
    assert rope_of(qwen2, rope_theta=5e5, rope_scaling=None) == plain_rope(5e5, 16)
    assert rope_of(llama) == plain_rope(10000.0, 16)


def test_yarn_extends_the_context_it_starts_from() -> None:
    short = LLAMA | VOCAB | {"rope_scaling": YARN, "max_position_embeddings": 128}
    assert llama.from_hf(Settings(short), {}).max_positions == 512
    assert llama.from_hf(Settings(short | {"max_position_embeddings": 512}), {}).max_positions == 512


def test_gemma3_keys_of_its_own() -> None:
    new = (
        GEMMA
        | VOCAB
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        }
    )
    old = (
        GEMMA
        | VOCAB
        | {
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 2,
            "layer_types": None,
        }
    )
    config = gemma3.from_hf(Settings(new), {})
    assert gemma3.from_hf(Settings(old), {}) == config
    assert config.local_rope == plain_rope(10000.0, 32)
    assert config.rope != config.local_rope


def test_gemma3_defaults_of_the_large_models() -> None:
    """What google/gemma-3-4b's text_config says, which is not much."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    c = gemma3.from_hf(Settings({"text_config": text}), {})
    assert (c.vocab_size, c.num_heads, c.num_kv_heads, c.head_dim, c.attention_scale) == (262_208, 8, 4, 256, 1 / 16)
    assert [i for i, window in enumerate(c.windows) if window is None] == [5, 11, 17, 23, 29]
    assert c.rope.inv_freq[0] == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({"use_sliding_window": False, "sliding_window": 30, "max_window_layers": 0}, (None, None, None)),
        ({"sliding_window": 30, "max_window_layers": 0}, (None, None, None)),
        ({"use_sliding_window": True, "sliding_window": 30, "max_window_layers": 2}, (None, None, 30)),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 30,
                "max_window_layers": 28,
                "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            },
            (30, None, None),
        ),
    ],
)
def test_qwen_windows(config: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert qwen2.from_hf(Settings(QWEN | VOCAB | config), {}).windows == windows


def test_llama_itself_has_no_windows() -> None:
    config = LLAMA | VOCAB | {"sliding_window": 30}
    assert llama.from_hf(Settings(config | {"model_type": "llama"}), {}).windows == (None,) * 3
    assert llama.from_hf(Settings(config | {"model_type": "mistral"}), {}).windows == (30,) * 3


def test_only_the_keys_of_the_architecture_are_read() -> None:
    """A GGUF file's vocabulary takes a while to decode."""

    class Values(dict[str, int]):
        def __getitem__(self, key: str) -> int:
            assert key.startswith("llama.")
            return super().__getitem__(key)

    settings = Settings.below("llama.", Values({"tokenizer.ggml.tokens": 1, "llama.block_count": 2}))
    assert settings.integer("block_count") == 2
    assert not settings.has("tokenizer.ggml.tokens")
