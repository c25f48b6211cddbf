"""The generator of random models: what it writes is what was asked for, and roseinfer runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import random_model
from roseinfer.checkpoints import Checkpoint, open_checkpoint
from roseinfer.engine import InferenceEngine
from roseinfer.models import load_model
from tests.harness import compile_model, teacher_forced_logits
from tests.text.vocabularies import byte_level_metadata, spm_metadata
from tests.writers import write_gguf

SIZES = ["--layers", "2", "--hidden", "256", "--heads", "8", "--kv-heads", "2", "--ffn", "512", "--context", "128"]
WIDTH, FFN, KV_WIDTH = 256, 512, 64


@pytest.fixture(params=[byte_level_metadata, spm_metadata], ids=["byte-level", "spm"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    metadata = {"general.architecture": "gemma3", **request.param()}
    return write_gguf(tmp_path / "tokenizer.gguf", metadata, {"unused": ("f32", np.ones(4, np.float32))})


@pytest.fixture
def made(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    return make(tokenizer, tmp_path / "model.gguf", monkeypatch)


def make(tokenizer: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Checkpoint:
    monkeypatch.setattr(sys, "argv", ["random_model.py", str(tokenizer), str(out), *SIZES, *options])
    random_model.main()
    return open_checkpoint(out)


def test_the_tensors_have_the_shape_and_format_asked_for(made: Checkpoint) -> None:
    vocab_size = len(made.config["tokenizer.ggml.tokens"])
    found = {name: (tensor.format, tensor.shape) for name, tensor in made.tensors.items()}
    assert found["token_embd.weight"] == ("q8_0", (vocab_size, WIDTH))
    assert found["output_norm.weight"] == ("f32", (WIDTH,))
    assert found["blk.1.attn_k.weight"] == ("q4_0", (KV_WIDTH, WIDTH))
    assert found["blk.1.ffn_down.weight"] == ("q4_0", (WIDTH, FFN))
    assert len(found) == 2 + 2 * 9
    assert made.config["general.file_type"] == 2  # mostly q4_0


def test_the_vocabulary_is_the_other_files(made: Checkpoint, tokenizer: Path) -> None:
    def vocabulary(checkpoint: Checkpoint) -> dict[str, object]:
        return {key: value for key, value in checkpoint.config.items() if key.startswith("tokenizer.")}

    assert vocabulary(made) == vocabulary(open_checkpoint(tokenizer))


@pytest.mark.parametrize("format_name", ["q4_0", "q4_k", "bf16"])
def test_weights_are_noise_that_keeps_a_rows_size(
    format_name: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tokenizer, tmp_path / "model.gguf", monkeypatch, "--format", format_name)
    down = made.tensors["blk.0.ffn_down.weight"].numpy()
    assert down.std() == pytest.approx(FFN**-0.5, rel=0.05)
    assert abs(down.mean()) < 0.05 * FFN**-0.5
    assert len(np.unique(down, axis=0)) == len(down)
    assert not np.array_equal(down, made.tensors["blk.1.ffn_down.weight"].numpy())


def test_activations_stay_sane(made: Checkpoint) -> None:
    logits = teacher_forced_logits(compile_model("native", load_model(made)), range(40), [16])
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 3


def test_it_is_served(made: Checkpoint) -> None:
    with InferenceEngine(str(made.path), threads=1) as engine:
        answer = engine.generate("hello world", max_new_tokens=8)
    assert len(answer) > len("hello world")


def test_the_seed_decides_every_byte(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again, other = (
        make(tokenizer, tmp_path / f"{i}.gguf", monkeypatch, "--seed", seed).path.read_bytes()
        for i, seed in enumerate(["7", "7", "8"])
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("options", [["--heads", "3"], ["--kv-heads", "3"], ["--hidden", "96", "--format", "q4_k"]])
def test_a_shape_that_cannot_be(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["random_model.py", "in.gguf", str(tmp_path / "out.gguf"), *SIZES, *options])
    with pytest.raises(SystemExit):
        random_model.parse_arguments()
