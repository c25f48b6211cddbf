"""Writes a Llama-shaped GGUF file of random weights: any size of model to time, without fetching one.

    python benchmarks/random_model.py TOKENIZER.gguf OUT.gguf [--layers 16 --hidden 2048 --format q4_0 ...]

The vocabulary is TOKENIZER's, whatever model it belongs to; the output head is the embedding; the defaults make a model
of 1.1 billion weights. Its text means nothing, but a token costs what it would cost in a trained model of that shape.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from roseinfer.quant import format_names, get_format

POOL_VALUES = 1 << 18  # distinct weights; tensors are dealt from whole blocks of them
NORM_EPS = 1e-5
ROPE_BASE = 100_000.0

# What a GGUF file says its weights mostly are; the plain K-quants are called the medium mix.
_SPELLINGS = {"f32": "ALL_F32"} | {f"q{bits}_k": f"MOSTLY_Q{bits}_K_M" for bits in (3, 4, 5)}
FILE_TYPES = {name: gguf.LlamaFileType[_SPELLINGS.get(name, f"MOSTLY_{name.upper()}")].value for name in format_names()}


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    context: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class TensorSpec:
    name: str
    format: str
    rows: int  # 1 for a norm, which is a vector
    columns: int

    @property
    def is_vector(self) -> bool:
        return self.rows == 1


class BlockPool:
    """Quantises some normally distributed weights once; dealing out their blocks is 30 times as fast as making more."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._blocks = cache(self._make_blocks)

    def data(self, spec: TensorSpec) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, [rows, bytes per row]."""
        blocks = self._blocks(spec.format, spec.columns)
        num_blocks = spec.rows * spec.columns // get_format(spec.format).block_size
        return blocks[self._random.integers(len(blocks), size=num_blocks)].reshape(spec.rows, -1)

    def _make_blocks(self, format_name: str, columns: int) -> npt.NDArray[np.uint8]:
        """[blocks, bytes per block]; a row of `columns` such weights keeps the size of what it is multiplied with."""
        values = self._random.normal(0, columns**-0.5, POOL_VALUES).astype(np.float32)
        weight_format = get_format(format_name)
        return weight_format.quantize(values).reshape(-1, weight_format.block_bytes)


def main() -> None:
    args = parse_arguments()
    shape = Shape(args.layers, args.hidden, args.heads, args.kv_heads, args.ffn, args.context)
    write_model(args.out, gguf.GGUFReader(args.tokenizer), shape, args.format, args.embedding_format, args.seed)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:,.1f} MB")


def write_model(
    out: Path, tokenizer: gguf.GGUFReader, shape: Shape, format_name: str, embedding_format: str, seed: int
) -> None:
    """One tensor is in memory at a time. The same arguments give the same bytes."""
    vocab_size = len(tokenizer.fields["tokenizer.ggml.tokens"].data)
    specs = list(tensor_specs(shape, vocab_size, format_name, embedding_format))
    writer = gguf.GGUFWriter(out, arch="llama")
    add_shape(writer, shape, vocab_size)
    writer.add_file_type(FILE_TYPES[format_name])
    copy_tokenizer(writer, tokenizer)
    for spec in specs:
        add_description(writer, spec)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pool = BlockPool(seed)
    for spec in specs:
        writer.write_tensor_data(np.ones(spec.columns, np.float32) if spec.is_vector else pool.data(spec))
    writer.close()


def tensor_specs(shape: Shape, vocab_size: int, format_name: str, embedding_format: str) -> Iterator[TensorSpec]:
    hidden, kv_width = shape.hidden, shape.kv_heads * shape.head_dim
    matrices = {
        "attn_q": (hidden, hidden),
        "attn_k": (kv_width, hidden),
        "attn_v": (kv_width, hidden),
        "attn_output": (hidden, hidden),
        "ffn_gate": (shape.ffn, hidden),
        "ffn_up": (shape.ffn, hidden),
        "ffn_down": (hidden, shape.ffn),
    }
    yield TensorSpec("token_embd.weight", embedding_format, vocab_size, hidden)
    for layer in range(shape.layers):
        for name, (rows, columns) in matrices.items():
            yield TensorSpec(f"blk.{layer}.{name}.weight", format_name, rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            yield TensorSpec(f"blk.{layer}.{name}.weight", "f32", 1, hidden)
    yield TensorSpec("output_norm.weight", "f32", 1, hidden)


def add_shape(writer: gguf.GGUFWriter, shape: Shape, vocab_size: int) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_vocab_size(vocab_size)


def copy_tokenizer(writer: gguf.GGUFWriter, source: gguf.GGUFReader) -> None:
    for key, field in source.fields.items():
        if key.startswith("tokenizer."):
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=element)


def add_description(writer: gguf.GGUFWriter, spec: TensorSpec) -> None:
    weight_format = get_format(spec.format)
    num_bytes = spec.rows * spec.columns // weight_format.block_size * weight_format.block_bytes
    dims = [spec.columns] if spec.is_vector else [spec.rows, spec.columns]
    dtype = gguf.GGMLQuantizationType[spec.format.upper()]
    writer.add_tensor_info(spec.name, dims, np.dtype(np.float32), num_bytes, raw_dtype=dtype)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Writes a Llama-shaped GGUF file of random weights.")
    parser.add_argument("tokenizer", type=Path, help="the GGUF file whose vocabulary the model gets")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--ffn", type=int, default=8192)
    parser.add_argument("--context", type=int, default=8192, help="longest sequence, in tokens")
    parser.add_argument("--format", choices=format_names(), default="q4_0", help="of the layers' matrices")
    parser.add_argument("--embedding-format", choices=format_names(), default="q8_0", help="and of the output head")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.hidden % args.heads or args.heads % args.kv_heads:
        parser.error("--heads must divide --hidden, and --kv-heads --heads")
    for name, columns in ((args.embedding_format, args.hidden), (args.format, args.hidden), (args.format, args.ffn)):
        if columns % (block_size := get_format(name).block_size):
            parser.error(f"{name} has blocks of {block_size} weights, which do not divide rows of {columns}")


if __name__ == "__main__":
    main()
