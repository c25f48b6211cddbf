"""Compiles every kernel of a model's steps for GPUs that need not be there, down to machine code.

    python -m tests.backends.cuda.compile_kernels MODEL DTYPE ARCH...

prints a line of JSON for each kernel: its name, what it was compiled for, what ptxas says of its registers, its shared
memory, and how it multiplies. Runs without TRITON_INTERPRET, for which a process has to be started anew.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from roseinfer.backends import ProgramOptions
from roseinfer.backends.cuda.compiler import Compiled, Compiler
from roseinfer.backends.cuda.inputs import StepInputs
from roseinfer.backends.cuda.kernels.attention import QueryTiles, make_tiles
from roseinfer.backends.cuda.kernels.launch import Launch, recording
from roseinfer.backends.cuda.kernels.pending_tokens import fill_pending_tokens
from roseinfer.backends.cuda.kv_cache import KvCache
from roseinfer.backends.cuda.sampler import Sampler
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
PRODUCTS = {"wgmma": r"\bwgmma\.mma_async\b", "mma.sync": r"\bmma\.sync\b"}  # of tiles, in PTX
FUSED_IN_LLIR = r"call .*@llvm\.(nvvm\.fma\.rn\.ftz\.f|nvvm\.fma\.rn\.[fd]|fma|fmuladd)(?:\.(?:v(\d+))?(f\d+))?\("
FUSED_IN_PTX = {"nvvm.fma.rn.f": "fma.rn.f32", "nvvm.fma.rn.ftz.f": "fma.rn.ftz.f32", "nvvm.fma.rn.d": "fma.rn.f64"}


def launches(model: str, dtype: str, arch: int, steps: Sequence[int], sampler: bool) -> list[Launch]:
    """All of the model's on such a device, for steps of so many tokens, and the sampler's; nothing is computed."""
    shape = SHAPES[model]
    graph, tensors = make_graph(shape)
    options = ProgramOptions(
        num_blocks=4096, max_batch_tokens=max(steps), max_logit_rows=64, weight_dtype=shape.weight_dtype
    )
    cache = KvCache(graph.attention_specs, options.num_blocks, 256, DTYPES[dtype], META)
    weights = Weights(tensors, DTYPES[dtype], META, shape.weight_dtype, lambda loaded, total: None)
    found: list[Launch] = []
    with recording(found.append, divmod(arch, 10)):
        compiled = Compiler(graph, weights, options, cache.layers, META).compile()
        for num_tokens in steps:
            step = meta_step(num_tokens, compiled)
            fill_pending_tokens(step.token_ids, step.logit_rows)
            for _, operation in compiled.operations:
                operation(step)
        if sampler:
            Sampler(graph.vocab_size, torch.device("cpu"), options.max_logit_rows).warm_up()
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
        is_specialised = not parameter.do_not_specialize
        is_one = is_specialised and isinstance(value, int) and value == 1
        if parameter.is_constexpr or value is None or is_one:
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = parameter.annotation_type or type_of(value)
        if is_specialised and is_aligned(value):
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


def compile_launch(launch: Launch, arch: int, machine_code: bool) -> dict[str, Any]:
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": False}
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        kernel = triton.compile(source_of(launch), target=GPUTarget("cuda", arch, 32), options=options)
    return {
        "kernel": launch.kernel.__name__,
        "arch": arch,
        "shared": kernel.metadata.shared,
        "constants": {name: getattr(value, "__name__", str(value)) for name, value in launch.constants.items()},
        "types": [type_of(value) for value in launch.args if isinstance(value, torch.Tensor)],
        **resources(log.getvalue()),
        "products": {name: len(re.findall(pattern, kernel.asm["ptx"])) for name, pattern in PRODUCTS.items()},
        **multiply_adds(kernel.asm["llir"], kernel.asm["ptx"]),
        "fused_in_machine_code": count_in_machine_code(kernel.asm["cubin"]) if machine_code else None,
    }


def resources(said: str) -> dict[str, int]:
    """What ptxas says: registers of a thread, and bytes that did not fit into them, stored and loaded."""
    [registers] = re.findall(r"Used (\d+) registers", said)
    spilled = re.findall(r"(\d+) bytes spill", said)
    return {"registers": int(registers), "spilled_bytes": sum(map(int, spilled))}


def multiply_adds(llir: str, ptx: str) -> dict[str, int]:
    """How many there are of floats, and how many of those were two operations before LLVM made PTX of them; what stays
    is products of float32, and functions of CUDA's library.
    """
    found, written = Counter(re.findall(r"\bfma\.\S+", ptx)), Counter[str]()
    for name, count, kind in re.findall(FUSED_IN_LLIR, llir):
        written[FUSED_IN_PTX.get(name, f"fma.rn.{kind}")] += int(count or 1)
    return {"fused": sum(found.values()), "contracted": sum((found - written).values())}


def count_in_machine_code(cubin: bytes) -> int:
    """Multiply-adds; those of zeros are how ptxas sets registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "--print-code", "--no-dataflow", file.name]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "EXIT" in code
    return len(re.findall(r"\b[FDH]FMA2?\b(?!.* -RZ, RZ, )", code))


def main(
    model: str, dtype: str, arches: Sequence[int], steps: Sequence[int], sampler: bool, machine_code: bool
) -> None:
    triton.knobs.compilation.always_compile = True  # or ptxas would say nothing of what is in the cache
    triton.knobs.nvidia.dump_ptxas_log = True
    done: set[str] = set()
    for arch in arches:
        for launch in launches(model, dtype, arch, steps, sampler):
            key = f"{source_of(launch).hash()} {launch.num_warps} {launch.num_stages} {arch}"
            if key not in done:
                done.add(key)
                print(json.dumps(compile_launch(launch, arch, machine_code)), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("arches", metavar="ARCH", type=int, nargs="+", help="as in sm_80")
    parser.add_argument("--steps", metavar="TOKENS", type=int, nargs="+", default=STEPS, help="of each step")
    parser.add_argument("--no-sampler", dest="sampler", action="store_false", help="leave out what samples tokens")
    parser.add_argument("--machine-code", action="store_true", help="count multiply-adds in it, too, which takes time")
    return parser.parse_args()


if __name__ == "__main__":
    assert not triton.knobs.runtime.interpret, "kernels are interpreted: unset TRITON_INTERPRET"
    main(**vars(arguments()))
