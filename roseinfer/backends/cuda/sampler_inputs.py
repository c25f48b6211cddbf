"""What the sampler's kernels read, made of `SamplingInputs`, `LogitEdits` and `ScoreInputs`; all are checked first,
because a kernel that follows a wrong index reads or writes whatever lies there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from roseinfer.backends.cuda.kernels.edits import EDIT_PARAMETERS
from roseinfer.backends.cuda.kernels.sampling import SAMPLE_PARAMETERS
from roseinfer.core.batch import Int32Array, LogitEdits, SamplingInputs, ScoreInputs

Array = npt.NDArray[np.generic]


def sample_parameters(inputs: SamplingInputs) -> Int32Array:
    """[len(SAMPLE_PARAMETERS), S]"""
    edit_of = np.full(len(inputs.rows), -1, dtype=np.int32)
    if inputs.edits is not None:
        edit_of[inputs.edits.rows] = np.arange(len(inputs.edits.rows))
    seeds, positions = _halves(inputs.seeds), _halves(inputs.positions)
    columns = {
        "row": inputs.rows,
        "edit": edit_of,
        "temperature": inputs.temperatures,
        "top_k": inputs.top_ks,
        "top_p": inputs.top_ps,
        "min_p": inputs.min_ps,
        "seed_low": seeds[0],
        "seed_high": seeds[1],
        "choice": inputs.choices,
        "position_low": positions[0],
        "position_high": positions[1],
    }
    return _stacked(columns, SAMPLE_PARAMETERS)


def edit_parameters(edits: LogitEdits, sampled_rows: Int32Array) -> Int32Array:
    """[len(EDIT_PARAMETERS), E]; `sampled_rows` int32[S] are the logit rows of the sampled ones."""
    starts, ends = edits.history_offsets[:-1], edits.history_offsets[1:]
    has_history = ends > starts
    columns = {
        "row": sampled_rows[edits.rows],
        "repetition": edits.repetitions,
        "presence": edits.presences,
        "frequency": edits.frequencies,
        "history_start": starts,
        "history_end": ends,
        "output_start": starts + np.minimum(edits.output_starts, ends - starts),
        "counts_row": np.where(has_history, np.cumsum(has_history) - 1, -1),
        "bias_start": edits.bias_offsets[:-1],
        "bias_end": edits.bias_offsets[1:],
        "mask_row": edits.mask_rows,
    }
    return _stacked(columns, EDIT_PARAMETERS)


def _stacked(columns: Mapping[str, Array], names: Sequence[str]) -> Int32Array:
    """Columns [N] of 32-bit numbers, by their bits."""
    ordered = [columns[name] for name in names]
    bits = [column.view(np.int32) if column.dtype == np.float32 else column for column in ordered]
    return np.stack(bits).astype(np.int32)


def _halves(values: Array) -> Int32Array:
    """The low and the high 32 bits of integers [N], as [2, N]."""
    return values.astype("<u8").view("<i4").reshape(-1, 2).T


# -- checks ---------------------------------------------------------------------------------------------------------


def check_sampling(inputs: SamplingInputs, num_logits: int, vocab_size: int) -> None:
    names = ("temperatures", "top_ks", "top_ps", "min_ps", "seeds", "choices", "positions", "num_logprobs")
    _check_lengths(len(inputs.rows), *(getattr(inputs, name) for name in names))
    _check_within(inputs.rows, 0, num_logits, "a sampled row has no logits")
    if inputs.edits is not None:
        _check_edits(inputs.edits, len(inputs.rows), vocab_size)


def check_scores(inputs: ScoreInputs, num_logits: int, vocab_size: int) -> None:
    _check_lengths(len(inputs.rows), inputs.token_ids, inputs.num_logprobs)
    _check_within(inputs.rows, 0, num_logits, "a scored row has no logits")
    _check_within(inputs.token_ids, 0, vocab_size, "a scored token is outside the vocabulary")
    if inputs.num_logprobs.min(initial=0) < 0:
        raise ValueError("a number of logprobs is negative")


def _check_edits(edits: LogitEdits, num_sampled: int, vocab_size: int) -> None:
    names = ("repetitions", "presences", "frequencies", "output_starts", "mask_rows")
    _check_lengths(len(edits.rows), *(getattr(edits, name) for name in names))
    _check_within(edits.rows, 0, num_sampled, "an edited row is not sampled")
    if (np.diff(edits.rows) <= 0).any():
        raise ValueError("edited rows are not ascending")
    _check_offsets(edits.history_offsets, edits.rows, edits.history, "the history")
    _check_offsets(edits.bias_offsets, edits.rows, edits.bias_ids, "the biases")
    _check_lengths(len(edits.bias_ids), edits.bias_values)
    _check_within(edits.history, 0, vocab_size, "a token of a history is outside the vocabulary")
    _check_within(edits.bias_ids, 0, vocab_size, "a biased token is outside the vocabulary")
    _check_within(edits.mask_rows, -1, len(edits.masks), "a mask row is outside the masks")
    if edits.output_starts.min(initial=0) < 0:
        raise ValueError("an output starts before its history")


def _check_lengths(length: int, *arrays: Array) -> None:
    if any(len(array) != length for array in arrays):
        raise ValueError("parameters differ in length")


def _check_offsets(offsets: Int32Array, rows: Int32Array, values: Array, what: str) -> None:
    covers = len(offsets) == len(rows) + 1 and offsets[0] == 0 and offsets[-1] == len(values)
    if not covers or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets do not cover {what}")


def _check_within(values: Int32Array, least: int, end: int, message: str) -> None:
    if len(values) and not least <= int(values.min()) <= int(values.max()) < end:
        raise ValueError(message)
