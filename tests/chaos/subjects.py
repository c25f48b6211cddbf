"""What the determinism check runs: models of every architecture and weight format, compiled for one thread and two."""

from __future__ import annotations

import random
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from roseinfer.backends import Program, compile_program
from roseinfer.backends.native import _native
from roseinfer.checkpoints import open_checkpoint
from roseinfer.constraints import CompiledGrammar, GrammarCompiler, TokenTable
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import Grammar
from roseinfer.models import Model, load_model
from roseinfer.quant import format_names
from roseinfer.text import load_tokenizer
from tests.constraints.walker import byte_table, table_of
from tests.variants import KV_DTYPES, MAX_STEP_TOKENS, Variant

REAL = Variant("smollm2-135m", kv_dtype="bfloat16")
ARCHITECTURES = [
    Variant("llama"),
    Variant("mistral", kv_dtype="float32"),
    Variant("qwen2", kv_dtype="q8"),
    Variant("qwen3", kv_dtype="bfloat16"),
    Variant("gemma3"),
    Variant("gemma3", kv_dtype="q8"),
    Variant("gpt2", kv_dtype="float32"),
    Variant("torch-file"),
    Variant("gguf-qwen2-rope-yarn"),
    Variant("gguf-gemma3-q5_0", kv_dtype="bfloat16"),
]
DTYPES = [
    Variant(name, dtype)
    for name, dtype in (
        ("gemma3", "bfloat16"),
        ("gpt2", "float16"),
        ("torch-file-bf16", "bfloat16"),
        ("format-q4_k", "float32"),
        ("format-q8_0", "float32"),
    )
]
LOWER_ISAS = [
    Variant("format-q4_1", isa=isa)
    for isa in _native.available_isas()
    if isa not in ("scalar", _native.isa("auto"))  # scalar takes a hundred times as long
]


def tiny_variants() -> list[Variant]:
    """In an order that has some of each kind among the first."""
    formats = [Variant(f"format-{name}", kv_dtype=KV_DTYPES[i % 4]) for i, name in enumerate(format_names())]
    variants = [*ARCHITECTURES, *formats, *DTYPES, *LOWER_ISAS]
    return random.Random(0).sample(variants, len(variants))


@dataclass
class Subject:
    """A variant's programs, for any number of engines one after the other, and its grammars."""

    variant: Variant
    model: Model
    table: TokenTable
    max_step_tokens: int  # of the programs; a schedule's may be smaller
    _programs: dict[int, Program] = field(default_factory=dict)

    @property
    def eos_id(self) -> int:
        return self.table.eos_ids[0]

    @property
    def vocab_size(self) -> int:
        return self.model.graph.vocab_size

    @property
    def max_model_len(self) -> int:
        return self.model.max_model_len

    @cached_property
    def compiler(self) -> GrammarCompiler:
        return GrammarCompiler(lambda: self.table)

    def program(self, num_threads: int) -> Program:
        if num_threads not in self._programs:
            options = self.variant.options(num_threads, self.max_step_tokens)
            graph, weights = self.model.graph, self.model.weights
            self._programs[num_threads] = compile_program("native", graph, weights, options)
        return self._programs[num_threads]

    def close(self) -> None:
        for program in self._programs.values():
            program.close()
        self.compiler.close()


class SubjectMaker:
    """Builds models in `folder`, each once; `real_model` is the file that stands for `REAL`."""

    def __init__(self, folder: Path, real_model: Path) -> None:
        self._folder = folder
        self._real_model = real_model
        self._models: dict[str, tuple[Model, TokenTable]] = {}

    def make(self, variant: Variant) -> Subject:
        is_real = variant == REAL
        if variant.name not in self._models:
            self._models[variant.name] = _load_real(self._real_model) if is_real else self._load_tiny(variant.name)
        return Subject(variant, *self._models[variant.name], max_step_tokens=128 if is_real else MAX_STEP_TOKENS)

    def _load_tiny(self, name: str) -> tuple[Model, TokenTable]:
        with open_checkpoint(build_tiny(name, self._folder / name)) as checkpoint:
            model = load_model(checkpoint)
        words = (b"the", b"and ", b'{"', b'":', b"aa", b"abc")
        return model, byte_table(*words, vocab_size=model.graph.vocab_size)


def build_tiny(name: str, folder: Path) -> Path:
    from transformers.utils.logging import disable_progress_bar  # takes seconds to import

    from tests.tiny_models import WIDE, GGUFRecipe, build, build_gguf

    disable_progress_bar()  # type: ignore[no-untyped-call]
    if not name.startswith("format-"):
        return build(name, folder).path
    # Rows of 256 for the K-quants, four query heads per KV head.
    settings = WIDE | {"head_dim": 32, "num_attention_heads": 8}
    return build_gguf(GGUFRecipe("llama", "llama", settings, name.removeprefix("format-")), folder).path


def _load_real(path: Path) -> tuple[Model, TokenTable]:
    with open_checkpoint(path) as checkpoint:
        model = load_model(checkpoint)
        return model, table_of(load_tokenizer(checkpoint), model.graph.vocab_size)


class SteppedGrammars:
    """An engine's compiler whose grammars are ready after so many steps, and not when a thread comes to it.

    So a run depends on nothing but its seed.
    """

    def __init__(self, compiler: GrammarCompiler, rng: random.Random) -> None:
        self._compiler = compiler
        self._rng = rng
        self._coming: list[tuple[int, Grammar, Future[CompiledGrammar]]] = []  # after how many steps

    def submit(self, grammar: Grammar) -> Future[CompiledGrammar]:
        future: Future[CompiledGrammar] = Future()
        self._coming.append((self._rng.choice([0, 0, 1, 5]), grammar, future))
        return future

    def tick(self) -> None:
        """Before each step."""
        for num_steps, grammar, future in self._coming:
            if num_steps == 0 and future.set_running_or_notify_cancel():
                self._fulfil(grammar, future)
        self._coming = [(count - 1, grammar, future) for count, grammar, future in self._coming if count > 0]

    def _fulfil(self, grammar: Grammar, future: Future[CompiledGrammar]) -> None:
        try:
            future.set_result(self._compiler.compile(grammar))
        except InvalidRequestError as error:
            future.set_exception(error)

    def close(self) -> None:
        """The compiler is somebody else's."""
