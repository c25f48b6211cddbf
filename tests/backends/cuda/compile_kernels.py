"""Compiles every kernel of a model's steps for GPUs that need not be there, down to machine code.

    python -m tests.backends.cuda.compile_kernels MODEL DTYPE ARCH...

prints a line of JSON for each kernel: its name, what it was compiled for, and what ptxas says of its registers and
shared memory. Runs without TRITON_INTERPRET, for which a process has to be started anew.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from roseinfer.backends import ProgramOptions
from roseinfer.backends.cuda.compiler import Compiled, Compiler
from roseinfer.backends.cuda.inputs import StepInputs
from roseinfer.backends.cuda.kernels.attention import QueryTiles, make_tiles
from roseinfer.backends.cuda.kernels.launch import Launch, recording
from roseinfer.backends.cuda.kernels.pending_tokens import fill_pending_tokens
from roseinfer.backends.cuda.kv_cache import KvCache
from roseinfer.backends.cuda.weights import DTYPES, Weights
from tests.backends.cuda.shapes import SHAPES, make_graph

META = torch.device("meta")
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.uint64: "u64",
    torch.uint32: "u32",
}
STEPS = (1, 20, 40, 100, 2048)  # tokens: decode and prefill, each tile size of linears
CONTEXT = 4096


def launches(model: str, dtype: str, arch: int) -> list[Launch]:
    """All of the model's on such a device, for steps of several sizes; nothing is computed."""
    shape = SHAPES[model]
    graph, tensors = make_graph(shape)
    options = ProgramOptions(
        num_blocks=4096, max_batch_tokens=max(STEPS), max_logit_rows=64, weight_dtype=shape.weight_dtype
    )
    cache = KvCache(graph.attention_specs, options.num_blocks, 256, DTYPES[dtype], META)
    weights = Weights(tensors, DTYPES[dtype], META, shape.weight_dtype, lambda loaded, total: None)
    found: list[Launch] = []
    with recording(found.append, divmod(arch, 10)):
        compiled = Compiler(graph, weights, options, cache.layers, META).compile()
        for num_tokens in STEPS:
            step = meta_step(num_tokens, compiled)
            fill_pending_tokens(step.token_ids, step.logit_rows)
            for _, operation in compiled.operations:
                operation(step)
    return found


def meta_step(num_tokens: int, compiled: Compiled) -> StepInputs:
    """One row; or as many rows as tokens, where these are few."""
    num_rows = num_tokens if num_tokens <= 64 else 1
    offsets = np.linspace(0, num_tokens, num_rows + 1).astype(np.int32)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=META)

    tiles = {size: len(make_tiles(offsets, size)[0]) for size in compiled.tile_sizes}
    return StepInputs(
        num_tokens=num_tokens,
        num_logits=num_rows,
        context=CONTEXT,
        token_ids=numbers(num_tokens),
        positions=numbers(num_tokens),
        token_rows=numbers(num_tokens),
        row_offsets=numbers(num_rows + 1),
        logit_rows=numbers(num_rows),
        block_tables=numbers(num_rows, CONTEXT // 16),
        tiles={size: QueryTiles(numbers(count), numbers(count), size) for size, count in tiles.items()},
    )


def source_of(launch: Launch) -> ASTSource:
    """With the specialisations that a launch of the same arguments makes: ones, and multiples of 16."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    given = dict(zip(launch.kernel.arg_names, launch.args, strict=False)) | launch.constants
    for index, name in enumerate(launch.kernel.arg_names):
        value, parameter = given[name], launch.kernel.params[index]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = type_of(value)
        if not parameter.do_not_specialize and is_aligned(value):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def is_aligned(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.storage_offset() * value.element_size() % 16 == 0
    return isinstance(value, int) and value % 16 == 0


def compile_launch(launch: Launch, arch: int) -> dict[str, Any]:
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": False}
    kernel = triton.compile(source_of(launch), target=GPUTarget("cuda", arch, 32), options=options)
    return {
        "kernel": launch.kernel.__name__,
        "arch": arch,
        "shared": kernel.metadata.shared,
        "constants": {name: getattr(value, "__name__", str(value)) for name, value in launch.constants.items()},
        **resources(kernel.asm["ptx"], arch),
        "has_contraction": bool(re.search(r"\bfma\.rn\.f32\b", kernel.asm["ptx"])),
    }


def resources(ptx: str, arch: int) -> dict[str, int]:
    """Registers of a thread, and bytes that did not fit into them."""
    assembler = get_ptxas(arch).path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        suffix = "a" if arch >= 90 else ""
        command = [assembler, "-v", f"-arch=sm_{arch}{suffix}", str(path), "-o", str(path.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", said)
    spilled = re.findall(r"(\d+) bytes spill", said)
    return {"registers": int(registers[1]) if registers else 0, "spilled_bytes": sum(map(int, spilled))}


def main(model: str, dtype: str, *arches: str) -> None:
    done: set[str] = set()
    for arch in map(int, arches):
        for launch in launches(model, dtype, arch):
            key = f"{source_of(launch).hash()} {launch.num_warps} {launch.num_stages} {arch}"
            if key not in done:
                done.add(key)
                print(json.dumps(compile_launch(launch, arch)), flush=True)


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    main(*sys.argv[1:])
