"""Choosing a token from a row of logits, and the logprobs of one: roseinfer/backends/sampling.py as kernels.

One program reads one row, several times, in blocks of a fixed size, so the row's answer depends on nothing else.
Nothing is sorted. The Gumbel noise chooses among all tokens first, and the choice stands if top_k and top_p leave it,
which takes its rank and the weight before it. If they do not, they leave nothing behind it either, and the next choice
is among those before it. A refusal halves what there is to refuse, on average; the likeliest token is never refused.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.kernels.launch import is_interpreted, launch

# Rows of `parameters`; halves of 64 bits are the low and the high 32, and floats are there by their bits.
SAMPLE_PARAMETERS = (
    "row",
    "edit",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed_low",
    "seed_high",
    "choice",
    "position_low",
    "position_high",
)
_ROW, _EDIT, _TEMPERATURE, _TOP_K, _TOP_P, _MIN_P, _SEED_LOW, _SEED_HIGH, _CHOICE, _POSITION_LOW, _POSITION_HIGH = (
    tl.constexpr(i) for i in range(len(SAMPLE_PARAMETERS))
)

# What is said of a row, int32 each: the bits of its highest logit and of the token's, and both halves of the bits of
# sum(exp(logit - highest)), float64. The highest is infinite where the row is unsound; then the rest is not there.
NUM_FIGURES = 4

_NO_TOKEN = tl.constexpr(-1)
_ALL_FORBIDDEN = tl.constexpr(-2)
_INFINITY = tl.constexpr(float("inf"))
_MOST_NOISE = tl.constexpr(22.875)  # above -log(2^-33), which is the highest that Gumbel noise of a 32-bit word gets
_NUM_BINS = tl.constexpr(256)


def sample_tokens(
    logits: torch.Tensor, edited: torch.Tensor | None, parameters: torch.Tensor, token_ids: torch.Tensor
) -> None:
    """Samples S rows of logits float32[L, vocab] into token_ids int32[S]; -1 and -2 as in `SampleOutput`.

    parameters int32[len(SAMPLE_PARAMETERS), S]: "row" is one of logits, "edit" one of edited float32[E, vocab], what
    the same row has become; -1: nothing was edited.
    """
    num_rows = parameters.shape[1]
    launch(
        sample_kernel,
        (num_rows,),
        *(logits, logits if edited is None else edited, parameters, token_ids),
        *(logits.stride(0), num_rows, logits.shape[1]),
        BLOCK=row_block(),
        num_warps=ROW_WARPS,
    )


def find_logprobs(
    logits: torch.Tensor,
    rows: torch.Tensor,
    indices: torch.Tensor,
    num_tops: torch.Tensor,
    token_ids: torch.Tensor,
    results: torch.Tensor,
    max_tops: int,
) -> None:
    """What the logprobs of A rows of logits float32[L, vocab] are made of.

    `rows` int32[A] are those of logits, `indices` int32[A] say which of `token_ids` is the row's (those below 0 have no
    logprobs), `num_tops` int32[A] how many of the likeliest are wanted, from 0 to vocab. results int32 gets the figures
    [NUM_FIGURES, A], then the ids of the likeliest tokens [A, max_tops], ascending, then the bits of their logits.
    """
    num_rows = rows.shape[0]
    launch(
        logprobs_kernel,
        (num_rows,),
        *(logits, rows, indices, num_tops, token_ids, results),
        *(logits.stride(0), num_rows, max_tops, logits.shape[1]),
        BLOCK=row_block(),
        num_warps=ROW_WARPS,
    )


ROW_WARPS = 16  # of 32 threads, each with 8 tokens: more of them in float64 would not fit into its registers


def row_block() -> int:
    """Tokens that a program looks at together."""
    return 1024 if is_interpreted() else 4096


# -- one row --------------------------------------------------------------------------------------------------------


@triton.jit
def load_scaled(row, ids, vocab_size, temperature):
    """logits / temperature as the spec rounds it; -inf beyond the vocabulary."""
    return tl.div_rn(tl.load(row + ids, mask=ids < vocab_size, other=-_INFINITY), temperature)


@triton.jit
def ordered_keys(x):
    """uint32 in the order of float32; both zeros are one."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)


@triton.jit
def float_of_key(key):
    bits = key.to(tl.int32, bitcast=True)
    return (bits ^ ((~bits >> 31) | -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def come_before(keys, ids, key, token):
    """Whether tokens are more likely than `token` of that key, or as likely and lower."""
    return (keys > key) | ((keys == key) & (ids < token))


@triton.jit
def weights_of(x, highest):
    """Of tokens beside the likeliest, whose x is `highest`, in float64."""
    return tl.exp(x.to(tl.float64) - highest.to(tl.float64))


@triton.jit
def is_any(mask):
    return tl.max(mask.to(tl.int32), axis=0) > 0


@triton.jit
def find_highest(row, vocab_size, BLOCK: tl.constexpr):
    """The highest logit, for which a NaN is +inf, and the lowest id that has it."""
    WIDE: tl.constexpr = 4 * BLOCK  # so little is done here that loads decide
    lanes = tl.arange(0, WIDE)
    highest = tl.full((WIDE,), -_INFINITY, tl.float32)
    first = lanes
    for start in range(0, vocab_size, WIDE):
        ids = start + lanes
        x = tl.load(row + ids, mask=ids < vocab_size, other=-_INFINITY)
        x = tl.where(x != x, _INFINITY, x)
        first = tl.where(x > highest, ids, first)
        highest = tl.maximum(highest, x)
    top = tl.max(highest, axis=0)
    return top, tl.min(tl.where(highest == top, first, vocab_size), axis=0)


@triton.jit
def mass_before(row, vocab_size, temperature, highest, key, token, is_weighed, BLOCK: tl.constexpr):
    """How many tokens come before `token` of that key, and their weight, or 0 unless `is_weighed`."""
    lanes = tl.arange(0, BLOCK)
    count = tl.zeros((BLOCK,), tl.int32)
    weight = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, vocab_size, BLOCK):
        ids = start + lanes
        x = load_scaled(row, ids, vocab_size, temperature)
        is_before = come_before(ordered_keys(x), ids, key, token) & (ids < vocab_size)
        count += is_before.to(tl.int32)
        if is_weighed and is_any(is_before):
            weight += tl.where(is_before, weights_of(x, highest), 0.0)
    return tl.sum(count, axis=0), tl.sum(weight, axis=0)


@triton.jit
def find_rank(row, vocab_size, temperature, rank, BLOCK: tl.constexpr):
    """The key of the `rank`-th token, from 1, and how many tokens of that key are among the first `rank`."""
    lanes = tl.arange(0, BLOCK)
    bins = tl.arange(0, _NUM_BINS)
    key = tl.zeros((), tl.uint32)
    for digit in range(4):
        shift = 24 - 8 * digit
        counts = tl.zeros((_NUM_BINS,), tl.int32)
        for start in range(0, vocab_size, BLOCK):
            ids = start + lanes
            keys = ordered_keys(load_scaled(row, ids, vocab_size, temperature))
            rest = (keys ^ key) >> shift  # one bin, where the digits before are the key's
            is_counted = (rest < _NUM_BINS) & (ids < vocab_size)
            counts += tl.histogram(tl.where(is_counted, rest, 0).to(tl.int32), _NUM_BINS, mask=is_counted)
        at_least = tl.cumsum(counts, axis=0, reverse=True)
        bin = tl.sum((at_least >= rank).to(tl.int32), axis=0) - 1
        rank -= tl.sum(tl.where(bins == bin, at_least - counts, 0), axis=0)
        key |= bin.to(tl.uint32) << shift
    return key, rank


# -- noise ----------------------------------------------------------------------------------------------------------


@triton.jit
def noise_words(first_id, seed_low, seed_high, choice, position_low, position_high, BLOCK: tl.constexpr):
    """The random words of BLOCK tokens from `first_id` on, a multiple of 4: a Philox4x32-10 counter has four."""
    counters = (first_id // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    a, b, c, d = tl.philox_impl(counters, choice, position_low, position_high, seed_low, seed_high)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK,))


@triton.jit
def gumbel(words):
    """-log(-log1p(-u)) of u = (word + 0.5) / 2^32; 1 - u is exact in float64, so its log is log1p's to the last bit."""
    return -tl.log(-tl.log(1.0 - (words.to(tl.float64) + 0.5) * 2.0**-32))


@triton.jit
def floor_of(best):
    """A float32 that x + noise, rounded to float32, does not fall below if it reaches `best`."""
    rounded = best.to(tl.float32)
    return rounded - tl.abs(rounded) * 1e-6 - 1e-3


@triton.jit
def find_winner(
    row, vocab_size, temperature, highest, min_p, key, token,
    seed_low, seed_high, choice, position_low, position_high, BLOCK: tl.constexpr,
):  # fmt: skip
    """The id of the highest x + noise among the tokens before `token` of that key whose weight is at least min_p; -1
    if there is none. Noise takes float64 and time, so it is made only where a bound says that it may win.
    """
    lanes = tl.arange(0, BLOCK)
    best = tl.full((), -_INFINITY, tl.float64)
    winner = tl.full((), _NO_TOKEN, tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + lanes
        x = load_scaled(row, ids, vocab_size, temperature)
        is_left = (x > -_INFINITY) & come_before(ordered_keys(x), ids, key, token)
        floor = floor_of(best)
        if is_any(is_left & (x + _MOST_NOISE >= floor)):
            words = noise_words(start, seed_low, seed_high, choice, position_low, position_high, BLOCK)
            # Noise is below -log(u), because -log1p(-u) is above u.
            bound = 22.18070977791825 - tl.log(words.to(tl.float32) + 0.5)
            is_left = is_left & (x + bound >= floor)
            if is_any(is_left):
                is_left = is_left & (weights_of(x, highest) >= min_p)
                scores = tl.where(is_left, x.to(tl.float64) + gumbel(words), -_INFINITY)
                score = tl.max(scores, axis=0)
                if score > best:
                    best = score
                    winner = tl.min(tl.where(scores == score, ids, vocab_size), axis=0)
    return winner


# -- kernels --------------------------------------------------------------------------------------------------------


@triton.jit
def load_parameter(parameters, NAME: tl.constexpr, num_rows, DTYPE: tl.constexpr):
    return tl.load(parameters + NAME * num_rows).to(DTYPE, bitcast=True)


@triton.jit
def draw_token(row, highest_logit, temperature, parameters, num_rows, vocab_size, BLOCK: tl.constexpr):
    """From softmax(logits / temperature) after the filters."""
    top_k = load_parameter(parameters, _TOP_K, num_rows, tl.int32)
    top_p = load_parameter(parameters, _TOP_P, num_rows, tl.float32).to(tl.float64)
    min_p = load_parameter(parameters, _MIN_P, num_rows, tl.float32).to(tl.float64)
    seed_low = load_parameter(parameters, _SEED_LOW, num_rows, tl.uint32)
    seed_high = load_parameter(parameters, _SEED_HIGH, num_rows, tl.uint32)
    choice = load_parameter(parameters, _CHOICE, num_rows, tl.uint32)
    position_low = load_parameter(parameters, _POSITION_LOW, num_rows, tl.uint32)
    position_high = load_parameter(parameters, _POSITION_HIGH, num_rows, tl.uint32)

    highest = tl.div_rn(highest_logit, temperature)
    has_top_k = (top_k > 0) & (top_k < vocab_size)
    has_top_p = top_p < 1.0
    max_rank = tl.where(has_top_k, top_k, vocab_size)
    # A token is left if less than this comes before it.
    max_weight = tl.full((), _INFINITY, tl.float64)
    # All tokens come before this one.
    key = tl.zeros((), tl.uint32)
    bound = tl.zeros((), tl.int32)
    num_last = 0
    if has_top_k:
        key, num_last = find_rank(row, vocab_size, temperature, top_k, BLOCK)
    if has_top_p:
        _, weight = mass_before(row, vocab_size, temperature, highest, key, bound, True, BLOCK)
        if has_top_k:
            weight += num_last * weights_of(float_of_key(key), highest)
        max_weight = top_p * weight
    if has_top_k:
        bound = vocab_size
    winner = tl.full((), _NO_TOKEN, tl.int32)
    is_open = True
    while is_open:
        winner = find_winner(
            row, vocab_size, temperature, highest, min_p, key, bound,
            seed_low, seed_high, choice, position_low, position_high, BLOCK,
        )  # fmt: skip
        is_open = False
        if (winner >= 0) & (has_top_k | has_top_p):
            key = ordered_keys(tl.div_rn(tl.load(row + winner), temperature))
            bound = winner
            rank, weight = mass_before(row, vocab_size, temperature, highest, key, winner, has_top_p, BLOCK)
            is_open = (rank > 0) & ((rank >= max_rank) | (weight >= max_weight))
    return winner


@triton.jit(do_not_specialize=["num_rows"])
def sample_kernel(
    logits, edited, parameters, token_ids, logits_stride, num_rows, vocab_size, BLOCK: tl.constexpr
):  # fmt: skip
    """One program for each sampled row."""
    index = tl.program_id(0)
    parameters += index
    row = logits + load_parameter(parameters, _ROW, num_rows, tl.int32).to(tl.int64) * logits_stride
    edit = load_parameter(parameters, _EDIT, num_rows, tl.int32)
    temperature = load_parameter(parameters, _TEMPERATURE, num_rows, tl.float32)
    highest, token = find_highest(row, vocab_size, BLOCK)
    is_sound = tl.abs(highest) < _INFINITY
    nothing = _NO_TOKEN
    if is_sound & (edit >= 0):
        row = edited + edit.to(tl.int64) * vocab_size
        highest, token = find_highest(row, vocab_size, BLOCK)
        is_sound = tl.abs(highest) < _INFINITY
        nothing = tl.where(highest < 0, _ALL_FORBIDDEN, _NO_TOKEN)
    is_greedy = temperature == 0
    is_greedy |= tl.abs(tl.div_rn(highest, tl.where(is_greedy, 1.0, temperature))) == _INFINITY
    if is_sound & (not is_greedy):
        token = draw_token(row, highest, temperature, parameters, num_rows, vocab_size, BLOCK)
    tl.store(token_ids + index, tl.where(is_sound, token, nothing))


@triton.jit
def store_tops(row, vocab_size, count, top_ids, top_logits, BLOCK: tl.constexpr):
    """The `count` likeliest tokens, by ascending ids, and the bits of their logits."""
    key, num_last = find_rank(row, vocab_size, 1.0, count, BLOCK)
    lanes = tl.arange(0, BLOCK)
    num_stored = 0
    num_equal = 0
    for start in range(0, vocab_size, BLOCK):
        ids = start + lanes
        logits = load_scaled(row, ids, vocab_size, 1.0)
        keys = ordered_keys(logits)
        is_equal = ((keys == key) & (ids < vocab_size)).to(tl.int32)
        is_above = ((keys > key) & (ids < vocab_size)).to(tl.int32)
        if is_any((is_equal + is_above) > 0):
            rank = num_equal + tl.cumsum(is_equal, axis=0)  # from 1
            is_top = is_above | (is_equal & (rank <= num_last).to(tl.int32))
            slots = num_stored + tl.cumsum(is_top, axis=0) - 1
            tl.store(top_ids + slots, ids, mask=is_top > 0)
            tl.store(top_logits + slots, logits.to(tl.int32, bitcast=True), mask=is_top > 0)
            num_equal += tl.sum(is_equal, axis=0)
            num_stored += tl.sum(is_top, axis=0)


@triton.jit(do_not_specialize=["num_rows", "max_tops"])
def logprobs_kernel(
    logits, rows, indices, num_tops, token_ids, results,
    logits_stride, num_rows, max_tops, vocab_size, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for each row."""
    index = tl.program_id(0)
    token = tl.load(token_ids + tl.load(indices + index))
    if token < 0:
        return
    row = logits + tl.load(rows + index).to(tl.int64) * logits_stride
    highest, _ = find_highest(row, vocab_size, BLOCK)
    figures = results + index
    tl.store(figures, highest.to(tl.int32, bitcast=True))
    if tl.abs(highest) < _INFINITY:
        nothing = tl.zeros((), tl.uint32)
        _, total = mass_before(row, vocab_size, 1.0, highest, nothing, 0, True, BLOCK)
        bits = total.to(tl.int64, bitcast=True)
        tl.store(figures + num_rows, tl.load(row + token).to(tl.int32, bitcast=True))
        tl.store(figures + 2 * num_rows, bits.to(tl.int32))
        tl.store(figures + 3 * num_rows, (bits >> 32).to(tl.int32))
        count = tl.load(num_tops + index)
        if count > 0:
            # NUM_FIGURES
            top_ids = results + 4 * num_rows + index.to(tl.int64) * max_tops
            store_tops(row, vocab_size, count, top_ids, top_ids + num_rows.to(tl.int64) * max_tops, BLOCK)
