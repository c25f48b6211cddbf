"""What the native program refuses, what it can be compiled for, and what it says about its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from roseinfer.backends import Program
from roseinfer.backends.native import NativeProgram, _native
from roseinfer.backends.native.compiler import kv_block_bytes
from roseinfer.checkpoints import open_checkpoint
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.batch import ForwardInputs
from roseinfer.core.errors import ConfigError, DeviceError, UnsupportedModelError
from roseinfer.graph import AttentionSpec, Graph
from roseinfer.models import Model, load_model
from tests import tiny_models
from tests.harness import (
    OPTIONS,
    Driver,
    Row,
    compile_model,
    log_softmax,
    teacher_forced_logits,
    with_options,
)
from tests.tiny_models import TinyModel

SMALL = with_options(num_blocks=6, max_batch_tokens=48, max_logit_rows=20)
TOKEN_IDS = np.random.default_rng(2).integers(0, tiny_models.VOCAB_SIZE, 200).tolist()
INT32_MAX = 2**31 - 1


@pytest.fixture(scope="module")
def load(tiny_model: Callable[[str], TinyModel]) -> Callable[[str], Model]:
    return lambda name: load_model(open_checkpoint(tiny_model(name).path))


@pytest.fixture(scope="module")
def program(load: Callable[[str], Model]) -> Program:
    """gpt2, because its positions end. One for all tests: no refusal may leave a trace."""
    return compile_model("native", load("gpt2"), SMALL)


def good_inputs() -> ForwardInputs:
    """Rows of 20 and 5 tokens at positions 0 and 30, in blocks of their own."""
    return ForwardInputs(
        token_ids=np.arange(25, dtype=np.int32),
        positions=np.concatenate([np.arange(20), np.arange(30, 35)]).astype(np.int32),
        row_offsets=np.array([0, 20, 25], dtype=np.int32),
        block_tables=np.array([[4, 1, -1], [5, 2, 3]], dtype=np.int32),
        logit_rows=np.array([3, 19, 24], dtype=np.int32),
    )


def changed(name: str, index: int | tuple[int, ...], value: int) -> dict[str, np.ndarray]:
    array = getattr(good_inputs(), name).copy()
    array[index] = value
    return {name: array}


def int32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


BAD_INPUTS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "token id below the vocabulary": (changed("token_ids", 7, -1), "outside the vocabulary"),
    "token id above the vocabulary": (changed("token_ids", 24, tiny_models.VOCAB_SIZE), "outside the vocabulary"),
    "huge token id": (changed("token_ids", 0, INT32_MAX), "outside the vocabulary"),
    "position skipped": (changed("positions", 5, 6), "not consecutive"),
    "position repeated": (changed("positions", 24, 33), "not consecutive"),
    "negative position": ({"positions": int32(*range(-1, 19), *range(30, 35))}, "outside the model"),
    "position above the model": (
        {"positions": int32(*range(20), *range(508, 513)), "block_tables": np.ones((2, 33), dtype=np.int32)},
        "outside the model",
    ),
    "huge position": (
        {"positions": int32(*range(20), *range(INT32_MAX - 4, INT32_MAX), INT32_MAX)},
        "outside the model",
    ),
    "position behind the table": ({"positions": int32(*range(20), *range(44, 49))}, "behind the block table"),
    "no block": (changed("block_tables", (0, 1), -1), "outside the KV cache"),
    "block above the pool": (changed("block_tables", (1, 0), 6), "outside the KV cache"),
    "huge block": (changed("block_tables", (1, 2), INT32_MAX), "outside the KV cache"),
    "fewer positions": ({"positions": int32(*range(20))}, "differ in length"),
    "more positions": ({"positions": int32(*range(30))}, "differ in length"),
    "row without tokens": (
        {"row_offsets": int32(0, 20, 20, 25), "block_tables": np.zeros((3, 3), dtype=np.int32)},
        "no tokens",
    ),
    "rows that overlap": (
        {"row_offsets": int32(0, 22, 20, 25), "block_tables": np.zeros((3, 3), dtype=np.int32)},
        "no tokens|not consecutive",
    ),
    "rows that start late": ({"row_offsets": int32(1, 20, 25)}, "do not cover"),
    "rows that end early": ({"row_offsets": int32(0, 20, 24)}, "do not cover"),
    "rows that end late": ({"row_offsets": int32(0, 20, 26)}, "do not cover"),
    "fewer tables than rows": ({"block_tables": np.zeros((1, 3), dtype=np.int32)}, "do not cover"),
    "more tables than rows": ({"block_tables": np.zeros((3, 3), dtype=np.int32)}, "do not cover"),
    "empty offsets": ({"row_offsets": int32()}, "do not cover"),
    "logit row outside": (changed("logit_rows", 2, 25), "logit row"),
    "negative logit row": (changed("logit_rows", 0, -1), "logit row"),
    "more logits than compiled for": ({"logit_rows": np.arange(21, dtype=np.int32)}, "larger than the program"),
    "more tokens than compiled for": (
        {
            "token_ids": np.zeros(49, dtype=np.int32),
            "positions": np.arange(49, dtype=np.int32),
            "row_offsets": int32(0, 49),
            "block_tables": int32(0, 1, 2, 3)[None],
        },
        "larger than the program",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_a_bad_step_is_refused_and_leaves_no_trace(
    program: Program, changes: dict[str, np.ndarray], message: str
) -> None:
    program.forward(good_inputs())
    before = program.logits()
    with pytest.raises(ValueError, match=message):
        program.forward(replace(good_inputs(), **changes))
    np.testing.assert_array_equal(program.logits(), before)
    program.forward(good_inputs())
    np.testing.assert_array_equal(program.logits(), before)


def test_rows_that_run_past_the_tokens_are_never_read(program: Program) -> None:
    """The token ids behind `num_tokens` may not even be mapped."""
    for behind in (26, 5000, INT32_MAX):
        offsets = int32(0, behind, 25)
        with pytest.raises(ValueError, match=r"row_offsets|no tokens"):
            program.forward(replace(good_inputs(), row_offsets=offsets))


@pytest.mark.parametrize("name", ["token_ids", "positions", "row_offsets", "block_tables", "logit_rows"])
def test_arrays_of_another_shape_are_refused(program: Program, name: str) -> None:
    array = getattr(good_inputs(), name)
    with pytest.raises(TypeError):
        program.forward(replace(good_inputs(), **{name: array[None]}))
    program.forward(good_inputs())


def test_a_step_that_fills_the_program_exactly(program: Program) -> None:
    program.forward(
        ForwardInputs(
            token_ids=np.zeros(48, dtype=np.int32),
            positions=np.arange(464, 512, dtype=np.int32),
            row_offsets=int32(0, 48),
            block_tables=np.array([[0] * 29 + [1, 2, 3]], dtype=np.int32),
            logit_rows=np.arange(28, 48, dtype=np.int32),
        )
    )
    assert np.isfinite(program.logits()).all()


def test_a_step_without_logits(program: Program) -> None:
    program.forward(replace(good_inputs(), logit_rows=int32()))
    assert program.logits().shape == (0, tiny_models.VOCAB_SIZE)


def test_logit_rows_are_the_rows_asked_for(program: Program) -> None:
    program.forward(replace(good_inputs(), logit_rows=np.arange(5, 25, dtype=np.int32)))
    most = program.logits()
    program.forward(replace(good_inputs(), logit_rows=int32(5, 17, 24)))
    np.testing.assert_array_equal(program.logits(), most[[0, 12, 19]])


# -- compiling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ["avx1024", "", "neon"])
def test_an_unknown_isa_is_a_device_error(load: Callable[[str], Model], isa: str) -> None:
    with pytest.raises(DeviceError, match="scalar"):
        compile_model("native", load("llama"), with_options(isa=isa))


@pytest.mark.parametrize("isa", _native.available_isas())
def test_the_isa_asked_for_is_the_one_that_runs(load: Callable[[str], Model], isa: str) -> None:
    """Levels agree closely, but not to the bit, which shows that they are not all the same one."""
    model = load("llama")
    program = compile_model("native", model, with_options(isa=isa))
    assert isinstance(program, NativeProgram)
    assert program.isa == isa
    logits = teacher_forced_logits(program, TOKEN_IDS, [200])
    scalar = teacher_forced_logits(compile_model("native", model, with_options(isa="scalar")), TOKEN_IDS, [200])
    np.testing.assert_allclose(logits, scalar, rtol=1e-3, atol=1e-3)
    assert np.array_equal(logits, scalar) == (isa == "scalar")


@pytest.mark.parametrize("block_size", [1, 8, 32])
def test_another_block_size_is_a_config_error(load: Callable[[str], Model], block_size: int) -> None:
    with pytest.raises(ConfigError, match=f"block_size must be 16 .*, got {block_size}"):
        compile_model("native", load("llama"), with_options(block_size=block_size))


def attention_graph(head_dim: int) -> tuple[Graph, dict[str, Tensor]]:
    graph = Graph()
    x = graph.embedding("token_embd", 4, head_dim)
    a = graph.attention(x, x, x, AttentionSpec(0, 1, 1, head_dim, 0.1))
    graph.logits(graph.take_logit_rows(a), "token_embd", 4)
    values = np.random.default_rng(1).normal(0, 1, (4, head_dim)).astype(np.float32)
    return graph, {"token_embd.weight": Tensor.from_numpy("token_embd.weight", values)}


@pytest.mark.parametrize("head_dim", [1, 3, 16, 100, 255, 256])
def test_heads_of_any_width_up_to_256(head_dim: int) -> None:
    graph, weights = attention_graph(head_dim)
    model = Model("handmade", None, graph, weights, 512, ())  # type: ignore[arg-type]
    token_ids = [0, 3, 1, 2, 2, 0, 1] * 5
    native, plain = (
        teacher_forced_logits(compile_model(backend, model), token_ids, [18]) for backend in ("native", "torch")
    )
    np.testing.assert_allclose(native, plain, rtol=1e-4, atol=1e-4)


def test_wider_heads_are_unsupported() -> None:
    graph, weights = attention_graph(257)
    with pytest.raises(UnsupportedModelError, match="head_dim 257 is above 256"):
        compile_model("native", Model("handmade", None, graph, weights, 512, ()))  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "max_difference"), [("bfloat16", 0.5), ("float16", 0.05)])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_float32_weights_in_half_precision_are_near(
    load: Callable[[str], Model], name: str, dtype: str, max_difference: float
) -> None:
    model = load(name)
    exact, rounded = (compile_model("native", model, with_options(dtype=d)) for d in ("float32", dtype))
    assert 0.4 < rounded.memory()["weights"] / exact.memory()["weights"] < 0.6
    expected, got = (log_softmax(teacher_forced_logits(p, TOKEN_IDS, [200])) for p in (exact, rounded))
    difference = np.abs(got - expected)
    assert 0 < difference.mean() < difference.max() / 3
    assert difference.max() < max_difference * np.abs(expected).max()
    assert (got.argmax(-1) == expected.argmax(-1)).mean() > 0.9


def test_weights_that_the_dtype_cannot_hold_are_a_config_error() -> None:
    graph, weights = attention_graph(16)
    huge = np.full((4, 16), 1e5, dtype=np.float32)
    weights = {"token_embd.weight": Tensor.from_numpy("token_embd.weight", huge)}
    model = Model("handmade", None, graph, weights, 512, ())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"token_embd\.weight .* float16 cannot hold"):
        compile_model("native", model, with_options(dtype="float16"))
    compile_model("native", model, with_options(dtype="bfloat16"))


def test_dtype_leaves_quantised_weights_alone(load: Callable[[str], Model]) -> None:
    model = load("gguf-llama-q4_k")
    sizes = {compile_model("native", model, with_options(dtype=d)).memory()["weights"] for d in ("auto", "float16")}
    assert len(sizes) == 1


# -- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gguf-llama-q8_0", "gguf-llama-q4_k", "gemma3", "torch-file"])
def test_memory_counts_weights_once(load: Callable[[str], Model], name: str) -> None:
    """Matrices as packed: rows padded to sixteen, and blocks no larger than in the file but for their scales."""
    model = load(name)
    matrices = [t for t in model.weights.values() if len(t.shape) == 2]
    in_file = sum(tensor.data.nbytes for tensor in matrices)
    weights = compile_model("native", model).memory()["weights"]
    assert in_file <= weights <= 1.3 * in_file


@pytest.mark.parametrize(
    ("kv_dtype", "item_size", "scale_size"),
    [("float16", 2, 0), ("bfloat16", 2, 0), ("float32", 4, 0), ("q8", 1, 4)],
    ids=["float16", "bfloat16", "float32", "q8"],
)
@pytest.mark.parametrize("name", ["llama", "gemma3", "llama-head-dim"])
def test_memory_counts_the_kv_cache(
    load: Callable[[str], Model], name: str, kv_dtype: str, item_size: int, scale_size: int
) -> None:
    model = load(name)
    specs = model.graph.attention_specs
    # Heads here are whole registers; int8 has a scale for each token's key and value of a head.
    token_bytes = sum(2 * spec.num_kv_heads * (spec.head_dim * item_size + scale_size) for spec in specs)
    memory = compile_model("native", model, with_options(kv_dtype=kv_dtype)).memory()
    assert kv_block_bytes(specs, kv_dtype) == token_bytes * 16
    assert memory["kv_cache"] == OPTIONS.num_blocks * kv_block_bytes(specs, kv_dtype)


def test_memory_of_activations_grows_with_the_step(load: Callable[[str], Model]) -> None:
    """Buffers share memory: far fewer bytes than all values of the graph side by side."""
    model = load("llama")
    sizes = [with_options(max_batch_tokens=n, max_logit_rows=4) for n in (64, 512)]
    small, large = (compile_model("native", model, options).memory()["activations"] for options in sizes)
    widest = max(op.output.width for op in model.graph.ops if op.output.rows == "tokens")
    everything = sum(op.output.width for op in model.graph.ops) * 512 * 4
    assert 512 * widest * 4 <= large < everything / 4
    assert 4 * tiny_models.VOCAB_SIZE * 4 <= small < large


def test_what_was_left_in_the_kv_memory_does_not_matter(load: Callable[[str], Model]) -> None:
    """Also inside a block's last slots, and in the padding of a register."""
    program = compile_model("native", load("gemma3"), with_options(kv_dtype="float16"))
    fresh = teacher_forced_logits(program, TOKEN_IDS[:37], [37])
    driver = Driver(program)
    for number in range(3):
        driver.step([Row([(t + number) % tiny_models.VOCAB_SIZE for t in TOKEN_IDS])], [200])
    np.testing.assert_array_equal(teacher_forced_logits(program, TOKEN_IDS[:37], [5, 1]), fresh)


def test_memory_the_system_does_not_grant(load: Callable[[str], Model]) -> None:
    with pytest.raises(ConfigError, match="kv_cache_memory"):
        compile_model("native", load("llama"), with_options(num_blocks=INT32_MAX, max_batch_tokens=2**20))
