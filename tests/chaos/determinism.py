"""R11: an answer is the same bits whatever happens beside it and to it.

A case is a model, thirty requests of every kind and a schedule, all drawn from (seed, number of the case). Each request
is answered alone (one chunk, one thread, no cache), and then among the others: in batches and chunks of any size,
behind prefixes of others, preempted for want of blocks, resubmitted to a new engine after a death at a random step, on
one thread or two, while others come and are aborted. Tokens, logprobs, likeliest tokens, the prompt's logprobs and how
it ended must be equal to the bit.

    python -m tests.chaos.determinism --seed 0 --sequences 10000
    python -m tests.chaos.determinism --seed 0 --case 17    # one of them again
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from roseinfer.core.messages import AddRequest
from tests.chaos.answer import Answer
from tests.chaos.any_request import RequestMaker
from tests.chaos.model_file import file_of
from tests.chaos.result import Figure, Result, Scale, Settings
from tests.chaos.session import Schedule, Session
from tests.chaos.subjects import REAL, Subject, SubjectMaker, tiny_variants
from tests.variants import BLOCK_SIZE, NUM_BLOCKS, Variant

SHAPES = ((300, 16), (100, 32), (30, 64))  # most tokens of prompts and of answers
CAUSES = (
    "batched",
    "chunked",
    "cached",
    "preempted",
    "restarted",
    "restarted with its cache",
    "1 threads",
    "2 threads",
    "beside an abort",
)
MAX_NOTES = 5
MIN_SHARE = 0.05  # of all sequences that each cause must have touched, else the figure says nothing


@dataclass(frozen=True)
class Difference:
    case: Case
    request: AddRequest
    text: str

    def __str__(self) -> str:
        case = self.case
        return (
            f"{case.variant}, request {self.request.request_id}: {self.text}\n"
            f"  again: python -m tests.chaos.determinism --seed {case.seed} --case {case.number}\n"
            f"  or, if it needs what earlier cases left in memory, without --case\n"
            f"  {case.schedule}\n  {self.request!r:.1000}"
        )


@dataclass
class Tally:
    """What was compared, and what came of it."""

    num_sequences: int = 0  # that came to their end; aborted ones are compared as far as they got
    num_aborted: int = 0
    num_tokens: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    variants: Counter[Variant] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    def missing_causes(self) -> list[str]:
        """That too few sequences were touched by."""
        return [cause for cause in CAUSES if self.causes[cause] < MIN_SHARE * self.num_sequences]


class Case:
    """All that belongs to one (seed, number)."""

    def __init__(self, seed: int, number: int) -> None:
        self.seed = seed
        self.number = number
        self._rng = random.Random(f"{seed}/{number}")
        self.variant = _variant_of(number)

    def check(self, subject: Subject, tally: Tally) -> None:
        requests = self._requests(subject)
        self.schedule = self._schedule(subject, requests)
        session = Session(subject, self.schedule, self._rng)
        session.run(requests)
        for request in requests:
            answer = session.answers[request.request_id]
            self._count(tally, answer, session.causes[request.request_id])
            difference = answer.difference(answer_alone(subject, request))
            if difference is not None:
                tally.differences.append(Difference(self, request, difference))

    def _requests(self, subject: Subject) -> list[AddRequest]:
        max_prompt_tokens, max_new_tokens = SHAPES[self.number % len(SHAPES)]
        maker = RequestMaker(
            self._rng,
            vocab_size=subject.vocab_size,
            eos_id=subject.eos_id,
            max_prompt_tokens=min(max_prompt_tokens, subject.max_step_tokens),
            max_new_tokens=max_new_tokens,
        )
        return maker.make(16 if self.variant == REAL else 32)

    def _schedule(self, subject: Subject, requests: Sequence[AddRequest]) -> Schedule:
        rng, limit = self._rng, subject.max_step_tokens
        longest = max(len(request.prompt_ids) + request.max_tokens for request in requests)
        least = -(-(longest + 1) // BLOCK_SIZE)
        return Schedule(
            max_batch_tokens=min(limit, rng.choice([5, 16, 33, 64, 200, 512])),
            max_chunk_tokens=rng.choice([1, 7, 16, 50, 64, None, None, None]),
            max_running=rng.choice([2, 7, 32]),
            num_blocks=rng.choice([least, least, least + 3, 2 * least, NUM_BLOCKS]),
            use_prefix_cache=rng.random() < 0.75,
            num_score_rows=rng.choice([0, 10, 512]),
            threads=(1, 2),
            arrivals_per_step=rng.choice([1, 3, 32]),
            abort_rate=rng.choice([0.0, 0.02, 0.05]),
            restart_rate=rng.choice([0.0, 0.01, 0.05]),
        )

    def _count(self, tally: Tally, answer: Answer, causes: set[str]) -> None:
        if answer.is_aborted:
            tally.num_aborted += 1
            return
        tally.num_sequences += 1
        tally.num_tokens += len(answer.token_ids)
        tally.causes.update(causes)
        tally.variants[self.variant] += 1


def answer_alone(subject: Subject, request: AddRequest) -> Answer:
    """The reference."""
    alone = Session(subject, Schedule(max_batch_tokens=subject.max_step_tokens), random.Random(0))
    alone.run([request])
    return alone.answers[request.request_id]


def _variant_of(number: int) -> Variant:
    """Every tenth case is the real model's."""
    tiny = tiny_variants()
    return REAL if number % 10 == 9 else tiny[(number - number // 10) % len(tiny)]


def check_cases(seed: int, numbers: Iterable[int], num_sequences: int, real_model: Path) -> Tally:
    """Cases until so many sequences have been compared."""
    tally = Tally()
    subjects: dict[Variant, Subject] = {}
    with tempfile.TemporaryDirectory() as folder:
        maker = SubjectMaker(Path(folder), real_model)
        for number in numbers:
            case = Case(seed, number)
            if case.variant not in subjects:
                subjects[case.variant] = maker.make(case.variant)
            case.check(subjects[case.variant], tally)
            if tally.num_sequences >= num_sequences:
                break
    for subject in subjects.values():
        subject.close()
    return tally


def run(settings: Settings, scale: Scale) -> Result:
    """Ours alone: the check looks into the engine. `settings.model` stands for the real model."""
    num_sequences = scale.pick(300, 10_000)
    return check_result(0, itertools.count(), num_sequences, file_of(settings.model))


def check_result(seed: int, numbers: Iterable[int], num_sequences: int, real_model: Path) -> Result:
    with _calm_log():
        tally = check_cases(seed, numbers, num_sequences, real_model)
    missing = tally.missing_causes()
    figures: dict[str, Figure] = {
        "sequences": tally.num_sequences,
        "differences": len(tally.differences),
        "aborted": tally.num_aborted,
        "tokens": tally.num_tokens,
        "models": len(tally.variants),
        "of the real model": tally.variants[REAL],
        **{cause: tally.causes[cause] for cause in CAUSES},
    }
    notes = [str(difference) for difference in tally.differences[:MAX_NOTES]]
    notes += [f"too few sequences were touched by: {', '.join(missing)}"] if missing else []
    return Result("R11", "determinism", figures, not tally.differences and not missing, notes)


@contextmanager
def _calm_log() -> Iterator[None]:
    """Some requests forbid every token, which is their end and worth a line of the engine's log each time."""
    logger = logging.getLogger("roseinfer")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws requests and schedules, and compares answers bit for bit.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sequences", type=int, default=10_000, help="how many to compare")
    parser.add_argument("--case", type=int, help="only the case of this number")
    parser.add_argument("--model", default="smollm2-135m", help="the real model among the tiny ones")
    args = parser.parse_args()
    numbers = itertools.count() if args.case is None else [args.case]
    result = check_result(args.seed, numbers, args.sequences, file_of(args.model))
    print(result.figures, *result.notes, sep="\n")
    sys.exit(1 if result.figures["differences"] else 0)


if __name__ == "__main__":
    main()
