"""Every architecture and container against the model it was made from: transformers, or the trainers' own module."""

from __future__ import annotations

import numpy as np
import pytest

from roseinfer.checkpoints import open_checkpoint
from roseinfer.models import load_model
from tests import tiny_models
from tests.harness import compile_model, log_softmax, teacher_forced_logits

BACKENDS = ["torch", "native"]
TOKEN_IDS = np.random.default_rng(7).integers(0, tiny_models.VOCAB_SIZE, 256).tolist()
MAX_DIFFERENCE = 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_logprobs_agree(name: str, backend: str, tiny_model) -> None:
    tiny = tiny_model(name)
    program = compile_model(backend, load_model(open_checkpoint(tiny.path)))
    ours = log_softmax(teacher_forced_logits(program, TOKEN_IDS, chunk_sizes=[100, 1, 37]))
    reference = log_softmax(tiny.logits(TOKEN_IDS))
    assert reference.std() > 1.0, "logits this uniform would hide mistakes"
    assert np.abs(ours - reference).max() <= MAX_DIFFERENCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in tiny_models.NAMES if name.startswith("torch-file")])
def test_torch_files_give_their_modules_logits(name: str, backend: str, tiny_model) -> None:
    tiny = tiny_model(name)
    program = compile_model(backend, load_model(open_checkpoint(tiny.path)))
    np.testing.assert_allclose(
        teacher_forced_logits(program, TOKEN_IDS, chunk_sizes=[256]), tiny.logits(TOKEN_IDS), rtol=1e-4, atol=1e-4
    )
