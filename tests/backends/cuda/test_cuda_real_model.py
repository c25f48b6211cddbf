"""A trained model through the CUDA backend's kernels, against plain code in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from roseinfer.checkpoints import open_checkpoint
from roseinfer.models import Model, load_model
from roseinfer.text import load_tokenizer
from tests.harness import Driver, Row, compile_model, log_softmax, with_options

TEXT = "The capital of France is Paris. The capital of Italy is"
NUM_DECODED = 1
OPTIONS = with_options(num_blocks=4, max_batch_tokens=32, max_logit_rows=4)


def logprobs(backend: str, model: Model, token_ids: list[int], dtype: str) -> np.ndarray:
    """After the prompt, and after each of the last tokens, [1 + NUM_DECODED, vocab]: a vocabulary takes time."""
    options = replace(OPTIONS, dtype=dtype, kv_dtype=dtype)
    program = compile_model(backend, model, options)
    driver, row = Driver(program, options), Row(token_ids)
    found = []
    for count in [len(token_ids) - NUM_DECODED, *[1] * NUM_DECODED]:
        program.forward(replace(driver.inputs([row], [count]), logit_rows=np.array([count - 1], dtype=np.int32)))
        row.num_computed += count
        found.append(program.logits()[0].copy())
    program.close()
    return log_softmax(np.stack(found))


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> tuple[Model, list[int], np.ndarray]:
    """The model, a text's tokens, and what comes after them."""
    checkpoint = open_checkpoint(smollm2_path)
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint)
    token_ids = tokenizer.encode_prompt(TEXT)
    reference = logprobs("torch", model, token_ids, "float32")
    assert tokenizer.decode([int(reference[-1].argmax())]) == " Rome"
    return model, token_ids, reference


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_logprobs_are_those_of_plain_code(smollm2: tuple[Model, list[int], np.ndarray], dtype: str) -> None:
    """Of all tokens, however unlikely; in bfloat16 they are nearer than plain code in bfloat16 comes."""
    model, token_ids, reference = smollm2
    errors = np.abs(logprobs("cuda", model, token_ids, dtype) - reference)
    if dtype == "bfloat16":
        plain_errors = np.abs(logprobs("torch", model, token_ids, dtype) - reference)
        assert errors.max() <= plain_errors.max()
        assert errors.mean() <= plain_errors.mean() / 2
    else:
        assert errors.max() <= {"float32": 1e-3, "float16": 5e-2}[dtype]
