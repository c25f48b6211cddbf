"""Real models on real text against a float32 evaluation of the same file: perplexity, and how often both choose the
same token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from roseinfer.backends import ProgramOptions, compile_program
from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.machine import usable_cores
from roseinfer.inference_engine import InferenceEngine
from roseinfer.models import Model, load_model
from roseinfer.text import load_tokenizer
from tests.harness import Driver, Row
from tests.text_samples import real_text


@dataclass(frozen=True)
class Evaluation:
    """Of a text's tokens but the first: how likely each was, and what would have been chosen instead."""

    logprobs: np.ndarray  # [T]
    choices: np.ndarray  # [T]

    @property
    def perplexity(self) -> float:
        return math.exp(-self.logprobs.mean())

    def agreement(self, other: Evaluation) -> float:
        return float((self.choices == other.choices).mean())


@dataclass(frozen=True)
class Text:
    """A model and the tokens it is asked to predict, teacher-forced."""

    model: Model
    token_ids: list[int]
    chunk_len: int  # bounds the memory that logits take

    def evaluate(self, backend: str, dtype: str, kv_dtype: str) -> Evaluation:
        options = ProgramOptions(
            num_blocks=len(self.token_ids) // 16 + 1,
            max_batch_tokens=self.chunk_len,
            max_logit_rows=self.chunk_len,
            dtype=dtype,
            kv_dtype=kv_dtype,
        )
        program = compile_program(backend, self.model.graph, self.model.weights, options)
        driver, row = Driver(program, options), Row(self.token_ids[:-1])
        pieces = []
        for start in range(0, len(row.token_ids), self.chunk_len):
            targets = self.token_ids[start + 1 : start + 1 + self.chunk_len]
            [logits] = driver.step([row], [len(targets)])
            pieces.append((logprobs_of(logits, targets), logits.argmax(-1)))
        program.close()
        return Evaluation(*map(np.concatenate, zip(*pieces, strict=True)))


def logprobs_of(logits: np.ndarray, targets: list[int]) -> np.ndarray:
    """In place: these logits are large."""
    chosen = np.take_along_axis(logits, np.array(targets)[:, None], -1)[:, 0]
    highest = logits.max(-1)
    np.exp(np.subtract(logits, highest[:, None], out=logits), out=logits)
    return np.asarray((chosen - highest).astype(np.float64) - np.log(logits.sum(-1, dtype=np.float64)))


def read_text(path: Path, num_tokens: int, chunk_len: int) -> Text:
    checkpoint = open_checkpoint(path)
    token_ids = load_tokenizer(checkpoint).encode_prompt(real_text(6 * num_tokens))
    assert len(token_ids) > num_tokens
    return Text(load_model(checkpoint), token_ids[: num_tokens + 1], chunk_len)


@pytest.fixture(scope="module")
def all_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """A text, and what float32 arithmetic in plain code makes of it."""

    text: Text
    reference: Evaluation


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path, all_torch_threads: None) -> Case:
    text = read_text(smollm2_path, num_tokens=2048, chunk_len=512)
    return Case(text, text.evaluate("torch", "float32", "float32"))


@pytest.fixture(scope="module")
def gemma3(gemma3_path: Path, all_torch_threads: None) -> Case:
    text = read_text(gemma3_path, num_tokens=512, chunk_len=256)
    return Case(text, text.evaluate("torch", "float32", "float32"))


def check(case: Case, dtype: str, kv_dtype: str, *, max_perplexity_change: float, min_agreement: float) -> None:
    ours = case.text.evaluate("native", dtype, kv_dtype)
    assert ours.perplexity / case.reference.perplexity == pytest.approx(1.0, abs=max_perplexity_change)
    assert ours.agreement(case.reference) >= min_agreement


def test_the_references_understand_the_text(smollm2: Case, gemma3: Case) -> None:
    """A perplexity far above these would mean that model, tokenizer or arithmetic are wrong in all backends alike."""
    assert 5 < smollm2.reference.perplexity < 20
    assert 5 < gemma3.reference.perplexity < 25


def test_smollm2_with_int8_activations(smollm2: Case) -> None:
    check(smollm2, "auto", "float16", max_perplexity_change=0.01, min_agreement=0.96)


def test_smollm2_in_float32(smollm2: Case) -> None:
    check(smollm2, "float32", "float32", max_perplexity_change=0.0005, min_agreement=0.995)


def test_gemma3_with_int8_activations(gemma3: Case) -> None:
    check(gemma3, "auto", "float16", max_perplexity_change=0.02, min_agreement=0.95)


def test_gemma3_in_float32(gemma3: Case) -> None:
    check(gemma3, "float32", "float32", max_perplexity_change=0.0005, min_agreement=0.995)


def test_smollm2_knows_the_capital_of_france(smollm2_path: Path) -> None:
    with InferenceEngine(str(smollm2_path)) as engine:
        assert engine.generate("The capital of France is", max_new_tokens=4).startswith(
            "The capital of France is Paris"
        )
