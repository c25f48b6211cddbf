"""Sound models of sizes that no kernel likes, with weights that may be anything; the native program runs each."""

from __future__ import annotations

import random
from pathlib import Path

from tests.fuzz import gguf_format, safetensors_format
from tests.fuzz.judge import receive_model
from tests.fuzz.mutant import Mutant

__all__ = ["make", "make_bases", "receive", "sound"]


def make_bases() -> None:
    """Every model is made from nothing."""


def sound(bases: None) -> list[Mutant]:
    return [make(None, random.Random(seed)) for seed in range(20)]


def make(bases: None, rng: random.Random) -> Mutant:
    if rng.random() < 0.6:
        return Mutant({"": gguf_format.odd_model(rng).encode()})
    return Mutant(safetensors_format.odd_model(rng).files())


def receive(path: Path, rng: random.Random) -> str:
    return receive_model(path, rng, tokenized_share=0.0, stepped_share=1.0)
