"""Graph + weights → native program: fuses, chooses what each linear reads, plans memory, emits kernel calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import roseinfer.backends.native._native as _native
from roseinfer.backends import KvFile, ProgramOptions, Progress
from roseinfer.backends.native.program import NativeProgram
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.batch import Float32Array
from roseinfer.core.errors import ConfigError, DeviceError, UnsupportedModelError
from roseinfer.core.machine import usable_cores
from roseinfer.graph import Graph, Op, RopeSpec, Value
from roseinfer.graph.fusion import Fused, FusedAttention, FusedLinear, fuse, inputs_of, lifetimes, outputs_of
from roseinfer.graph.graph import (
    Activation,
    Add,
    AttentionSpec,
    Embedding,
    Gated,
    LayerNorm,
    PositionEmbedding,
    RMSNorm,
    Rope,
    TakeLogitRows,
)
from roseinfer.graph.memory import Span, plan_memory
from roseinfer.quant import get_format

FLOAT_FORMATS = ("f32", "f16", "bf16")
REQUESTED_FORMATS = {"bfloat16": "bf16", "float16": "f16"}
MAX_POSITIONS = 2**31 - 1

# A value in one of the forms that operations read: "floats", or panels for linears: "f32", "q8" or "bf16".
Form = tuple[int, str]
PANELS = ("f32", "q8", "bf16")
PANEL_COLUMNS = 32


def compile(
    graph: Graph, weights: Mapping[str, Tensor], options: ProgramOptions, progress: Progress | None = None
) -> NativeProgram:
    """Packs the weights and builds the program. `weights` are the graph's, by name; they are copied."""
    if options.isa not in ("auto", *_native.available_isas()):
        raise DeviceError(f"isa {options.isa!r} does not run here (here: {', '.join(_native.available_isas())})")
    if options.block_size != _native.KV_BLOCK:
        raise ConfigError(f"block_size must be {_native.KV_BLOCK} on the native backend, got {options.block_size}")
    if options.weight_dtype != "auto":
        raise ConfigError(
            f"weight_dtype {options.weight_dtype} needs --device cuda; the CPU reads weights as they are stored"
        )
    for spec in graph.attention_specs:
        if spec.head_dim > _native.MAX_HEAD_DIM:
            raise UnsupportedModelError(f"head_dim {spec.head_dim} is above {_native.MAX_HEAD_DIM}")
    return _Compiler(graph, weights, options, progress or _ignore).compile()


def kv_block_bytes(specs: list[AttentionSpec], kv_dtype: str) -> int:
    """Bytes of one block of 16 tokens over all layers."""
    return sum(s.num_kv_heads * int(_native.kv_head_bytes(kv_dtype, s.head_dim)) for s in specs)


def fastest_kv_dtype(isa: str) -> str:
    """Of the half precisions, what attention computes with directly; the other is converted to float32."""
    return "bfloat16" if isa in ("auto", *_native.available_isas()) and _native.has_bf16_dot(isa) else "float16"


class _Compiler:
    def __init__(
        self, graph: Graph, weights: Mapping[str, Tensor], options: ProgramOptions, progress: Progress
    ) -> None:
        self.progress = progress
        self.loaded_bytes = 0
        self.graph = graph
        self.weights = weights
        self.options = options
        self.isa: str = _native.isa(options.isa)
        self.pool = _thread_pool(options.num_threads or usable_cores())
        if options.progress_counter is not None:
            self.pool.count_progress(options.progress_counter)
        self.packed: dict[str, Any] = {}
        self.total_bytes = sum(tensor.data.nbytes for tensor in weights.values() if len(tensor.shape) == 2)
        self.rope_tables: dict[RopeSpec, int] = {}

    def compile(self) -> NativeProgram:
        self.fused = fuse(self.graph, self.input_kind)
        self.forms = self.needed_forms()
        self.buffers, arena_bytes = self.plan_buffers()
        specs = self.graph.attention_specs
        self.kv_offsets = {s.layer: kv_block_bytes(specs[:i], self.options.kv_dtype) for i, s in enumerate(specs)}
        self.program = self.new_program(arena_bytes)
        for op in self.fused:
            self.emit(op)
            self.emit_prepare(op)
        weight_bytes = sum(packed.nbytes for packed in self.packed.values())
        return NativeProgram(self.program, self.graph.vocab_size, weight_bytes, self.isa)

    def new_program(self, arena_bytes: int) -> _native.Program:
        assert self.graph.logits_value is not None
        options = self.options
        block_bytes = kv_block_bytes(self.graph.attention_specs, options.kv_dtype)
        kv_file = options.kv_file or KvFile(-1, 0)
        try:
            return _native.Program(
                isa=self.isa,
                pool=self.pool,
                max_tokens=options.max_batch_tokens,
                max_logits=options.max_logit_rows,
                num_blocks=options.num_blocks,
                block_bytes=block_bytes,
                kv_dtype=options.kv_dtype,
                arena_bytes=arena_bytes,
                vocab_size=self.graph.vocab_size,
                max_positions=self.graph.max_positions or MAX_POSITIONS,
                logits=self.floats(self.graph.logits_value),
                kv_fd=kv_file.fd,
                kv_offset=kv_file.offset,
            )
        except MemoryError:
            kv_bytes = options.num_blocks * block_bytes
            raise ConfigError(
                f"the system does not grant {kv_bytes} bytes for the KV cache and {arena_bytes} for activations; "
                "lower kv_cache_memory or max_batch_tokens"
            ) from None

    # -- what linears read ----------------------------------------------------------------------------------

    def input_kind(self, weight: str) -> str:
        """int8 for quantised weights, bf16 for bf16 ones where the CPU multiplies them, float32 for the rest."""
        weight_format = self.stored_format(self.weights[weight])
        if self.options.dtype == "float32" or weight_format in ("f32", "f16"):
            return "f32"
        if weight_format == "bf16":
            return "bf16" if _native.has_bf16_dot(self.isa) else "f32"
        return "q8"

    def needed_forms(self) -> set[Form]:
        forms: set[Form] = set()
        for op in self.fused:
            forms |= {(value.index, form) for value, form in self._reads(op)}
        read = {index for index, _ in forms}
        for op in self.fused:
            for value in outputs_of(op):  # what nobody reads has to lie somewhere, too
                if value.index not in read or not self.writes_panels(op):
                    forms.add((value.index, "floats"))
        assert self.graph.logits_value is not None
        return forms | {(self.graph.logits_value.index, "floats")}

    def _reads(self, op: Fused) -> list[tuple[Value, str]]:
        if not isinstance(op, FusedLinear):
            return [(value, "floats") for value in inputs_of(op)]
        residual = [(op.residual, "floats")] if op.residual else []
        return [(op.x, self.input_kind(op.weights[0])), *residual]

    def writes_panels(self, op: Fused) -> bool:
        """Whether the operation leaves its result as panels itself; others need a `prepare` behind them."""
        if isinstance(op, FusedAttention):
            spec = op.spec
            return spec.num_heads // spec.num_kv_heads * spec.head_dim % PANEL_COLUMNS == 0
        return isinstance(op, FusedLinear) or isinstance(op.kind, RMSNorm | LayerNorm)

    # -- memory ---------------------------------------------------------------------------------------------

    def plan_buffers(self) -> tuple[dict[Form, Any], int]:
        assert self.graph.logits_value is not None
        values = {v.index: v for op in self.fused for v in outputs_of(op)}
        born, last = lifetimes(self.fused, self.graph.logits_value)
        forms = sorted(form for form in self.forms if form[0] in values)
        spans = [Span(self._form_bytes(values[v], form), born[v], last[v]) for v, form in forms]
        offsets, total = plan_memory(spans)
        buffers = {
            form: _native.Buffer(offset, values[form[0]].width) for form, offset in zip(forms, offsets, strict=True)
        }
        return buffers, max(total, 1)

    def _form_bytes(self, value: Value, form: str) -> int:
        rows = self.options.max_batch_tokens if value.rows == "tokens" else self.options.max_logit_rows
        return rows * value.width * 4 if form == "floats" else int(_native.panels_bytes(form, rows, value.width))

    def floats(self, value: Value) -> Any:
        return self.buffer(value, "floats")

    def buffer(self, value: Value, form: str) -> Any:
        """The value's buffer in that form, or one that says "absent"."""
        return self.buffers.get((value.index, form)) or _native.Buffer()

    def output(self, value: Value) -> Any:
        return _native.Output(self.floats(value), *(self.buffer(value, form) for form in PANELS))

    def floats_only(self, value: Value) -> Any:
        return _native.Output(self.floats(value), *(_native.Buffer() for _ in PANELS))

    # -- weights --------------------------------------------------------------------------------------------

    def matrix(self, name: str) -> Any:
        if name not in self.packed:
            tensor = self.weights[name]
            rows, columns = tensor.shape
            tensor = self.in_requested_precision(tensor)
            self.packed[name] = _native.pack(tensor.format, rows, columns, tensor.data, self.pool)
            self.loaded_bytes += self.weights[name].data.nbytes
            self.progress(self.loaded_bytes, self.total_bytes)
        return self.packed[name]

    def stored_format(self, tensor: Tensor) -> str:
        """Unquantised matrices are held in the dtype asked for; quantised ones stay as they are."""
        if tensor.format not in FLOAT_FORMATS:
            return tensor.format
        return REQUESTED_FORMATS.get(self.options.dtype, tensor.format)

    def in_requested_precision(self, tensor: Tensor) -> Tensor:
        wanted = self.stored_format(tensor)
        if wanted == tensor.format:
            return tensor
        data = get_format(wanted).quantize(tensor.numpy().reshape(-1))
        converted = replace(tensor, format=wanted, data=data)
        if not np.isfinite(converted.numpy()).all():
            raise ConfigError(f"tensor {tensor.name} has values that dtype {self.options.dtype} cannot hold")
        return converted

    def required_vector(self, name: str) -> Float32Array:
        return np.ascontiguousarray(self.weights[name].numpy(), dtype=np.float32)

    def vector(self, name: str | None) -> Float32Array | None:
        return None if name is None else self.required_vector(name)

    # -- emitting -------------------------------------------------------------------------------------------

    def emit(self, op: Fused) -> None:
        if isinstance(op, FusedLinear):
            self.emit_linear(op)
        elif isinstance(op, FusedAttention):
            self.emit_attention(op)
        else:
            self.emit_single(op)

    def emit_prepare(self, op: Fused) -> None:
        if self.writes_panels(op):
            return
        for value in outputs_of(op):
            panels = [self.buffer(value, form) for form in PANELS]
            if any((value.index, form) in self.forms for form in PANELS):
                self.program.add_prepare(self.floats(value), _native.Output(_native.Buffer(), *panels), _rows(value))

    def emit_linear(self, op: FusedLinear) -> None:
        kind = self.input_kind(op.weights[0])
        outputs = [self.output(value) for value in op.outputs]
        if isinstance(op.epilogue, Gated):
            outputs *= 2  # the second is never written: gate and up share the first
        combine = "" if op.epilogue is None else "gated" if isinstance(op.epilogue, Gated) else "activate"
        self.program.add_linear(
            self.buffer(op.x, kind),
            kind,
            _rows(op.x),
            [self.matrix(name) for name in op.weights],
            [self.vector(name) for name in op.biases],
            outputs,
            combine,
            op.activation,
            self.floats(op.residual) if op.residual else _native.Buffer(),
        )

    def emit_attention(self, op: FusedAttention) -> None:
        spec = op.spec
        geometry = (spec.num_heads, self.kv_offsets[spec.layer], spec.num_kv_heads, spec.head_dim)
        q, k, v = self.floats(op.q), self.floats(op.k), self.floats(op.v)
        q_norm, k_norm = (self.vector(norm.weight if norm else None) for norm in (op.q_norm, op.k_norm))
        eps = op.q_norm.eps if op.q_norm else 0.0
        self.program.add_store_kv(q, k, v, *geometry, q_norm, k_norm, eps, self.rope_table(op.rope))
        # Heads that end within a group of columns cannot fill panels side by side.
        output = self.output(op.output) if self.writes_panels(op) else self.floats_only(op.output)
        self.program.add_attention(q, output, *geometry, spec.scale, spec.window or 0)

    def rope_table(self, spec: RopeSpec | None) -> int:
        if spec is None:
            return -1
        if spec not in self.rope_tables:
            self.rope_tables[spec] = self.program.add_rope(list(spec.inv_freq), spec.scale)
        return self.rope_tables[spec]

    def emit_single(self, op: Op) -> None:
        program, out, rows = self.program, self.floats(op.output), _rows(op.output)
        inputs = [self.floats(value) for value in op.inputs]
        match op.kind:
            case Embedding(weight, scale):
                program.add_embedding(self.matrix(weight), out, scale, False)
            case PositionEmbedding(weight):
                program.add_embedding(self.matrix(weight), out, 1.0, True)
            case RMSNorm(weight, eps, num_heads):
                self._emit_norm(op, inputs[0], weight, None, eps, num_heads)
            case LayerNorm(weight, bias, eps):
                self._emit_norm(op, inputs[0], weight, bias, eps, 1)
            case Rope(spec, num_heads):
                program.add_rope_op(inputs[0], out, self.rope_table(spec), num_heads)
            case Add():
                program.add_add(inputs[0], inputs[1], out, rows)
            case Activation(kind):
                program.add_activate(inputs[0], out, kind, rows)
            case Gated(activation):
                program.add_gated(inputs[0], inputs[1], out, activation, rows)
            case TakeLogitRows():
                program.add_take_rows(inputs[0], out)
            case _:
                raise AssertionError(f"no native kernel for {op.kind}")

    def _emit_norm(self, op: Op, x: Any, weight: str, bias: str | None, eps: float, num_heads: int) -> None:
        self.program.add_norm(
            x,
            self.output(op.output),
            self.required_vector(weight),
            self.vector(bias),
            eps,
            num_heads,
            _rows(op.output),
        )


def _ignore(loaded_bytes: int, total_bytes: int) -> None:
    pass


def _thread_pool(num_threads: int) -> Any:
    try:
        return _native.ThreadPool(num_threads)
    except RuntimeError as error:
        raise ConfigError(f"{num_threads} threads cannot be started: {error}") from error


def _rows(value: Value) -> int:
    return 0 if value.rows == "tokens" else 1
