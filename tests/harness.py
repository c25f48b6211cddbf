"""Drives a backend's program by hand: blocks in a shuffled order, chunks of any size, several rows in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from roseinfer.backends import Program, ProgramOptions, compile_program
from roseinfer.core.batch import ForwardInputs
from roseinfer.models import Model

OPTIONS = ProgramOptions(
    num_blocks=96, max_batch_tokens=512, max_logit_rows=512, block_size=16, dtype="float32", kv_dtype="float32"
)


def compile_model(backend: str, model: Model, options: ProgramOptions = OPTIONS) -> Program:
    return compile_program(backend, model.graph, model.weights, options)


@dataclass
class Row:
    """One sequence on its way through a program."""

    token_ids: Sequence[int]
    num_computed: int = 0
    blocks: tuple[int, ...] = ()


class Driver:
    """Feeds rows to a program compiled with `options`; hands out its blocks in an order drawn from `seed`."""

    def __init__(self, program: Program, options: ProgramOptions = OPTIONS, seed: int = 0) -> None:
        self.program = program
        self._block_size = options.block_size
        self.free_blocks = np.random.default_rng(seed).permutation(options.num_blocks).tolist()

    def step(self, rows: Sequence[Row], counts: Sequence[int]) -> list[np.ndarray]:
        """Computes the next `counts[i]` tokens of each row; their logits [count, vocab] per row."""
        self.program.forward(self.inputs(rows, counts))
        logits = self.program.logits().copy()
        for row, count in zip(rows, counts, strict=True):
            row.num_computed += count
        return np.split(logits, np.cumsum(counts)[:-1])

    def inputs(self, rows: Sequence[Row], counts: Sequence[int]) -> ForwardInputs:
        spans = [(row.num_computed, row.num_computed + count) for row, count in zip(rows, counts, strict=True)]
        for row, (_, end) in zip(rows, spans, strict=True):
            self._allocate(row, end)
        tables = np.full((len(rows), max(len(row.blocks) for row in rows)), -1, dtype=np.int32)
        for table, row in zip(tables, rows, strict=True):
            table[: len(row.blocks)] = row.blocks
        num_tokens = sum(counts)
        return ForwardInputs(
            token_ids=np.concatenate([row.token_ids[a:b] for row, (a, b) in zip(rows, spans, strict=True)]).astype(
                "i4"
            ),
            positions=np.concatenate([np.arange(a, b, dtype=np.int32) for a, b in spans]),
            row_offsets=np.cumsum([0, *counts]).astype(np.int32),
            block_tables=tables,
            logit_rows=np.arange(num_tokens, dtype=np.int32),
        )

    def _allocate(self, row: Row, end: int) -> None:
        missing = -(-end // self._block_size) - len(row.blocks)
        row.blocks += tuple(self.free_blocks.pop() for _ in range(missing))


def teacher_forced_logits(
    program: Program, token_ids: Sequence[int], chunk_sizes: Sequence[int], options: ProgramOptions = OPTIONS
) -> np.ndarray:
    """Logits [T, vocab] at every position of one sequence, computed in chunks of the sizes given, over and over."""
    return teacher_forced_logits_batched(program, [token_ids], [chunk_sizes], options)[0]


def teacher_forced_logits_batched(
    program: Program,
    sequences: Sequence[Sequence[int]],
    chunk_sizes: Sequence[Sequence[int]],
    options: ProgramOptions = OPTIONS,
) -> list[np.ndarray]:
    """The same for several sequences side by side, each with chunks of its own, until all are done."""
    driver = Driver(program, options)
    rows = [Row(token_ids) for token_ids in sequences]
    sizes = [cycle(chunks) for chunks in chunk_sizes]
    pieces: list[list[np.ndarray]] = [[] for _ in rows]
    while active := [i for i, row in enumerate(rows) if row.num_computed < len(row.token_ids)]:
        counts = [min(next(sizes[i]), len(rows[i].token_ids) - rows[i].num_computed) for i in active]
        for i, logits in zip(active, driver.step([rows[i] for i in active], counts), strict=True):
            pieces[i].append(logits)
    return [np.concatenate(p) for p in pieces]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def with_options(**changes: object) -> ProgramOptions:
    return replace(OPTIONS, **changes)  # type: ignore[arg-type]
