"""A live server whose model says what a test wants it to say, with a template that knows tools and reasoning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from roseinfer.cache.block_pool import BlockPool
from roseinfer.cache.prefix_cache import PrefixCache
from roseinfer.core.batch import ForwardInputs, UInt32Array
from roseinfer.core.messages import Grammar
from roseinfer.engine.client import EngineClient
from roseinfer.engine.engine import Engine
from roseinfer.inference_engine import InferenceEngine
from roseinfer.scheduler.scheduler import Scheduler
from roseinfer.text.chat_template import ChatTemplate
from tests.fake_model import EOS, VOCAB_SIZE, RecitingProgram, byte_tokenizer
from tests.server.live import serve

MAX_MODEL_LEN = 1024
# Hermes' calls and the usual tags around reasoning, without the words that real templates put around them.
TEMPLATE = """
{%- if tools %}tools: {{ tools | tojson }};{% endif %}
{%- for m in messages %}{{ m.role }}: {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}
{{- m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}
{%- if not loop.last or add_generation_prompt %};{% endif %}{% endfor %}
{%- if add_generation_prompt %}assistant: {% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"""
PROMPT = "user: Hello;assistant: "  # what it makes of a single Hello


class ScriptedProgram(RecitingProgram):
    """Says `script` behind every prompt, and fails where it comes to its character number `fails_at`."""

    def __init__(self) -> None:
        super().__init__()
        self.script = ""
        self.fails_at: int | None = None
        self._starts: dict[int, int] = {}  # of answers, by the first block of their requests

    def forward(self, inputs: ForwardInputs) -> None:
        super().forward(inputs)
        self._logits = np.full((len(inputs.logit_rows), VOCAB_SIZE), -30, dtype=np.float32)
        for logits, token in zip(self._logits, inputs.logit_rows, strict=True):
            logits[self._next_id(inputs, token)] = 4

    def _next_id(self, inputs: ForwardInputs, token: int) -> int:
        row = int(np.searchsorted(inputs.row_offsets, token, side="right")) - 1
        block, position = int(inputs.block_tables[row, 0]), int(inputs.positions[token])
        if inputs.row_offsets[row + 1] - inputs.row_offsets[row] > 1:  # a prompt's end
            self._starts[block] = position
        index = position - self._starts[block]
        if index == self.fails_at:
            raise RuntimeError("the script says so")
        script = self.script.encode()
        return script[index] if index < len(script) else EOS


class LenientGrammars:
    """Compiles everything, and everything satisfies it."""

    is_finished = False

    def submit(self, grammar: Grammar) -> Future[LenientGrammars]:
        future: Future[LenientGrammars] = Future()
        future.set_result(self)
        return future

    def start(self) -> LenientGrammars:
        return self

    def accept(self, token_id: int) -> None:
        pass

    def fill_mask(self, row: UInt32Array) -> None:
        row[:] = np.uint32(0xFFFFFFFF)

    def close(self) -> None:
        pass


@dataclass
class ScriptedServer:
    url: str
    engine: InferenceEngine
    program: ScriptedProgram

    def say(self, script: str) -> None:
        """What the model answers from now on."""
        self.program.script = script
        self.program.fails_at = None
        self.program.step_seconds = 0.0

    def fail_at(self, index: int) -> None:
        """Slowly enough that what comes before is read."""
        self.program.fails_at = index
        self.program.step_seconds = 0.01


def scripted_engine(program: ScriptedProgram) -> InferenceEngine:
    pool = BlockPool(4 * MAX_MODEL_LEN // 16, 16)
    scheduler = Scheduler(
        block_pool=pool,
        prefix_cache=PrefixCache(pool),
        max_batch_tokens=MAX_MODEL_LEN,
        max_running=4,
        max_model_len=MAX_MODEL_LEN,
    )
    grammars: Any = LenientGrammars()
    client = EngineClient(Engine(program, scheduler, grammars), (EOS,), max_queue=16)
    client.start()
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = ChatTemplate(TEMPLATE)
    info: Any = SimpleNamespace(name="scripted", max_model_len=MAX_MODEL_LEN, memory=program.memory())
    return InferenceEngine.from_parts(client, tokenizer, info)


@contextlib.contextmanager
def serving_script(*, api_keys: Sequence[str] = ()) -> Iterator[ScriptedServer]:
    program = ScriptedProgram()
    with scripted_engine(program) as engine, serve(engine, api_keys=api_keys) as url:
        yield ScriptedServer(url, engine, program)
