"""What `load_model` refuses, and what it tells about a model besides its weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roseinfer.checkpoints import Checkpoint, Tensor, open_checkpoint
from roseinfer.core.errors import CheckpointError, UnsupportedModelError
from roseinfer.models import ALIASES, architecture_names, load_model
from tests import tiny_models
from tests.harness import compile_model, teacher_forced_logits

ONE_OF_EACH = (
    "llama",
    "qwen2-window",
    "qwen3",
    "gemma3",
    "gpt2",
    "gguf-gemma3-q5_0",
    "gguf-qwen2-rope-yarn",
    "torch-file",
)


def changed(checkpoint: Checkpoint, tensors: dict[str, Tensor] | None = None, **config: Any) -> Checkpoint:
    return replace(
        checkpoint,
        config={**checkpoint.config, **config},
        tensors=dict(checkpoint.tensors if tensors is None else tensors),
    )


@pytest.fixture
def checkpoint_of(tiny_model):
    return lambda name: open_checkpoint(tiny_model(name).path)


def test_architectures_are_the_files_of_the_folder() -> None:
    assert architecture_names() == ("gemma3", "gpt2", "llama", "qwen2", "qwen3")
    assert set(ALIASES.values()) <= set(architecture_names())


def test_unknown_architecture_lists_the_known(checkpoint_of) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mamba' is not supported .*llama"):
        load_model(replace(checkpoint_of("llama"), architecture="mamba"))


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_weights_are_exactly_the_graphs(name: str, checkpoint_of) -> None:
    model = load_model(checkpoint_of(name))
    assert {n: t.shape for n, t in model.weights.items()} == model.graph.weights
    assert all(t.name == n for n, t in model.weights.items())
    assert [spec.layer for spec in model.graph.attention_specs] == list(range(model.config.num_layers))
    assert model.max_model_len == tiny_models.MAX_POSITIONS
    assert model.graph.vocab_size == tiny_models.VOCAB_SIZE


# -- tensors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_each_missing_or_misshapen_tensor_is_named(name: str, checkpoint_of) -> None:
    checkpoint = checkpoint_of(name)
    for victim, tensor in checkpoint.tensors.items():
        if victim in ("lm_head.weight", "output.weight") and checkpoint.container != "hf":
            continue  # where no config says otherwise, a model without a head is a tied one
        rest = {n: t for n, t in checkpoint.tensors.items() if n != victim}
        with pytest.raises(CheckpointError, match="missing"):
            load_model(changed(checkpoint, rest))
        longer = Tensor(victim, "f32", (*tensor.shape[:-1], 4099), np.zeros(tensor.num_rows * 4099 * 4, np.uint8))
        with pytest.raises(CheckpointError):
            load_model(changed(checkpoint, {**checkpoint.tensors, victim: longer}))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_unexpected_tensor_is_named(name: str, checkpoint_of) -> None:
    checkpoint = checkpoint_of(name)
    extra = Tensor.from_numpy("blk.0.surprise.weight", np.zeros((2, 2), np.float32))
    with pytest.raises(CheckpointError, match=r"blk\.0\.surprise\.weight"):
        load_model(changed(checkpoint, {**checkpoint.tensors, extra.name: extra}))


def test_expert_models_are_refused(checkpoint_of) -> None:
    with pytest.raises(UnsupportedModelError, match="expert"):
        load_model(changed(checkpoint_of("gguf-llama-f32"), **{"llama.expert_count": 8}))


def test_known_leftovers_are_dropped(checkpoint_of) -> None:
    llama, gpt2 = checkpoint_of("llama"), checkpoint_of("gpt2")
    inv_freq = Tensor.from_numpy("model.layers.0.self_attn.rotary_emb.inv_freq", np.ones(8, np.float32))
    mask = Tensor.from_numpy("transformer.h.2.attn.bias", np.ones((4, 4), np.float32))
    load_model(changed(llama, {**llama.tensors, inv_freq.name: inv_freq}))
    load_model(changed(gpt2, {**gpt2.tensors, mask.name: mask}))


def test_two_tensors_of_one_name_are_refused(checkpoint_of) -> None:
    checkpoint = checkpoint_of("torch-file")
    twin = checkpoint.tensors["ln_f.weight"].renamed("module.ln_f.weight")
    with pytest.raises(CheckpointError, match=r"both output_norm\.weight"):
        load_model(changed(checkpoint, {**checkpoint.tensors, twin.name: twin}))


def test_a_head_equal_to_the_embedding_is_shared(checkpoint_of) -> None:
    checkpoint = checkpoint_of("llama-tied")
    assert "lm_head.weight" not in checkpoint.tensors
    head = checkpoint.tensors["model.embed_tokens.weight"].renamed("lm_head.weight")
    model = load_model(changed(checkpoint, {**checkpoint.tensors, head.name: head}))
    assert "output.weight" not in model.weights
    assert "output.weight" in load_model(checkpoint_of("torch-file-untied")).weights
    assert "output.weight" not in load_model(checkpoint_of("torch-file")).weights


def test_untied_config_without_a_head_is_refused(checkpoint_of) -> None:
    with pytest.raises(CheckpointError, match=r"output\.weight is missing"):
        load_model(changed(checkpoint_of("llama-tied"), tie_word_embeddings=False))


@pytest.mark.parametrize("values", [np.ones(5), np.full(8, np.nan), np.zeros(8)], ids=["long", "nan", "zero"])
def test_broken_rope_factors_are_refused(values: np.ndarray, checkpoint_of) -> None:
    checkpoint = checkpoint_of("gguf-llama-rope-llama3")
    factors = Tensor.from_numpy("rope_freqs.weight", values.astype(np.float32))
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        load_model(changed(checkpoint, {**checkpoint.tensors, factors.name: factors}))


def test_text_model_inside_an_image_model(checkpoint_of, tiny_model) -> None:
    """Gemma 3 from 4B on: nested config, prefixed names, a vision tower beside it."""
    checkpoint = checkpoint_of("gemma3")
    vision = Tensor.from_numpy("vision_tower.vision_model.embeddings.weight", np.ones((2, 2), np.float32))
    token_ids = list(range(60))
    expected = tiny_model("gemma3").logits(token_ids)
    for prefix in ("language_model.model.", "model.language_model."):
        names = {name: name.replace("model.", prefix, 1) for name in checkpoint.tensors}
        nested = replace(
            checkpoint,
            architecture="gemma3",
            config={"model_type": "gemma3", "text_config": checkpoint.config, "eos_token_id": [1, 5]},
            tensors={**{names[n]: t for n, t in checkpoint.tensors.items()}, vision.name: vision},
            generation_config={},
        )
        model = load_model(nested)
        logits = teacher_forced_logits(compile_model("torch", model), token_ids, [60])
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
        assert model.eos_ids == (1, 5)


# -- settings -----------------------------------------------------------------------------------------------------

BAD_SETTINGS = [
    ("llama", "num_hidden_layers", 10**9),
    ("llama", "num_hidden_layers", 10**400),
    ("llama", "num_hidden_layers", 2.5),
    ("llama", "num_hidden_layers", None),
    ("llama", "num_attention_heads", 0),
    ("llama", "num_attention_heads", 3),
    ("llama", "num_key_value_heads", 3),
    ("llama", "vocab_size", "many"),
    ("llama", "vocab_size", True),
    ("llama", "rms_norm_eps", math.nan),
    ("llama", "rms_norm_eps", -1e-6),
    ("llama", "max_position_embeddings", 2**40),
    ("llama", "rope_parameters", [1]),
    ("llama", "rope_parameters", {"rope_type": "yarn", "factor": math.inf}),
    ("llama", "rope_parameters", {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}),
    ("llama", "rope_parameters", {"rope_type": "linear"}),
    ("llama", "rope_parameters", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}),
    ("llama", "head_dim", 15),
    ("mistral", "sliding_window", 0),
    ("qwen2-window", "layer_types", ["full_attention"]),
    ("gpt2", "n_head", 7),
    ("gpt2", "n_inner", -1),
    ("torch-file", "d_model", 2**60),
    ("gguf-qwen2-rope-yarn", "qwen2.block_count", [1, 2]),
    ("gguf-qwen2-rope-yarn", "qwen2.rope.scaling.original_context_length", 0),
    ("gguf-gemma3-q5_0", "gemma3.attention.key_length", 33),
    ("gguf-gemma3-q5_0", "gemma3.attention.sliding_window", -1),
]


@pytest.mark.parametrize(("name", "key", "value"), BAD_SETTINGS)
def test_bad_setting_is_refused(name: str, key: str, value: object, checkpoint_of) -> None:
    with pytest.raises(CheckpointError):
        load_model(changed(checkpoint_of(name), **{key: value}))


UNSUPPORTED_SETTINGS = [
    ("llama", "hidden_act", "relu"),
    ("llama", "quantization_config", {"quant_method": "gptq"}),
    ("llama", "rope_parameters", {"rope_type": "dynamic", "factor": 2.0}),
    ("llama", "rope_parameters", {"rope_type": "longrope", "short_factor": [1.0] * 8}),
    ("llama", "rope_parameters", {"full_attention": {"rope_type": "default"}}),
    ("qwen3", "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
    ("gemma3", "attn_logit_softcapping", 50.0),
    ("gemma3", "final_logit_softcapping", 30.0),
    ("gemma3", "use_bidirectional_attention", True),
    ("gemma3", "layer_types", ["chunked_attention"] * 4),
    ("gpt2", "activation_function", "relu"),
    ("torch-file", "activation", "swiglu"),
    ("gguf-gemma3-q5_0", "gemma3.rope.scaling.type", "longrope"),
    ("gguf-gemma3-q5_0", "gemma3.final_logit_softcapping", 30.0),
    ("gguf-qwen2-rope-yarn", "qwen2.rope.scaling.yarn_ext_factor", 0.5),
]


@pytest.mark.parametrize(("name", "key", "value"), UNSUPPORTED_SETTINGS)
def test_unsupported_variant_names_its_key(name: str, key: str, value: object, checkpoint_of) -> None:
    with pytest.raises(
        UnsupportedModelError, match=f"{key.split('.')[-1]}|rope_type|rope_parameters|layer type|activation"
    ):
        load_model(changed(checkpoint_of(name), **{key: value}))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 600),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-2, 40), max_size=4),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "type", "rope_theta"]), st.floats() | st.text(max_size=6)),
)


@settings(max_examples=100, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_junk_setting_loads_or_is_a_checkpoint_error(data: st.DataObject, checkpoint_of) -> None:
    checkpoint = checkpoint_of(data.draw(st.sampled_from(ONE_OF_EACH)))
    keys = data.draw(st.lists(st.sampled_from(sorted(checkpoint.config)), min_size=1, max_size=3))
    try:
        model = load_model(changed(checkpoint, **{key: data.draw(JUNK) for key in keys}))
    except CheckpointError:
        return
    assert model.weights.keys() == model.graph.weights.keys()


# -- end tokens ---------------------------------------------------------------------------------------------------


def test_eos_ids(checkpoint_of) -> None:
    hf = checkpoint_of("llama")
    assert load_model(hf).eos_ids == (tiny_models.EOS_ID,)
    assert load_model(replace(hf, generation_config={"eos_token_id": [7, 9, 7]})).eos_ids == (7, 9)
    assert load_model(changed(replace(hf, generation_config={}), eos_token_id=None)).eos_ids == ()
    with pytest.raises(CheckpointError, match="eos_token_id"):
        load_model(replace(hf, generation_config={"eos_token_id": tiny_models.VOCAB_SIZE}))
    gguf = changed(checkpoint_of("gguf-llama-f32"), **{"tokenizer.ggml.eot_token_id": 11})
    assert load_model(gguf).eos_ids == (tiny_models.EOS_ID, 11)
    assert load_model(checkpoint_of("torch-file")).eos_ids == ()
