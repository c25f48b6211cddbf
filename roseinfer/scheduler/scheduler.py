"""Decides what each step computes: every request's `num_computed_tokens` catches up with its `num_tokens`.

There is one path. A decode step is a request that is one token behind, a prompt one that is many behind, a
chunk what the step's token budget left over; a prefix hit or a preempted request only starts at another
`num_computed_tokens`.

A prefix that is still being computed is shared too. If another row of the step works on the block that a
request needs next, the request sits the step out, and finds the block published once it is full. It waits
only in steps that bring this block closer, and if the other one is gone it computes the block itself, so
nobody starves.

A prompt whose logprobs are wanted is computed whole, and in chunks for whose rows of logits there is room: the
program has `max_logit_rows`, of which every other request that may sample keeps one.

Which waiting request starts next depends on what has been computed for its tenant (`WaitingQueue`). Whom the memory
goes to once they run depends on priority and age alone: an order by shares would change from step to step, and two
requests would preempt each other in turns. Who is preempted takes its old place among its tenant's.

Lookahead: a step may be planned while the one before is under way. Once launched it is assumed to be computed, and
settled when its results are there. In between each of its requests is as far as it will be, with a placeholder for the
token that is sampled. What the step computes is published when it is settled; until then others wait for it as for a
row of their own step. A result that no request waits for any more is passed over, and the blocks it is computed in may
be given away before, since a device computes steps in their order. `retract` is the way back where a step has failed.

Progress: the first running request in order can preempt all others, and every request fits into the pool alone (the
engine refuses the rest), so a step that has work always computes something. Should it not, `fail_stuck` ends a request.
"""

from __future__ import annotations

import logging
import time
from bisect import insort
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from roseinfer.cache.block_pool import BlockPool
from roseinfer.cache.prefix_cache import PrefixCache
from roseinfer.core.batch import ALL_FORBIDDEN, NO_TOKEN, SampleOutput
from roseinfer.core.errors import EngineError, InvalidRequestError
from roseinfer.core.messages import FinishReason, PromptLogprobs, TokenOutput
from roseinfer.core.request import Request
from roseinfer.scheduler.batch import Batch, BatchRow
from roseinfer.scheduler.plan import Plan
from roseinfer.scheduler.token_counters import OUTPUT_TOKEN, PROMPT_TOKEN, TokenCounters
from roseinfer.scheduler.waiting_queue import WaitingQueue

logger = logging.getLogger(__name__)

_by_order = attrgetter("order")
_NOTHING = Batch([])


class Scheduler:
    """Owns the requests from `add` until they finish.

    A step spends at most `max_batch_tokens`, at most `max_chunk_tokens` of them on one request, and runs at
    most `max_running` requests. `max_model_len` counts prompt and output together; it is lowered to what the
    block pool holds. `max_logit_rows` is the program's limit, by default what `max_running` requests need.
    """

    def __init__(
        self,
        *,
        block_pool: BlockPool,
        prefix_cache: PrefixCache | None,
        max_batch_tokens: int,
        max_running: int,
        max_model_len: int,
        max_chunk_tokens: int | None = None,
        max_logit_rows: int | None = None,
    ) -> None:
        if min(max_batch_tokens, max_running, max_model_len, max_chunk_tokens or 1) < 1:
            raise ValueError("the scheduler's limits must be at least 1")
        if max_logit_rows is not None and max_logit_rows < max_running:
            raise ValueError(f"{max_logit_rows} rows of logits are not enough for {max_running} running requests")
        self.block_pool = block_pool
        self.prefix_cache = prefix_cache
        self.max_batch_tokens = max_batch_tokens
        self.max_chunk_tokens = max_chunk_tokens or max_batch_tokens
        self.max_running = max_running
        self.max_logit_rows = max_logit_rows or max_running
        self._max_model_len = max_model_len
        self.num_preemptions = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self.running: list[Request] = []  # by `order`
        self.token_counters = TokenCounters()
        self.waiting = WaitingQueue(self.token_counters)
        self._requests: dict[str, Request] = {}
        self._under_way = _NOTHING  # assumed, and not yet settled

    @property
    def max_model_len(self) -> int:
        """What the limit and the pool, which may shrink, allow."""
        return min(self._max_model_len, self.block_pool.num_tokens)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add(self, request: Request) -> TokenOutput | None:
        """Queues a request; one that has nothing left to generate is finished at once."""
        reason = self._finish_reason(request)
        if reason is not None:
            return _output(request, [], reason)
        self._requests[request.request_id] = request
        self.waiting.add(request)
        return None

    def abort(self, request_id: str) -> TokenOutput | None:
        """Forgets a request; an unknown id is fine."""
        request = self._requests.get(request_id)
        return self._finish(request, _output(request, [], "abort")) if request else None

    def fail(self, request: Request, error: Exception) -> TokenOutput:
        """Ends a request because of a fault of ours or, with an InvalidRequestError, of the caller's."""
        if isinstance(error, InvalidRequestError):
            fault = {"error": error.message, "error_param": error.param}
        else:
            fault = {"error": f"the request failed in the engine: {error}"}
        return self._finish(request, _output(request, [], "error", **fault))

    def fail_stuck(self) -> TokenOutput | None:
        """To be called when `schedule` had nothing to compute. Ends the request that is first in turn, if there is any.

        In a sound pool there is none. In any other, the engine would step on forever, and everybody wait behind it.
        """
        request = next(iter([*self.running, *self.waiting.candidates(1)]), None)
        if request is None:
            return None
        pool = self.block_pool
        count, available = pool.num_blocks_for(request.num_tokens), pool.num_available
        fault = f"it needs {count} KV blocks, {available} of {pool.num_blocks} are available, and nothing else runs"
        logger.error("request %s is stuck: %s", request.request_id, fault)
        return self.fail(request, EngineError(fault))

    # -- planning -------------------------------------------------------------------------------------------

    def schedule(self) -> Batch:
        """The next step. Running requests first, of these the ones that are a single token behind."""
        plan = Plan(self.max_batch_tokens)
        running = sorted(self.running, key=_is_catching_up)
        if self._under_way:  # which brings some of them their last token
            running = [request for request in running if not self._is_full(request)]
        for request in running:
            if plan.budget and request.is_running:
                self._continue(request, plan)
        if self.waiting and len(self.running) < self.max_running:
            self._admit(plan)
        return Batch([BatchRow(request, count) for request, count in plan.counts.items()], plan)

    def _continue(self, request: Request, plan: Plan) -> None:
        if _is_catching_up(request):
            self._take(request, self._match(request))
            if self._is_in_flight(request, 0, plan):
                return
        self._plan_chunk(request, plan)

    def _admit(self, plan: Plan) -> None:
        """Starts waiting requests in turn, as long as their known tokens fit beside the running ones'."""
        num_reserved = sum(map(self._num_missing_blocks, self.running))
        for request in self.waiting.candidates(self.max_running - len(self.running)):
            if not plan.budget:
                break
            if request in self._under_way.plan.counts:  # preempted just now: first its row has to be settled
                break
            cached = self._match(request)
            if self._is_in_flight(request, len(cached), plan) or not self._chunk_len(request, plan):
                continue
            if request.num_tokens > self.max_model_len:
                continue  # the pool has shrunk; it ends by `fail_stuck`, and keeps nobody waiting until then
            if num_reserved + self._num_needed_blocks(request, cached) > self.block_pool.num_available:
                break
            self._start(request)
            self._take(request, cached)
            self._plan_chunk(request, plan)
            num_reserved += self._num_missing_blocks(request)

    def _start(self, request: Request) -> None:
        self.waiting.remove(request)
        insort(self.running, request, key=_by_order)
        if request.num_preemptions == 0:
            request.started_at = time.monotonic()
            if self.prefix_cache is not None and self._may_share(request):
                self.num_prefix_queries += request.num_prompt_tokens

    def _plan_chunk(self, request: Request, plan: Plan) -> None:
        count = self._chunk_len(request, plan)
        if count and self._make_room(request, count, plan):
            plan.add(request, count, self._digests_touched(request, count))
            self._charge_prompt(request, count)

    def _charge_prompt(self, request: Request, count: int) -> None:
        """For its next `count` tokens, as far as they are the prompt's; a tenant does not pay for a preemption."""
        num_prompt_tokens = min(count, request.num_prompt_tokens - request.num_computed_tokens)
        if num_prompt_tokens > 0 and not request.num_preemptions:
            self.token_counters.charge(request.params.tenant, PROMPT_TOKEN * num_prompt_tokens)

    def _chunk_len(self, request: Request, plan: Plan) -> int:
        """Next tokens to compute. Short of the request's end, a chunk stops at a block's border: there it is shared.

        At least 1, but for a prompt to be scored that finds no row of logits left.
        """
        count = min(request.num_uncomputed_tokens, plan.budget, self.max_chunk_tokens)
        if request.num_unscored_tokens:
            count = min(count, request.num_tokens_within(self._num_logits_left(plan)))
        overhang = (request.num_computed_tokens + count) % self.block_pool.block_size
        return count - overhang if overhang < count < request.num_uncomputed_tokens else count

    def _num_logits_left(self, plan: Plan) -> int:
        """Rows of logits for prompts to be scored: neither taken by a planned one nor kept for who may sample."""
        num_others = sum(not request.num_unscored_tokens for request in self._requests.values())
        num_kept = min(num_others, self.max_running - 1)
        scored = [(request, count) for request, count in plan.counts.items() if request.num_unscored_tokens]
        return self.max_logit_rows - num_kept - sum(request.num_logits_of(count) for request, count in scored)

    # -- sharing --------------------------------------------------------------------------------------------

    def _match(self, request: Request) -> list[int]:
        """Cached blocks to go on with; none inside a block, which the request fills itself."""
        if self.prefix_cache is None or not self._may_share(request):
            return []
        return self.prefix_cache.match(request)

    def _take(self, request: Request, cached: list[int]) -> None:
        for block in cached:
            self.block_pool.retain(block)
        request.block_table.extend(cached)
        num_tokens = len(cached) * self.block_pool.block_size
        request.num_computed_tokens += num_tokens
        if request.num_preemptions == 0:
            num_tokens = min(num_tokens, request.num_prompt_tokens - request.num_cached_tokens)
            request.num_cached_tokens += num_tokens
            self.num_prefix_hits += num_tokens

    def _is_in_flight(self, request: Request, num_matched: int, plan: Plan) -> bool:
        """Whether a row of this step, or of the one under way, works on the block behind the request's matched ones."""
        if self.prefix_cache is None or not self._may_share(request):
            return False
        digest = self.prefix_cache.wanted_digest(request, len(request.block_table) + num_matched)
        return digest is not None and (plan.works_on(digest) or self._under_way.plan.brings(digest))

    def _digests_touched(self, request: Request, count: int) -> list[bytes]:
        """Of the blocks that the next `count` tokens lie in, as far as the request will make them full by itself."""
        if self.prefix_cache is None or not _is_catching_up(request) or request.num_unscored_tokens:
            return []  # nobody waits for a prompt that is scored, which takes many small chunks
        start = request.num_computed_tokens // self.block_pool.block_size
        stop = self.block_pool.num_blocks_for(request.num_computed_tokens + count)
        return self.prefix_cache.digests(request, start, min(stop, request.num_tokens // self.block_pool.block_size))

    def _may_share(self, request: Request) -> bool:
        """Whether the request can go on with blocks of others: at a border, and if it needs no logits of theirs."""
        is_at_border = request.num_computed_tokens == len(request.block_table) * self.block_pool.block_size
        return is_at_border and not request.num_unscored_tokens

    # -- blocks ---------------------------------------------------------------------------------------------

    def _make_room(self, request: Request, count: int, plan: Plan) -> bool:
        """Blocks for the next `count` tokens, at the expense of the last in order. False if that is the request."""
        num_blocks = self.block_pool.num_blocks_for(request.num_computed_tokens + count) - len(request.block_table)
        if num_blocks <= 0:
            return True
        while not self.block_pool.can_allocate(num_blocks):
            last = self.running[-1]
            self._preempt(last, plan)
            if last is request:
                return False
        request.block_table.extend(self.block_pool.allocate(num_blocks))
        return True

    def _preempt(self, request: Request, plan: Plan) -> None:
        """Back to the queue, to be computed again; its published blocks may still be cached by then."""
        plan.remove(request)
        self.running.remove(request)
        self._release_blocks(request)
        request.num_computed_tokens = 0
        self.waiting.add(request)
        request.num_preemptions += 1
        self.num_preemptions += 1

    def _release_blocks(self, request: Request, start: int = 0) -> None:
        """From index `start` of its table on."""
        # Tail blocks are freed first, so a shared prefix is evicted last.
        self.block_pool.release(reversed(request.block_table[start:].tolist()))
        del request.block_table[start:]

    def _num_missing_blocks(self, request: Request) -> int:
        return self.block_pool.num_blocks_for(request.num_tokens) - len(request.block_table)

    def _num_needed_blocks(self, request: Request, cached: list[int]) -> int:
        """Of the available blocks, those that a waiting request takes: all but the cached ones in use already."""
        num_in_use = sum(self.block_pool.ref_count(block) > 0 for block in cached)
        return self.block_pool.num_blocks_for(request.num_tokens) - num_in_use

    # -- taking in ------------------------------------------------------------------------------------------

    def update(
        self,
        batch: Batch,
        samples: SampleOutput,
        scores: SampleOutput | None = None,
        failures: Mapping[Request, Exception] | None = None,
    ) -> list[TokenOutput]:
        """Takes in a step that was computed while nothing was under way: `assume` and `settle` in one."""
        self.assume(batch)
        return self.settle(batch, samples, scores, failures)

    def assume(self, batch: Batch) -> None:
        """Takes a planned step for computed, once its inputs are made.

        The one before must be settled: there is one placeholder at most. Requests that it has ended do not matter.
        """
        self._under_way = batch
        placeholder = -1  # as the next launch is to read it, see `ForwardInputs`
        for row in batch.rows:
            request = row.request
            request.num_computed_tokens = row.stop
            request.num_unscored_tokens -= row.num_scores
            if row.is_sampled:
                request.token_ids.append(placeholder)
                placeholder -= 1

    def settle(
        self,
        batch: Batch,
        samples: SampleOutput,
        scores: SampleOutput | None = None,
        failures: Mapping[Request, Exception] | None = None,
    ) -> list[TokenOutput]:
        """Takes in what the assumed step has brought, for those of its requests that are still there.

        `samples` are the tokens of `batch.sampled_requests`, in that order, `scores` those of `batch.score_inputs`.
        `failures`: requests whose sample is worthless, though what was computed of them is sound.
        """
        self._under_way = _NOTHING
        outputs: list[TokenOutput] = []
        token_ids: list[int] = samples.token_ids.tolist()
        num_samples = num_scores = 0
        for row in batch.rows:
            if not self._owns(row.request):
                pass  # its end was seen or asked for while the step was under way
            elif row.num_scores and (failed := self._take_scores(row, num_scores, scores)):
                outputs.append(failed)
            elif row.is_sampled:
                error = failures.get(row.request) if failures else None
                outputs.append(self._accept(row, token_ids[num_samples], num_samples, samples, error))
            else:
                self._publish(row)
            num_scores += row.num_scores
            num_samples += row.is_sampled
        return outputs

    def retract(self, batch: Batch) -> Batch:
        """Undoes `assume`, and what the next step has planned upon it. Returns the rows that can be computed again.

        What is left of the next step, `still_planned` knows. Requests that were preempted meanwhile just wait.
        """
        self._under_way = _NOTHING
        rows = [row for row in batch.rows if self._owns(row.request)]
        for row in rows:
            request = row.request
            request.num_unscored_tokens += row.num_scores
            if row.is_sampled:
                request.token_ids.pop()
            if request.is_running:
                request.num_computed_tokens = row.start
                self._release_blocks(request, self.block_pool.num_blocks_for(row.stop))
        return Batch([row for row in rows if row.request.is_running])

    def still_planned(self, batch: Batch) -> Batch:
        """The rows that can be computed as they were planned, now that the step before is settled or retracted."""
        return Batch([row for row in batch.rows if self._has_place(row)])

    def _has_place(self, row: BatchRow) -> bool:
        """Whether its request is where the row begins, and holds its blocks; one that has ended holds none."""
        num_blocks = self.block_pool.num_blocks_for(row.stop)
        return (row.start, num_blocks) == (row.request.num_computed_tokens, len(row.request.block_table))

    def _owns(self, request: Request) -> bool:
        """Whether it has not ended; another one may have its name by now."""
        return self._requests.get(request.params.request_id) is request

    def _take_scores(self, row: BatchRow, index: int, scores: SampleOutput | None) -> TokenOutput | None:
        try:
            if scores is None or row.request.prompt_logprobs is None:
                raise EngineError("the prompt was not scored")
            count = row.request.params.num_prompt_logprobs
            _append_scores(row.request.prompt_logprobs, scores, slice(index, index + row.num_scores), count)
        except Exception as error:  # one request's fault is never another's
            return self._distrust(row.request, error)
        return None

    def _accept(
        self, row: BatchRow, token_id: int, index: int, samples: SampleOutput, error: Exception | None
    ) -> TokenOutput:
        request = row.request
        if token_id == ALL_FORBIDDEN and error is None:
            error = _dead_end(request)
        try:
            if token_id == NO_TOKEN:
                raise error or EngineError("the model's logits hold no finite number")
            fields = _logprobs(request, index, samples)
            self._publish(row)
        except Exception as fault:
            return self._distrust(request, fault)
        try:
            if error is not None:
                raise error
            request.token_ids[-1] = token_id
            self.token_counters.charge(request.params.tenant, OUTPUT_TOKEN)
            if request.constraint is not None and token_id not in request.stop_token_ids:
                request.constraint.accept(token_id)
            reason = self._finish_reason(request)
        except Exception as fault:
            logger.error("request %s failed: %s", request.request_id, fault)
            return self.fail(request, fault)
        if len(request.token_ids) == request.num_given_tokens + 1:
            fields |= _first_token_fields(request)
        if reason is None:
            return _output(request, [token_id], None, **fields)
        fields["decode_seconds"] = time.monotonic() - request.first_token_at
        return self._finish(request, _output(request, [token_id], reason, **fields))

    def _publish(self, row: BatchRow) -> None:
        """The blocks that the row has filled, unless its request was preempted meanwhile."""
        size = self.block_pool.block_size
        first, stop = row.start // size, row.stop // size
        if stop > first and self.prefix_cache is not None and row.request.is_running:
            self.prefix_cache.publish(row.request, first, stop)

    def _distrust(self, request: Request, error: Exception) -> TokenOutput:
        """Ends a request whose result was unusable, and lets nobody build on its keys and values."""
        logger.error("request %s failed: %s", request.request_id, error)
        if self.prefix_cache is not None:
            # By their content, since a request that was preempted meanwhile holds none of them any more.
            published = map(self.block_pool.find, request.block_digests)
            self.prefix_cache.forget([block for block in published if block is not None])
        return self.fail(request, error)

    def _finish_reason(self, request: Request) -> FinishReason | None:
        if request.token_ids[-1] in request.stop_token_ids and request.num_output_tokens:
            return "stop"
        if request.constraint is not None and request.constraint.is_finished:
            return "stop"
        return "length" if self._is_full(request) else None

    def _is_full(self, request: Request) -> bool:
        """Whether it has all the tokens that it may have."""
        num_tokens = len(request.token_ids)
        return num_tokens - request.num_prompt_tokens >= request.params.max_tokens or num_tokens >= self.max_model_len

    def _finish(self, request: Request, output: TokenOutput) -> TokenOutput:
        """The only way out: every block comes back here."""
        (self.running if request.is_running else self.waiting).remove(request)
        self._release_blocks(request)
        del self._requests[request.request_id]
        if not self._requests:
            self.token_counters.reset()
        return output

    # -- checking -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises AssertionError unless queues, tables and pool agree and no writable block is shared."""
        self.block_pool.check(request.block_table.tolist() for request in self._requests.values())
        queued = sorted([*self.running, *self.waiting], key=_by_order)
        assert queued == sorted(self._requests.values(), key=_by_order), "a request is in no queue, or in two"
        assert all(request.is_running for request in self.running), "a running request holds no block"
        assert not any(request.is_running for request in self.waiting), "a waiting request holds blocks"
        assert self.running == sorted(self.running, key=_by_order), "the running requests are out of order"
        assert all(request in self.waiting for request in self.waiting), "a waiting request is in a wrong lane"
        assert len(list(self.waiting)) == len(self.waiting), "the waiting requests are miscounted"
        assert len(self.running) <= self.max_running, "too many run"
        for request in self.running:
            self._check_blocks(request)
        for request in self._requests.values():
            self._check_tokens(request)

    def _check_tokens(self, request: Request) -> None:
        """A placeholder is the last token of a request that the step under way samples, and in no digest."""
        placeholders = [-1 - i for i, sampled in enumerate(self._under_way.sampled_requests) if sampled is request]
        num_known = request.num_tokens - len(placeholders)
        assert request.token_ids[num_known:].tolist() == placeholders, f"{request} awaits no token, or another one"
        assert min(request.token_ids[:num_known]) >= 0, f"a placeholder within the tokens of {request}"
        num_digested = len(request.block_digests) * self.block_pool.block_size
        assert num_digested <= num_known, f"{request} has a digest of tokens that are not known"

    def _check_blocks(self, request: Request) -> None:
        table, num_computed = request.block_table.tolist(), request.num_computed_tokens
        assert num_computed < request.num_tokens, f"nothing to compute for {request}"
        if request.num_unscored_tokens:
            assert num_computed <= request.num_scored_tokens, f"{request} left out logprobs"
        assert len(table) == self.block_pool.num_blocks_for(num_computed), f"{request} holds {table}"
        assert len(set(table)) == len(table), f"{request} holds a block twice: {table}"
        num_settled = next((row.start for row in self._under_way.rows if row.request is request), num_computed)
        for block in table[num_settled // self.block_pool.block_size :]:
            assert self.block_pool.ref_count(block) == 1, f"writable block {block} of {request} is shared"
            assert not self.block_pool.is_published(block), f"writable block {block} of {request} is published"


def _is_catching_up(request: Request) -> bool:
    return request.num_uncomputed_tokens > 1


def _logprobs(request: Request, index: int, samples: SampleOutput) -> dict[str, Any]:
    count = request.params.num_logprobs
    if count < 0:
        return {}
    logprobs = [float(samples.logprobs[index])]
    if count == 0:
        return {"logprobs": logprobs}
    top_ids, top_logprobs = samples.top_ids[index].tolist(), samples.top_logprobs[index].tolist()
    return {"logprobs": logprobs, "top_ids": [top_ids[:count]], "top_logprobs": [top_logprobs[:count]]}


def _append_scores(prompt: PromptLogprobs, scores: SampleOutput, rows: slice, count: int) -> None:
    """`count`: of the most likely tokens beside each."""
    if scores.token_ids[rows].min() < 0:
        raise EngineError("the model's logits hold no finite number")
    prompt.logprobs.extend(scores.logprobs[rows].tolist())
    if count:
        prompt.top_ids.extend(ids[:count].tolist() for ids in scores.top_ids[rows])
        prompt.top_logprobs.extend(logprobs[:count].tolist() for logprobs in scores.top_logprobs[rows])


def _first_token_fields(request: Request) -> dict[str, Any]:
    prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
    request.first_token_at = time.monotonic()
    return {
        "prompt_logprobs": prompt_logprobs,
        "queue_seconds": request.started_at - request.added_at,
        "prefill_seconds": request.first_token_at - request.started_at,
    }


def _dead_end(request: Request) -> Exception:
    """Who has forbidden every token: in most cases the caller, with all that the request asks for."""
    params = request.params
    limits = {
        "grammar": params.grammar,
        "allowed_token_ids": params.allowed_token_ids,
        "bad_words": params.bad_words_ids,
        "logit_bias": params.logit_bias,
        "min_tokens": params.min_tokens,
    }
    given = [name for name, limit in limits.items() if limit]
    if not given:
        return EngineError("the penalties leave no finite logit")
    return InvalidRequestError(f"everything is forbidden that could come next, by {', '.join(given)}", given[0])


def _output(request: Request, token_ids: list[int], reason: FinishReason | None, **fields: Any) -> TokenOutput:
    return TokenOutput(
        request_id=request.request_id,
        token_ids=token_ids,
        finish_reason=reason,
        stop_token_id=request.stop_token_id if reason == "stop" else None,
        num_cached_tokens=request.num_cached_tokens,
        **fields,
    )
