"""What models are compiled for where their programs are compared: every dtype, kind of KV cache, instruction set."""

from __future__ import annotations

from dataclasses import dataclass

from roseinfer.backends import ProgramOptions

BLOCK_SIZE = 16
NUM_BLOCKS = 288  # of the programs; a schedule's pool may be smaller
KV_DTYPES = ("float16", "bfloat16", "float32", "q8")
MAX_STEP_TOKENS = 512


@dataclass(frozen=True)
class Variant:
    """A model and what its program is compiled for. `name`: of a tiny model, "format-" and a weight format, or real."""

    name: str
    dtype: str = "auto"
    kv_dtype: str = "float16"
    isa: str = "auto"

    def __str__(self) -> str:
        return "-".join([self.name, self.dtype, f"kv_{self.kv_dtype}", self.isa])

    def options(self, num_threads: int = 1, max_step_tokens: int = MAX_STEP_TOKENS) -> ProgramOptions:
        return ProgramOptions(
            num_blocks=NUM_BLOCKS,
            max_batch_tokens=max_step_tokens,
            max_logit_rows=max_step_tokens,
            block_size=BLOCK_SIZE,
            dtype=self.dtype,
            kv_dtype=self.kv_dtype,
            num_threads=num_threads,
            isa=self.isa,
        )
