"""A whole engine of bytes — chat template, grammars, prefix cache — and a live server around any engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from roseinfer.cache.block_pool import BlockPool
from roseinfer.cache.prefix_cache import PrefixCache
from roseinfer.constraints import GrammarCompiler, TokenTable
from roseinfer.engine.client import EngineClient
from roseinfer.engine.engine import Engine
from roseinfer.inference_engine import InferenceEngine
from roseinfer.scheduler.scheduler import Scheduler
from roseinfer.text import Tokenizer
from roseinfer.text.chat_template import ChatTemplate
from roseinfer.text.vocabulary import Vocabulary
from tests.fake_model import BOS, EOS, MAX_MODEL_LEN, VOCAB_SIZE, RecitingProgram

MAX_RUNNING = 64
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}{{ extra }}"
)
TOOL_TEMPLATE = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call>{% endif %}" + TEMPLATE


class PlainByteEncoder:
    """Nothing in a text is a special token."""

    def encode(self, text: str, parse_special: bool) -> list[int]:
        return list(text.encode())

    def encode_after_token(self, text: str) -> list[int]:
        return list(text.encode())


def token_bytes(token_id: int) -> bytes:
    return {EOS: b"<eos>", BOS: b"<bos>"}.get(token_id) or bytes([token_id])


def make_tokenizer(template: str) -> Tokenizer:
    """One token per byte; a text begins with BOS."""
    return Tokenizer(
        PlainByteEncoder(),
        Vocabulary(VOCAB_SIZE, token_bytes, special_ids=(EOS, BOS)),
        bos_id=BOS,
        eos_ids=(EOS,),
        pad_id=None,
        prefix_ids=(BOS,),
        add_prefix=True,
        strip_space=False,
        max_token_chars=1,
        chat_template=ChatTemplate(template),
    )


def byte_engine(
    program: RecitingProgram | None = None,
    *,
    name: str = "bytes",
    template: str = TEMPLATE,
    max_running: int = MAX_RUNNING,
) -> InferenceEngine:
    """A running engine, to be closed by the caller."""
    pool = BlockPool(MAX_RUNNING * MAX_MODEL_LEN // 16, 16)
    scheduler = Scheduler(
        block_pool=pool,
        prefix_cache=PrefixCache(pool),
        max_batch_tokens=256,
        max_running=max_running,
        max_model_len=MAX_MODEL_LEN,
        max_logit_rows=2 * MAX_RUNNING,
    )
    tokens = [token_bytes(token_id) for token_id in range(VOCAB_SIZE)]
    table = TokenTable(tokens, frozenset((EOS, BOS)), (EOS,), VOCAB_SIZE)
    engine = Engine(program or RecitingProgram(), scheduler, GrammarCompiler(lambda: table))
    client = EngineClient(engine, (EOS,))
    client.start()
    info: Any = SimpleNamespace(name=name, max_model_len=MAX_MODEL_LEN, memory=RecitingProgram().memory())
    return InferenceEngine.from_parts(client, make_tokenizer(template), info)
