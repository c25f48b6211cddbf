"""The sampler in NumPy: a pure function of (logits, parameters, edits, seed, choice, position), and the spec of every
other.

Per row, in this order:
1. A NaN, a +inf or nothing but -inf among the logits: token id -1.
2. `LogitEdits`, if the row has any. A NaN or a +inf by now: token id -1; nothing but -inf: -2.
3. temperature 0: the highest logit, the lowest id on a tie.
4. x = logits / temperature in float32. Should the highest x overflow, the row is greedy.
5. Candidates by x descending, lower ids first on ties, with weight w = exp(x - max x) in float64.
   top_k (0 = off) keeps the first k. top_p (1 = off) keeps those before which less than top_p of the summed weight
   lies, hence at least one. min_p (0 = off) keeps w >= min_p, for the highest w is 1.
6. The highest x + g wins, the lower id on a tie, where g is Gumbel noise of the token's own counter: that is a draw
   from softmax(x) over the candidates (Maddison et al., 2014).
Logprobs are log_softmax of the raw logits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from roseinfer.core.batch import (
    ALL_FORBIDDEN,
    NO_TOKEN,
    Float32Array,
    Int32Array,
    LogitEdits,
    SampleOutput,
    SamplingInputs,
    ScoreInputs,
    UInt32Array,
)

Float64Array = npt.NDArray[np.float64]


def sample(logits: Float32Array, inputs: SamplingInputs) -> SampleOutput:
    """Samples the rows of logits [L, vocab] that `inputs` names."""
    output = _no_tokens(len(inputs.rows))
    edits = inputs.edits
    edit_of = {} if edits is None else {int(i): index for index, i in enumerate(edits.rows)}
    for i, row in enumerate(inputs.rows):
        raw = logits[row]
        if not is_sound(raw):
            continue
        edited = edit_logits(raw, edits, edit_of[i]) if edits is not None and i in edit_of else raw
        token_id = sample_token(
            edited,
            temperature=inputs.temperatures[i],
            top_k=int(inputs.top_ks[i]),
            top_p=float(inputs.top_ps[i]),
            min_p=float(inputs.min_ps[i]),
            seed=int(inputs.seeds[i]),
            choice=int(inputs.choices[i]),
            position=int(inputs.positions[i]),
        )
        if token_id != NO_TOKEN:
            _set_token(output, i, token_id, raw, int(inputs.num_logprobs[i]))
        elif is_forbidden(edited):
            output.token_ids[i] = ALL_FORBIDDEN
    return output


def score(logits: Float32Array, inputs: ScoreInputs) -> SampleOutput:
    """Logprobs of the tokens that follow the rows of logits [L, vocab] that `inputs` names."""
    output = _no_tokens(len(inputs.rows))
    for i, row in enumerate(inputs.rows):
        if is_sound(logits[row]):
            _set_token(output, i, int(inputs.token_ids[i]), logits[row], int(inputs.num_logprobs[i]))
    return output


def is_sound(logits: Float32Array) -> bool:
    """Whether a token can be chosen from a row of logits [vocab]: no NaN, no +inf, and not all -inf."""
    return bool(np.isfinite(logits.max()))  # a NaN is the maximum


def is_forbidden(edited: Float32Array) -> bool:
    """Whether the edits of a sound row [vocab] have left nothing to choose."""
    return bool(edited.max() == -np.inf)


def edit_logits(logits: Float32Array, edits: LogitEdits, index: int) -> Float32Array:
    """A row of logits [vocab] after what `edits` has at `index` for it."""
    x = logits.copy()
    history = edits.history[slice(*edits.history_offsets[index : index + 2])]
    biases = slice(*edits.bias_offsets[index : index + 2])
    with np.errstate(over="ignore", invalid="ignore"):
        seen = np.unique(history)
        repetition = edits.repetitions[index]
        x[seen] = np.where(x[seen] > 0, x[seen] / repetition, x[seen] * repetition)
        written, counts = np.unique(history[edits.output_starts[index] :], return_counts=True)
        x[written] = x[written] - edits.presences[index] - edits.frequencies[index] * counts.astype(np.float32)
        x[edits.bias_ids[biases]] += edits.bias_values[biases]
    if edits.mask_rows[index] >= 0:
        x[~allowed_tokens(edits.masks[edits.mask_rows[index]], len(x))] = -np.inf
    return x


def allowed_tokens(mask: UInt32Array, vocab_size: int) -> npt.NDArray[np.bool_]:
    """Which of the tokens a mask [words] allows."""
    ids = np.arange(min(vocab_size, 32 * len(mask)), dtype=np.uint32)
    allowed = np.zeros(vocab_size, dtype=np.bool_)
    allowed[: len(ids)] = mask[ids // 32] >> ids % 32 & 1
    return allowed


def sample_token(
    logits: Float32Array,
    *,
    temperature: np.float32,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    choice: int,
    position: int,
) -> int:
    """The token id chosen from one row of logits [vocab], or NO_TOKEN."""
    if not is_sound(logits):
        return NO_TOKEN
    if temperature == 0:
        return int(np.argmax(logits))
    with np.errstate(over="ignore"):
        x = logits.astype(np.float32) / np.float32(temperature)
    if not np.isfinite(x.max()):
        return int(np.argmax(logits))
    candidates = np.sort(filter_tokens(x, top_k, top_p, min_p))
    scores = x[candidates].astype(np.float64) + gumbel_noise(candidates, seed, choice, position)
    return int(candidates[np.argmax(scores)])


def filter_tokens(x: Float32Array, top_k: int, top_p: float, min_p: float) -> npt.NDArray[np.int64]:
    """The ids that the filters leave, most likely first."""
    ids = np.argsort(-x, kind="stable")
    if top_k > 0:
        ids = ids[:top_k]
    weights = np.exp(x[ids].astype(np.float64) - np.float64(x[ids[0]]))
    if top_p < 1.0:
        cumulative = np.cumsum(weights)  # one addition after the other, most likely first
        kept = np.concatenate(([0.0], cumulative[:-1])) < top_p * cumulative[-1]
        ids, weights = ids[kept], weights[kept]
    return ids[weights >= min_p]


def gumbel_noise(ids: npt.NDArray[np.int64], seed: int, choice: int, position: int) -> Float64Array:
    """Standard Gumbel noise per token id, each from its own 32-bit word of the Philox stream of (seed, choice,
    position): word `id & 3` of counter (id >> 2, choice, position).
    """
    counters = np.empty((len(ids), 4), dtype=np.uint32)
    counters[:, 0] = ids >> 2
    counters[:, 1:] = choice & 0xFFFFFFFF, position & 0xFFFFFFFF, position >> 32
    words = philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32))[np.arange(len(ids)), ids & 3]
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32  # never 0 or 1
    return np.asarray(-np.log(-np.log1p(-uniform)))


def philox4x32(counters: UInt32Array, key: tuple[int, int]) -> UInt32Array:
    """Philox4x32-10 (Salmon et al., 2011): four 32-bit words per counter [N, 4]."""
    c0, c1, c2, c3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=1).astype(np.uint32)


def log_softmax(logits: Float32Array) -> Float64Array:
    shifted = logits.astype(np.float64) - np.float64(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def top_tokens(logits: Float32Array, count: int) -> Int32Array:
    """The `count` most likely ids, lower ids first on ties."""
    return np.argsort(-logits, kind="stable")[:count].astype(np.int32)


def _no_tokens(count: int) -> SampleOutput:
    return SampleOutput(
        token_ids=np.full(count, NO_TOKEN, dtype=np.int32),
        logprobs=np.full(count, np.nan, dtype=np.float32),
        top_ids=[np.empty(0, dtype=np.int32) for _ in range(count)],
        top_logprobs=[np.empty(0, dtype=np.float32) for _ in range(count)],
    )


def _set_token(output: SampleOutput, index: int, token_id: int, logits: Float32Array, num_logprobs: int) -> None:
    output.token_ids[index] = token_id
    if num_logprobs < 0:
        return
    logprobs = log_softmax(logits).astype(np.float32)
    output.logprobs[index] = logprobs[token_id]
    if num_logprobs > 0:
        output.top_ids[index] = top_tokens(logits, num_logprobs)
        output.top_logprobs[index] = logprobs[output.top_ids[index]]
