"""Thousands of damaged model files per container: each is refused by a typed error, or loads correctly, in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.errors import CheckpointError
from tests import mutants

SEED = 20260
COUNT = 3000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mutants").mkdir()
    return tmp_path / "mutants"


def test_sound_files_load(folder: Path) -> None:
    """Otherwise the mutants would be refused for another reason."""
    sound = [mutants.sound_gguf().end(bytes(384)), mutants.sound_torch_file()]
    for content in sound:
        assert mutants.receive(mutants.Mutant({"": content}).write(folder)) == "loaded"


@pytest.mark.parametrize("container", mutants.MUTATORS)
def test_mutants(folder: Path, container: str) -> None:
    outcomes = mutants.run(mutants.MUTATORS[container](SEED), COUNT, folder)
    assert outcomes.keys() <= {"loaded", "CheckpointError", "UnsupportedModelError"}
    assert outcomes["CheckpointError"] > COUNT / 2
    assert outcomes["loaded"] > COUNT / 50


def test_the_judge_notices_other_exceptions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mutants.Mutant({"": mutants.sound_gguf().end(bytes(384))}).write(folder)
    monkeypatch.setattr(mutants, "open_checkpoint", lambda path: open_checkpoint(None))
    with pytest.raises(TypeError):
        mutants.receive(path)
    monkeypatch.setattr(mutants, "MAX_SECONDS", 0.0)
    monkeypatch.setattr(mutants, "open_checkpoint", open_checkpoint)
    with pytest.raises(AssertionError, match="took"):
        mutants.receive(path)


def test_files_of_no_known_kind(folder: Path) -> None:
    path = folder / "file"
    for content in (b"", b"GGU", b"hello", b"\x7fELF" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a model file"):
            open_checkpoint(path)
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(folder / "missing")
