"""Token ids that the host does not know yet: what the step before has sampled."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.kernels.launch import launch

_BLOCK = 1024


def fill_pending_tokens(token_ids: torch.Tensor, samples: torch.Tensor) -> None:
    """In place: -1 - i in token_ids int32[T] becomes samples[i], int32[S], or 0 where no token was sampled."""
    num_tokens = token_ids.shape[0]
    launch(_fill, (triton.cdiv(num_tokens, _BLOCK),), token_ids, samples, num_tokens, BLOCK=_BLOCK)


@triton.jit(do_not_specialize=["num_tokens"])
def _fill(token_ids, samples, num_tokens, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(token_ids + index, mask=index < num_tokens, other=0)
    is_pending = ids < 0
    sampled = tl.load(samples - 1 - ids, mask=is_pending, other=0)
    tl.store(token_ids + index, tl.maximum(sampled, 0), mask=is_pending)
