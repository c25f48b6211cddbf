"""A program without a model: its next token is a hash of everything the row can read back from the KV memory.

A wrong block table, slot, position, stale or overwritten block changes the hash and with it the tokens, so
equality of tokens proves the bookkeeping in milliseconds. The inputs' contract is checked on the way.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from roseinfer.backends.sampling import edit_logits, is_forbidden, is_sound
from roseinfer.core.batch import (
    ALL_FORBIDDEN,
    NO_TOKEN,
    Float32Array,
    ForwardInputs,
    Int32Array,
    LogitEdits,
    SampleOutput,
    SamplingInputs,
    ScoreInputs,
)

UInt64 = npt.NDArray[np.uint64]
EDIT_DTYPES = {
    "rows": "i4",
    "repetitions": "f4",
    "presences": "f4",
    "frequencies": "f4",
    "history": "i4",
    "history_offsets": "i4",
    "output_starts": "i4",
    "bias_ids": "i4",
    "bias_values": "f4",
    "bias_offsets": "i4",
    "masks": "u4",
    "mask_rows": "i4",
}
Choice = tuple[int, float, npt.NDArray[np.int32], npt.NDArray[np.float32]]  # token id, logprob, top ids and logprobs


def mix(values: UInt64) -> UInt64:
    """splitmix64's finaliser."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def uniform(values: UInt64) -> npt.NDArray[np.float64]:
    """In (0, 1)."""
    return ((mix(values) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


class FakeProgram:
    """Implements `Program`. A row that ends in `nan_token` gets NaN logits; one that computes `poison_token`
    raises; `steps` counts forwards, `num_tokens` computed tokens.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        max_batch_tokens: int,
        max_logit_rows: int,
        block_size: int = 16,
        vocab_size: int = 50,
        nan_token: int | None = None,
        poison_token: int | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.max_batch_tokens = max_batch_tokens
        self.max_logit_rows = max_logit_rows
        self.nan_token = nan_token
        self.poison_token = poison_token
        self.num_steps = 0
        self.num_tokens = 0
        self._kv: UInt64 = mix(np.arange(num_blocks * block_size, dtype=np.uint64) + np.uint64(7))  # nobody's
        self._logits: Float32Array = np.empty((0, vocab_size), dtype=np.float32)

    def forward(self, inputs: ForwardInputs) -> None:
        self.check(inputs)
        if self.poison_token is not None and self.poison_token in inputs.token_ids:
            raise RuntimeError("poison")
        self.num_steps += 1
        self.num_tokens += inputs.num_tokens
        # Rows read the memory as it was before the step: within a step they must not need each other.
        before = self._kv.copy()
        states = np.concatenate([self._compute_row(inputs, row, before) for row in range(len(inputs.block_tables))])
        self._logits = self._logits_of(states[inputs.logit_rows], inputs.token_ids[inputs.logit_rows])

    def sample(self, inputs: SamplingInputs) -> SampleOutput:
        self.check_sampling(inputs)
        return _output([self._sample_row(inputs, index) for index in range(len(inputs.rows))])

    def score(self, inputs: ScoreInputs) -> SampleOutput:
        self.check_scoring(inputs)
        columns = zip(inputs.rows, inputs.token_ids, inputs.num_logprobs, strict=True)
        return _output([self._with_logprobs(row, int(token_id), int(count)) for row, token_id, count in columns])

    def logits(self) -> Float32Array:
        return self._logits

    def memory(self) -> dict[str, int]:
        return {"weights": 0, "kv_cache": self._kv.nbytes, "activations": self._logits.nbytes}

    def close(self) -> None:
        pass

    # -- the model ------------------------------------------------------------------------------------------

    def _compute_row(self, inputs: ForwardInputs, row: int, before: UInt64) -> UInt64:
        """Stores one state per new token, a hash of the token and of all states before it, and returns them."""
        start, stop = inputs.row_offsets[row : row + 2]
        num_computed = inputs.positions[start]
        slots = self._slots(inputs.block_tables[row], num_computed + stop - start)
        weights = mix(np.arange(len(slots), dtype=np.uint64)) | np.uint64(1)
        with np.errstate(over="ignore"):
            history = (before[slots[:num_computed]] * weights[:num_computed]).sum(dtype=np.uint64)
            for position, token_id in enumerate(inputs.token_ids[start:stop], num_computed):
                state = mix(history * np.uint64(31) + np.uint64(token_id) + (np.uint64(position) << np.uint64(32)))
                self._kv[slots[position]] = state
                history += state * weights[position]
        return self._kv[slots[num_computed:]]

    def _slots(self, block_table: npt.NDArray[np.int32], num_tokens: int) -> npt.NDArray[np.int64]:
        positions = np.arange(num_tokens)
        return (
            block_table[positions // self.block_size].astype(np.int64) * self.block_size + positions % self.block_size
        )

    def _logits_of(self, states: UInt64, token_ids: npt.NDArray[np.int32]) -> Float32Array:
        with np.errstate(over="ignore"):
            logits = 8 * uniform(states[:, None] + mix(np.arange(self.vocab_size, dtype=np.uint64)))
        if self.nan_token is not None:
            logits[token_ids == self.nan_token] = np.nan
        return logits.astype(np.float32)

    def _sample_row(self, inputs: SamplingInputs, index: int) -> Choice:
        """Gumbel-max with noise that depends on seed, choice, position and token alone."""
        row, edits = inputs.rows[index], inputs.edits
        logits = self._logits[row]
        if edits is not None and index in edits.rows:
            logits = edit_logits(logits, edits, int(np.flatnonzero(edits.rows == index)[0]))
        if not is_sound(logits):
            return self._nothing(is_forbidden(logits) and is_sound(self._logits[row]))
        token_id = self._choose(logits.astype(np.float64), inputs, index)
        return self._with_logprobs(row, token_id, int(inputs.num_logprobs[index]))

    @staticmethod
    def _nothing(is_forbidden: bool) -> Choice:
        token_id = ALL_FORBIDDEN if is_forbidden else NO_TOKEN
        return token_id, np.nan, np.empty(0, np.int32), np.empty(0, np.float32)

    def _with_logprobs(self, row: int, token_id: int, count: int) -> Choice:
        """Of the raw logits; `count` is -1 where none are wanted."""
        logits = self._logits[row].astype(np.float64)
        if not is_sound(self._logits[row]):
            return self._nothing(is_forbidden=False)
        if count < 0:
            return token_id, np.nan, np.empty(0, np.int32), np.empty(0, np.float32)
        logprobs = (logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())).astype(np.float32)
        top = np.argsort(-logits, kind="stable")[:count]
        return token_id, float(logprobs[token_id]), top.astype(np.int32), logprobs[top]

    @staticmethod
    def _choose(logits: npt.NDArray[np.float64], inputs: SamplingInputs, index: int) -> int:
        if inputs.temperatures[index] == 0:
            return int(logits.argmax())
        key = np.array([inputs.seeds[index], inputs.choices[index], inputs.positions[index]], dtype=np.uint64)
        with np.errstate(over="ignore"):
            noise = mix(mix(mix(key[:1]) + key[1:2]) + key[2:]) + np.arange(len(logits), dtype=np.uint64)
        return int((logits / inputs.temperatures[index] - np.log(-np.log(uniform(noise)))).argmax())

    # -- the contract ---------------------------------------------------------------------------------------

    def check(self, inputs: ForwardInputs) -> None:
        """What `ForwardInputs` promises to every backend."""
        for name in inputs.__dataclass_fields__:
            array = getattr(inputs, name)
            assert array.dtype == np.int32, f"{name} is {array.dtype}"
            assert array.flags.c_contiguous, f"{name} is not contiguous"
        assert 0 < inputs.num_tokens <= self.max_batch_tokens
        assert len(inputs.logit_rows) <= self.max_logit_rows
        assert ((inputs.token_ids >= 0) & (inputs.token_ids < self.vocab_size)).all()
        assert inputs.row_offsets[0] == 0
        assert inputs.row_offsets[-1] == inputs.num_tokens == len(inputs.positions)
        assert (np.diff(inputs.row_offsets) > 0).all(), "a row without tokens"
        assert len(inputs.block_tables) == len(inputs.row_offsets) - 1
        assert (np.diff(inputs.logit_rows) > 0).all()
        self._check_rows(inputs)

    def _check_rows(self, inputs: ForwardInputs) -> None:
        written: list[int] = []
        for row, table in enumerate(inputs.block_tables):
            start, stop = inputs.row_offsets[row : row + 2]
            positions = inputs.positions[start:stop]
            assert (positions == np.arange(positions[0], positions[0] + len(positions))).all()
            num_blocks = -(-int(positions[-1] + 1) // self.block_size)
            assert (table[:num_blocks] >= 0).all(), "a position without a block"
            assert (table < len(self._kv) // self.block_size).all(), "a block outside the memory"
            assert (table[num_blocks:] == -1).all(), "blocks behind the last token"
            written += self._slots(table, positions[-1] + 1)[positions[0] :].tolist()
        assert len(set(written)) == len(written), "two tokens write one slot"

    def check_sampling(self, inputs: SamplingInputs) -> None:
        """What `SamplingInputs` and `LogitEdits` promise."""
        names = [name for name in inputs.__dataclass_fields__ if name != "edits"]
        assert len(inputs.rows), "nothing to sample"
        assert len({len(getattr(inputs, name)) for name in names}) == 1
        assert ((inputs.rows >= 0) & (inputs.rows < len(self._logits))).all()
        if inputs.edits is not None:
            self._check_edits(inputs.edits, len(inputs.rows))

    def _check_edits(self, edits: LogitEdits, num_sampled: int) -> None:
        for name, dtype in EDIT_DTYPES.items():
            array = getattr(edits, name)
            assert array.dtype == dtype, f"{name} is {array.dtype}"
            assert array.flags.c_contiguous, f"{name} is not contiguous"
        per_row = ("rows", "repetitions", "presences", "frequencies", "output_starts", "mask_rows")
        assert len({len(getattr(edits, name)) for name in per_row}) == 1
        assert len(edits.rows), "no row wants an edit: edits is None then"
        assert ((edits.rows >= 0) & (edits.rows < num_sampled)).all()
        assert (np.diff(edits.rows) > 0).all()
        assert (np.isfinite(edits.repetitions) & (edits.repetitions > 0)).all()
        assert (np.isfinite(edits.presences) & np.isfinite(edits.frequencies)).all()
        self._check_lists(edits)

    def _check_lists(self, edits: LogitEdits) -> None:
        self._check_list(edits.history, edits.history_offsets, len(edits.rows))
        self._check_list(edits.bias_ids, edits.bias_offsets, len(edits.rows))
        assert (edits.output_starts >= 0).all()
        assert len(edits.bias_values) == len(edits.bias_ids)
        assert (edits.bias_values < np.inf).all()
        for start, stop in pairwise(edits.bias_offsets):
            assert len(set(edits.bias_ids[start:stop].tolist())) == stop - start, "a token is biased twice"
        assert edits.masks.ndim == 2
        assert ((edits.mask_rows >= -1) & (edits.mask_rows < len(edits.masks))).all()

    def _check_list(self, ids: Int32Array, offsets: Int32Array, num_rows: int) -> None:
        assert len(offsets) == num_rows + 1
        assert (offsets[0], offsets[-1]) == (0, len(ids))
        assert (np.diff(offsets) >= 0).all()
        assert ((ids >= 0) & (ids < self.vocab_size)).all()

    def check_scoring(self, inputs: ScoreInputs) -> None:
        """What `ScoreInputs` promises."""
        for name in inputs.__dataclass_fields__:
            assert getattr(inputs, name).dtype == np.int32, f"{name} is {getattr(inputs, name).dtype}"
        assert len(inputs.rows) == len(inputs.token_ids) == len(inputs.num_logprobs) > 0
        assert (np.diff(inputs.rows) > 0).all()
        assert ((inputs.rows >= 0) & (inputs.rows < len(self._logits))).all()
        assert ((inputs.token_ids >= 0) & (inputs.token_ids < self.vocab_size)).all()
        assert (inputs.num_logprobs >= 0).all()


def _output(choices: list[Choice]) -> SampleOutput:
    token_ids, logprobs, top_ids, top_logprobs = zip(*choices, strict=True)
    return SampleOutput(
        np.array(token_ids, np.int32), np.array(logprobs, np.float32), list(top_ids), list(top_logprobs)
    )
