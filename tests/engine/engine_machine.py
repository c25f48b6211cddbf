"""Any requests in any order, each of which must get what it gets alone."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from roseinfer.core.messages import AddRequest
from roseinfer.engine.engine import Engine
from tests.engine.workloads import SHARED
from tests.fake_engine import make_request
from tests.fake_grammars import BAD_GRAMMAR, FakeCompiler, hashed_grammar
from tests.full_engine import FullTranscript, make_full_engine, make_full_scheduler, run_fully_alone

PROMPTS = st.tuples(
    st.sampled_from([SHARED, SHARED[:9] + SHARED, [1] * 30]),
    st.integers(0, 24),
    st.lists(st.integers(0, 49), max_size=6),
).map(lambda parts: [*parts[0][: parts[1]], *parts[2]] or [0])


IDS = st.lists(st.integers(0, 49), max_size=3)
ALLOWED_IDS = st.lists(st.integers(0, 49), min_size=4, max_size=40)
MACHINE_WISHES = st.fixed_dictionaries(
    {},
    optional={
        "min_tokens": st.integers(0, 6),
        "presence_penalty": st.sampled_from([-1.0, 2.0]),
        "frequency_penalty": st.sampled_from([-0.5, 1.5]),
        "repetition_penalty": st.sampled_from([0.8, 1.6]),
        "logit_bias": st.dictionaries(st.integers(0, 49), st.sampled_from([-100.0, 5.0]), max_size=3),
        "bad_words_ids": st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=2), max_size=30),
        "allowed_token_ids": ALLOWED_IDS,
        "num_prompt_logprobs": st.integers(0, 2),
        "grammar": st.builds(
            hashed_grammar,
            st.integers(1, 12),
            fails_in=st.sampled_from(["", "", "mask", "accept"]),
            fails_at=st.integers(0, 8),
        )
        | st.just(BAD_GRAMMAR),
        "priority": st.integers(-1, 1),
        "cache_salt": st.sampled_from(["a", "b"]),
    },
)


SETTINGS = settings(max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
LIMITS: dict[str, Any] = {
    "num_blocks": st.integers(1, 40),
    "block_size": st.sampled_from([1, 2, 4, 8]),
    "max_batch_tokens": st.integers(1, 40),
    "max_running": st.integers(1, 6),
    "max_chunk_tokens": st.none() | st.integers(1, 20),
    "use_prefix_cache": st.booleans(),
    "num_score_rows": st.integers(0, 20),
}


class EngineMachine(RuleBasedStateMachine):
    """Requests come, go and are aborted while steps run, in pools from roomy to barely enough.

    `bad_tokens`: the fake program's `nan_token` and `poison_token`, where it has them.
    """

    bad_tokens: ClassVar[dict[str, int]] = {}

    @initialize(**LIMITS)
    def start(self, **options: Any) -> None:
        self.scheduler = make_full_scheduler(max_model_len=48, **options)
        self.compiler = FakeCompiler(is_slow=True)
        self.engine = self.make_engine()
        self.program = self.engine._program
        self.requests: dict[str, AddRequest] = {}
        self.aborted: set[str] = set()
        self.transcript = FullTranscript()

    def make_engine(self) -> Engine:
        return make_full_engine(self.scheduler, self.compiler)

    def progress(self) -> int:
        """Grows as long as something is done."""
        return self.program.num_tokens

    @rule(
        prompt_ids=PROMPTS,
        max_tokens=st.integers(0, 30),
        temperature=st.sampled_from([0.0, 0.7]),
        seed=st.integers(0, 3),
        stop_token_ids=st.lists(st.integers(0, 49), max_size=3),
        num_logprobs=st.integers(-1, 2),
        wishes=st.just({}) | MACHINE_WISHES,
        tenant=st.sampled_from(["", "a", "b"]),
    )
    def add(self, wishes: dict[str, Any], **fields: Any) -> None:
        request = make_request(f"r{len(self.requests)}", **fields, **wishes)
        self.requests[request.request_id] = request
        self.engine.add(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        self.aborted.add(request_id)
        self.engine.abort(request_id)

    @rule(count=st.integers(1, 3))
    def compile(self, count: int) -> None:
        self.compiler.finish(count)

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._step()

    def _step(self) -> None:
        has_work, progress = self.engine.has_work, self.progress()
        outputs = self.engine.step().outputs
        self.transcript.add(outputs)
        assert bool(outputs or self.progress() > progress) == has_work, "no progress"
        self.scheduler.check()

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.compiler.finish()
        for _ in range(5000):
            if not self.engine.has_work:
                break
            self._step()
        assert not self.engine.has_work
        stats = self.engine.stats()
        assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_total_blocks
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        for request in self.requests.values():
            self._check_result(request)

    def _check_result(self, request: AddRequest) -> None:
        end = self.transcript.ends[request.request_id]
        if end.finish_reason == "abort":
            assert request.request_id in self.aborted
        elif len(request.prompt_ids) >= self.engine.max_model_len:
            assert end.finish_reason == "error"
            assert end.error_param == "prompt"
            assert str(len(request.prompt_ids)) in (end.error or "")
        else:
            alone = run_fully_alone(request, max_model_len=self.engine.max_model_len, **self.bad_tokens)
            assert self.transcript.result(request.request_id) == alone


EngineMachine.TestCase.settings = SETTINGS
