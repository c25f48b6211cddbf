"""Every architecture against transformers in float32: logprobs of all positions, prefilled and decoded.

In half precision no answer is nearer than what rounding leaves of it, and these models, random and sharp, are made to
show that: they are held against transformers' own error in the same precision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from roseinfer.checkpoints import open_checkpoint
from roseinfer.models import load_model
from tests import tiny_models
from tests.harness import compile_model, log_softmax, teacher_forced_logits, with_options
from tests.tiny_models import TinyModel

TOKEN_IDS = np.random.default_rng(5).integers(0, tiny_models.VOCAB_SIZE, 44).tolist()


def difference(tiny: TinyModel, dtype: str) -> float:
    """The largest of all logprobs; over few tokens, where no window makes more of them interesting."""
    options = with_options(dtype=dtype, kv_dtype=dtype, max_batch_tokens=64, max_logit_rows=64)
    model = load_model(open_checkpoint(tiny.path))
    program = compile_model("cuda", model, options)
    has_window = any(spec.window for spec in model.graph.attention_specs)
    token_ids = TOKEN_IDS if has_window else TOKEN_IDS[:19]
    ours = teacher_forced_logits(program, token_ids, [len(token_ids) - 3, 1, 2], options)
    return float(np.abs(log_softmax(ours) - log_softmax(tiny.logits(token_ids))).max())


@torch.inference_mode()
def reference_difference(tiny: TinyModel, dtype: str) -> float:
    """The same of the reference's own module in that precision."""
    module = copy.deepcopy(tiny.module).to(getattr(torch, dtype))
    output = module(torch.tensor([TOKEN_IDS[:19]]))
    theirs = getattr(output, "logits", output)[0].float().numpy()
    return float(np.abs(log_softmax(theirs) - log_softmax(tiny.logits(TOKEN_IDS[:19]))).max())


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_float32(name: str, tiny_model: Callable[[str], TinyModel]) -> None:
    assert difference(tiny_model(name), "float32") <= 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2", "gguf-llama-q4_k"])
def test_half_precision(name: str, dtype: str, tiny_model: Callable[[str], TinyModel]) -> None:
    tiny = tiny_model(name)
    assert 0 < difference(tiny, dtype) <= reference_difference(tiny, dtype)
