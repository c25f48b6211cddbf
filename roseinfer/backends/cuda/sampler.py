"""Samples and scores on the device: a call sends what it needs in one copy, and another brings its results back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from roseinfer.backends.cuda.kernels.edits import DeviceEdits, edit_rows
from roseinfer.backends.cuda.kernels.sampling import NUM_FIGURES, find_logprobs, sample_tokens
from roseinfer.backends.cuda.sampler_inputs import check_sampling, check_scores, edit_parameters, sample_parameters
from roseinfer.backends.cuda.stages import Arrival, Stages, WorkRows, aligned
from roseinfer.core.batch import NO_TOKEN, Int32Array, LogitEdits, SampleOutput, SamplingInputs, ScoreInputs


class Sampler:
    """The sampler of roseinfer/backends/sampling.py, on the current stream of a device.

    Memory is made when a call first needs it. An edited row takes 4 * vocab_size bytes, and as much again if it has a
    history: 64 rows of 262,144 tokens take up to 128 MiB.
    """

    def __init__(self, vocab_size: int, device: torch.device, max_rows: int) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._edited = WorkRows(vocab_size, torch.float32, device, max_rows)
        self._counts = WorkRows(vocab_size, torch.int32, device, max_rows)
        self._sample_stages = Stages(device)
        self._score_stages = Stages(device)

    def sample(self, logits: torch.Tensor, inputs: SamplingInputs) -> PendingSamples:
        """Samples the rows of logits float32[L, vocab] that `inputs` names, without waiting for them.

        Raises ValueError where indices are outside of what they index.
        """
        check_sampling(inputs, len(logits), self._vocab_size)
        num_rows = len(inputs.rows)
        layout = Layout.of(num_rows, inputs.num_logprobs, self._vocab_size)
        edits = inputs.edits if inputs.edits is not None and len(inputs.edits.rows) else None
        arrays = [sample_parameters(inputs), inputs.rows[layout.asked], layout.asked, layout.num_tops]
        if edits is not None:
            arrays += [edit_parameters(edits, inputs.rows), edits.history]
            arrays += [edits.bias_ids, edits.bias_values, edits.masks]
        stage = self._sample_stages.next()
        parameters, rows, indices, num_tops, *edit_arrays = stage.send(arrays)
        results = stage.results(layout.size)
        token_ids = results[:num_rows]
        edited = self._edit(logits, edits, *edit_arrays) if edits is not None else None
        if num_rows:
            sample_tokens(logits, edited, parameters.view(-1, num_rows), token_ids)
        if len(layout.asked):
            find_logprobs(logits, rows, indices, num_tops, token_ids, results[layout.start :], layout.max_tops)
        return PendingSamples(token_ids, layout, stage.receive(layout.size))

    def score(self, logits: torch.Tensor, inputs: ScoreInputs) -> PendingSamples:
        """Logprobs of tokens that are known, after the rows of logits float32[L, vocab] that `inputs` names, without
        waiting for them.

        Raises ValueError where indices are outside of what they index.
        """
        check_scores(inputs, len(logits), self._vocab_size)
        num_rows = len(inputs.rows)
        layout = Layout.of(num_rows, inputs.num_logprobs, self._vocab_size)
        stage = self._score_stages.next()
        rows, indices, num_tops, known = stage.send([inputs.rows, layout.asked, layout.num_tops, inputs.token_ids])
        results = stage.results(layout.size)
        token_ids = results[:num_rows]
        token_ids.copy_(known)
        if num_rows:
            find_logprobs(logits, rows, indices, num_tops, token_ids, results[layout.start :], layout.max_tops)
        return PendingSamples(token_ids, layout, stage.receive(layout.size))

    def warm_up(self) -> None:
        """Compiles every kernel, by a call of each on logits of 0; one serves all parameters."""
        logits = torch.zeros((1, self._vocab_size), device=self._device)
        self.sample(logits, _every_parameter())
        one = np.ones(1, dtype=np.int32)
        self.score(logits, ScoreInputs(rows=0 * one, token_ids=0 * one, num_logprobs=one))

    def _edit(
        self,
        logits: torch.Tensor,
        edits: LogitEdits,
        parameters: torch.Tensor,
        history: torch.Tensor,
        bias_ids: torch.Tensor,
        bias_values: torch.Tensor,
        masks: torch.Tensor,
    ) -> torch.Tensor:
        """The edited rows, float32[E, vocab]; the tensors are on the device what `edits` is here."""
        num_edits = len(edits.rows)
        history_lens = np.diff(edits.history_offsets)
        edited = self._edited.take(num_edits)
        on_device = DeviceEdits(
            parameters=parameters.view(-1, num_edits),
            history=history,
            bias_ids=bias_ids,
            bias_values=bias_values,
            masks=masks,
            mask_words=edits.masks.shape[1],
            counts=self._counts.take(int(np.count_nonzero(history_lens))),
            max_history=int(history_lens.max()),
            max_biases=int(np.diff(edits.bias_offsets).max()),
        )
        edit_rows(logits, on_device, edited)
        return edited


@dataclass(frozen=True)
class Layout:
    """Where a call's results lie, int32 each: the ids of S tokens; from `start` on, for A rows that want logprobs,
    figures [NUM_FIGURES, A], then ids and then logits [A, max_tops] of the likeliest tokens.
    """

    num_rows: int  # S
    asked: Int32Array  # [A], indices into the S
    num_tops: Int32Array  # [A], how many of the likeliest are wanted

    @classmethod
    def of(cls, num_rows: int, num_logprobs: Int32Array, vocab_size: int) -> Layout:
        """`num_logprobs` as in `SamplingInputs`."""
        asked = np.flatnonzero(num_logprobs >= 0).astype(np.int32)
        return cls(num_rows, asked, np.minimum(num_logprobs[asked], vocab_size).astype(np.int32))

    @property
    def max_tops(self) -> int:
        return int(self.num_tops.max(initial=0))

    @property
    def start(self) -> int:
        return aligned(self.num_rows)

    @property
    def size(self) -> int:
        return self.start + len(self.asked) * (NUM_FIGURES + 2 * self.max_tops)

    def read(self, numbers: Int32Array) -> SampleOutput:
        """Of results that have arrived."""
        output = SampleOutput(
            token_ids=numbers[: self.num_rows].copy(),
            logprobs=np.full(self.num_rows, np.nan, dtype=np.float32),
            top_ids=[np.empty(0, dtype=np.int32) for _ in range(self.num_rows)],
            top_logprobs=[np.empty(0, dtype=np.float32) for _ in range(self.num_rows)],
        )
        if len(self.asked):
            self._read_logprobs(numbers[self.start :], output)
        return output

    def _read_logprobs(self, numbers: Int32Array, output: SampleOutput) -> None:
        num_figures = NUM_FIGURES * len(self.asked)
        highest, logits, *sum_halves = numbers[:num_figures].reshape(NUM_FIGURES, -1)
        highest, logits = (column.view(np.float32).astype(np.float64) for column in (highest, logits))
        sums = np.stack(sum_halves, axis=1).view(np.float64)[:, 0]
        top_ids, top_logits = numbers[num_figures:].reshape(2, len(self.asked), self.max_tops)
        top_logits = top_logits.view(np.float32)
        for a, index in enumerate(self.asked.tolist()):
            if output.token_ids[index] < 0:
                continue
            if not np.isfinite(highest[a]):
                output.token_ids[index] = NO_TOKEN
                continue
            log_sum = np.log(sums[a])
            count = self.num_tops[a]
            order = np.argsort(-top_logits[a, :count], kind="stable")
            output.logprobs[index] = logits[a] - highest[a] - log_sum
            output.top_ids[index] = top_ids[a, order]
            output.top_logprobs[index] = (top_logits[a, order] - highest[a] - log_sum).astype(np.float32)


@dataclass(frozen=True)
class PendingSamples:
    """Results on their way."""

    token_ids_device: torch.Tensor  # int32[S] on the device, as they are until the call after the next
    _layout: Layout
    _arrival: Arrival

    def collect(self) -> SampleOutput:
        """Waits for them."""
        return self._layout.read(self._arrival.numbers())


def _every_parameter() -> SamplingInputs:
    """Of one row, to which everything is done that can be."""
    zero, one = np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.int32)
    half = np.full(1, 0.5, dtype=np.float32)
    edits = LogitEdits(
        rows=zero,
        repetitions=half,
        presences=half,
        frequencies=half,
        history=zero,
        history_offsets=np.array([0, 1], dtype=np.int32),
        output_starts=zero,
        bias_ids=zero,
        bias_values=half,
        bias_offsets=np.array([0, 1], dtype=np.int32),
        masks=np.ones((1, 1), dtype=np.uint32),
        mask_rows=zero,
    )
    return SamplingInputs(
        rows=zero,
        temperatures=half,
        top_ks=one,
        top_ps=half,
        min_ps=half,
        seeds=zero.astype(np.uint64),
        choices=zero,
        positions=zero.astype(np.int64),
        num_logprobs=one,
        edits=edits,
    )
