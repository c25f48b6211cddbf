"""An opened model file: its configuration and its weights, whatever the container."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from roseinfer.checkpoints._files import mapping_of
from roseinfer.checkpoints.tensor import Tensor


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """`tensors` are views into a read-only mapping of the file; the mapping lives as long as a view of it."""

    path: Path
    container: str  # "gguf" | "hf" | "torch_file"
    architecture: str  # general.architecture | config.json's model_type | "gpt2"
    config: Mapping[str, Any]  # all GGUF metadata | config.json | the torch file's "config"
    tensors: dict[str, Tensor]  # by the file's own names
    generation_config: Mapping[str, Any] = field(default_factory=dict)

    def forget_pages(self) -> None:
        """Takes what was read of the files out of this process's memory; what is needed again is read again."""
        mappings = {mapping_of(tensor.data) for tensor in self.tensors.values()}
        for mapping in filter(None, mappings):
            mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Drops this object's views. Tensors taken out before stay valid."""
        self.tensors.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
