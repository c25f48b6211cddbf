"""Models of well-known shapes and random weights, in memory or as a checkpoint, and the sizes that they are run at.

Tensors of one shape share their bytes on the host; on the device every one has its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from roseinfer.backends.cuda import choose_kv_dtype
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.graph import Graph
from roseinfer.graph.graph import Attention, Linear
from roseinfer.models import Model, ModelConfig, gpt2, llama
from roseinfer.models._rope import plain_rope
from roseinfer.quant import get_format

POOL_VALUES = 1 << 18  # distinct weights of a format, about
NORM_EPS = 1e-5
ROPE_BASE = 500_000.0
MAX_POSITIONS = 8192


def llama_shape(
    *, layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, is_tied: bool
) -> llama.Config:
    return llama.Config(
        vocab_size=vocab,
        hidden_size=hidden,
        ffn_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        max_positions=MAX_POSITIONS,
        norm_eps=NORM_EPS,
        rope=plain_rope(ROPE_BASE, hidden // heads),
        windows=(None,) * layers,
        is_tied=is_tied,
        has_qkv_bias=False,
        has_attention_output_bias=False,
        has_mlp_bias=False,
    )


def gpt2_shape(*, layers: int, hidden: int, heads: int, vocab: int, positions: int) -> gpt2.Config:
    return gpt2.Config(
        vocab_size=vocab,
        max_positions=positions,
        hidden_size=hidden,
        ffn_size=4 * hidden,
        num_layers=layers,
        num_heads=heads,
        activation="gelu_tanh",
        is_tied=True,
    )


@dataclass(frozen=True)
class Sizes:
    """What is run, and how much of it."""

    decoder: llama.Config  # for decode and start
    quantised: llama.Config
    stack: Callable[[int], llama.Config]  # by its layers, for prefill
    stack_layers: int
    gpt2: gpt2.Config
    copy_bytes: int
    product: int  # rows, columns and tokens of the large product
    batch: int  # rows of the large decode
    context: int  # tokens that each of its rows sees
    short_context: int  # of the decode of one row
    prefill_tokens: int
    decode_steps: int
    repeats: int  # of what is timed in one go
    requests: int  # of the offline run
    prompt_len: int
    output_len: int
    running: int  # requests at once
    batch_tokens: int


FULL = Sizes(
    decoder=llama_shape(layers=16, hidden=2048, ffn=8192, heads=32, kv_heads=8, vocab=128256, is_tied=True),
    quantised=llama_shape(layers=16, hidden=2048, ffn=8192, heads=32, kv_heads=8, vocab=128256, is_tied=True),
    stack=lambda layers: llama_shape(
        layers=layers, hidden=4096, ffn=11008, heads=32, kv_heads=32, vocab=32000, is_tied=False
    ),
    stack_layers=8,
    gpt2=gpt2_shape(layers=12, hidden=768, heads=12, vocab=50257, positions=1024),
    copy_bytes=1 << 30,
    product=8192,
    batch=64,
    context=256,
    short_context=64,
    prefill_tokens=8192,
    decode_steps=100,
    repeats=10,
    requests=128,
    prompt_len=256,
    output_len=64,
    running=128,
    batch_tokens=4096,
)
TINY = Sizes(
    decoder=llama_shape(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, vocab=320, is_tied=True),
    quantised=llama_shape(layers=1, hidden=256, ffn=256, heads=4, kv_heads=2, vocab=320, is_tied=True),
    stack=lambda layers: llama_shape(layers=layers, hidden=64, ffn=96, heads=2, kv_heads=2, vocab=64, is_tied=False),
    stack_layers=1,
    gpt2=gpt2_shape(layers=1, hidden=64, heads=2, vocab=96, positions=64),
    copy_bytes=1 << 20,
    product=64,
    batch=3,
    context=16,
    short_context=16,
    prefill_tokens=48,
    decode_steps=2,
    repeats=1,
    requests=3,
    prompt_len=8,
    output_len=3,
    running=3,
    batch_tokens=64,
)


def make_model(config: ModelConfig, weight_format: str, head_format: str | None = None) -> Model:
    """`head_format`: of the embedding and the head; by default the others'."""
    module: ModuleType = gpt2 if isinstance(config, gpt2.Config) else llama
    graph = Graph()
    module.build(graph, config)
    weights = {}
    for name, shape in graph.weights.items():
        is_head = name in ("token_embd.weight", "output.weight")
        weights[name] = make_tensor(name, shape, head_format or weight_format if is_head else weight_format)
    return Model(module.__name__.rpartition(".")[2], config, graph, weights, config.max_positions, ())


def make_tensor(name: str, shape: tuple[int, ...], weight_format: str) -> Tensor:
    """Matrices keep the size of what they are multiplied with; norms are 1, biases 0."""
    if len(shape) == 1:
        return Tensor.from_numpy(name, np.full(shape, float(not name.endswith(".bias")), dtype=np.float32))
    return Tensor(name, weight_format, shape, _matrix_bytes(shape, weight_format))


@cache
def _matrix_bytes(shape: tuple[int, ...], weight_format: str) -> npt.NDArray[np.uint8]:
    form = get_format(weight_format)
    rows, columns = shape
    # An odd number of blocks, so that they fall into other places from row to row.
    num_blocks = max(POOL_VALUES // form.block_size - 1, 1)
    values = np.random.default_rng(0).normal(0, columns**-0.5, num_blocks * form.block_size).astype(np.float32)
    return np.resize(form.quantize(values), rows * columns // form.block_size * form.block_bytes)


def auto_kv_dtype(model: Model) -> str:
    return choose_kv_dtype("auto", "auto", "auto", model.weights)


def num_operations(graph: Graph, num_tokens: int, num_logits: int) -> int:
    """Of a prompt's step: two for each weight and row; four for each query, key and feature, of keys that it sees."""
    total = 0
    for op in graph.ops:
        if isinstance(op.kind, Linear):
            rows, columns = graph.weights[op.kind.weight]
            total += 2 * rows * columns * (num_tokens if op.output.rows == "tokens" else num_logits)
        elif isinstance(op.kind, Attention):
            total += attention_operations(op.kind.spec.num_heads * op.kind.spec.head_dim, num_tokens)
    return total


def attention_operations(width: int, num_tokens: int) -> int:
    return 4 * width * (num_tokens * (num_tokens + 1) // 2)


# -- on disk --------------------------------------------------------------------------------------------------

_SAFETENSORS = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


def write_checkpoint(model: Model, folder: Path) -> Path:
    """A Hugging Face directory with a tokenizer whose first words are bytes; only of Llama-shaped models."""
    assert isinstance(model.config, llama.Config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_hf_config(model.config)), "utf-8")
    byte_tokenizer(model.config.vocab_size).save(str(folder / "tokenizer.json"))
    tensors = {_hf_name(name): tensor for name, tensor in model.weights.items()}
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.data.nbytes
        header[name] = {"dtype": _SAFETENSORS[tensor.format], "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.data.data)
    return folder


def byte_tokenizer(vocab_size: int) -> Tokenizer:
    """Encodes to single bytes, and has a word for every other id."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate([*alphabet, *_words(vocab_size - len(alphabet))])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _words(count: int) -> Iterator[str]:
    return (f"word{i}" for i in range(count))


def _hf_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    for theirs, ours in llama.HF_NAMES.items():
        if ours is None:
            continue
        before, _, behind = ours.partition("{}")
        layer = module[len(before) : len(module) - len(behind)]
        if ours.format(layer) == module and (layer.isdigit() or "{}" not in ours):
            return f"{theirs.format(layer)}.{leaf}"
    raise KeyError(name)


def _hf_config(config: llama.Config) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": ROPE_BASE,
        "tie_word_embeddings": config.is_tied,
        "vocab_size": config.vocab_size,
    }
