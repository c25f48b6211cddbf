"""What a format of model files gives the fuzzer, and what it gets back."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

SUFFIX = "_format"


class Mutant(NamedTuple):
    """File name → content; the empty name stands for the file opened itself, others lie in a directory."""

    files: dict[str, bytes]

    def write(self, folder: Path) -> Path:
        """What is to be opened."""
        for old in folder.iterdir():
            old.unlink()  # a new file is written much faster than an old one is cut to nothing
        for name, content in self.files.items():
            (folder / (name or "mutant")).write_bytes(content)
        return folder / "mutant" if "" in self.files else folder


class Format(Protocol):
    """A module `<name>_format` of this folder."""

    make_bases: Callable[[], Any]  # what mutants are made from; may import whatever it needs
    make: Callable[[Any, random.Random], Mutant]
    sound: Callable[[Any], list[Mutant]]  # these load
    receive: Callable[[Path, random.Random], str]  # the outcome, of `judge.OUTCOMES`


def format_names() -> list[str]:
    return sorted(path.stem.removesuffix(SUFFIX) for path in Path(__file__).parent.glob(f"*{SUFFIX}.py"))


def find_format(name: str) -> Format:
    module: Any = importlib.import_module(f"tests.fuzz.{name}{SUFFIX}")
    return module


def rng_of(name: str, seed: int, index: int) -> random.Random:
    """Each mutant has a generator of its own, so that it can be made again alone."""
    return random.Random(f"{name} {seed} {index}")
