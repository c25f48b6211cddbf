"""An interpreter for the part of pickle's opcodes that data in a torch file needs. It can run no code.

Not a subclass of pickle.Unpickler: that would still follow every opcode (INST, BUILD, EXT, ...), hash what it is given
and allocate what it is told to, with only `find_class` in between. Here an opcode that is not in the table is refused,
globals come from a table of pure stubs, dicts are kept as pairs so that nothing is hashed, and work, stack
and memo are bounded. Opcodes: Lib/pickletools.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

from roseinfer.core.errors import CheckpointError

MAX_BYTES = 32 * 2**20
MAX_OPS = 400_000
MAX_STACK = 65_536
MAX_MEMO = 262_144
MAX_GLOBAL_BYTES = 256
MAX_INT_BYTES = 16

_U16, _I32, _U32, _U64, _F64 = Struct("<H"), Struct("<i"), Struct("<I"), Struct("<Q"), Struct(">d")


@dataclass(frozen=True, eq=False)
class Function:
    """A stub that REDUCE may call. It gets whatever arguments the file gives, so it checks them."""

    call: Callable[[tuple[Any, ...]], Any]


@dataclass(frozen=True, eq=False)
class Skipped:
    """A class or function whose results are read over and cannot be used."""

    name: str


@dataclass(frozen=True, eq=False)
class Pairs:
    """A dict or OrderedDict as the pairs that were set, in order."""

    items: list[tuple[Any, Any]] = field(default_factory=list)


def unpickle(code: bytes, stubs: Mapping[str, Any], persistent_load: Callable[[Any], Any]) -> Any:
    """What the pickle says, of None, bool, int, float, str, bytes, tuple, list, Pairs and what the stubs make.

    `stubs`: "module.name" → `Function`, `Skipped`, or the value itself. Raises `CheckpointError`.
    """
    if len(code) > MAX_BYTES:
        raise CheckpointError(f"a pickle of {len(code)} bytes, at most {MAX_BYTES} are allowed")
    return _Machine(code, stubs, persistent_load).run()


class _Machine:
    def __init__(self, code: bytes, stubs: Mapping[str, Any], persistent_load: Callable[[Any], Any]) -> None:
        self.code = code
        self.position = 0
        self.stubs = stubs
        self.persistent_load = persistent_load
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPS):
            opcode = self.byte()
            if opcode == pickle.STOP[0]:
                return self.stop()
            operation = _OPERATIONS.get(opcode)
            if operation is None:
                raise CheckpointError(f"pickle opcode {bytes([opcode])!r} at {self.position - 1} is not allowed")
            operation(self)
            if len(self.stack) > MAX_STACK:
                raise CheckpointError(f"a pickle stack deeper than {MAX_STACK}")
        raise CheckpointError(f"a pickle of more than {MAX_OPS} operations")

    def stop(self) -> Any:
        value = self.pop()
        if self.stack or self.marks or self.position != len(self.code):
            raise CheckpointError("the pickle stops with something left over")
        return value

    # -- reading --

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.code):
            raise CheckpointError("the pickle ends early")
        taken = self.code[self.position : end]
        self.position = end
        return taken

    def byte(self) -> int:
        if self.position == len(self.code):
            raise CheckpointError("the pickle ends early")
        self.position += 1
        return self.code[self.position - 1]

    def number(self, layout: Struct) -> Any:
        return layout.unpack(self.take(layout.size))[0]

    def line(self) -> str:
        end = self.code.find(b"\n", self.position, self.position + MAX_GLOBAL_BYTES)
        if end < 0:
            raise CheckpointError("a name in the pickle does not end")
        line = self.take(end - self.position)
        self.position += 1
        return _text(line)

    # -- stack --

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def require(self, count: int) -> None:
        """What lies below the last mark cannot be reached."""
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise CheckpointError("the pickle takes from an empty stack")

    def pop(self) -> Any:
        self.require(1)
        return self.stack.pop()

    def pop_many(self, count: int) -> tuple[Any, ...]:
        self.require(count)
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise CheckpointError("the pickle misses a mark")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, kind: type[Any] | tuple[type[Any], ...]) -> Any:
        self.require(1)
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise CheckpointError(f"the pickle treats a {type(value).__name__} as something else")
        return value

    # -- memo --

    def memoize(self, index: int) -> None:
        if len(self.memo) >= MAX_MEMO:
            raise CheckpointError(f"a pickle memo of more than {MAX_MEMO} values")
        self.memo[index] = self.top(object)

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise CheckpointError("the pickle asks for a value that it never stored")
        self.push(self.memo[index])

    # -- operations --

    def proto(self) -> None:
        version = self.byte()
        if not 2 <= version <= 5:
            raise CheckpointError(f"pickle protocol {version} is not supported")

    def frame(self) -> None:
        if self.number(_U64) > len(self.code) - self.position:
            raise CheckpointError("a pickle frame reaches beyond the end")

    def mark(self) -> None:
        self.marks.append(len(self.stack))
        if len(self.marks) > MAX_STACK:
            raise CheckpointError(f"a pickle stack deeper than {MAX_STACK}")

    def integer(self) -> None:
        size = self.byte()
        if size > MAX_INT_BYTES:
            raise CheckpointError(f"an integer of {size} bytes in the pickle")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def appends(self) -> None:
        values = self.pop_mark()
        self.top(list).extend(values)

    def set_item(self) -> None:
        key, value = self.pop_many(2)
        self.top(Pairs).items.append((key, value))

    def set_items(self) -> None:
        flat = self.pop_mark()
        if len(flat) % 2:
            raise CheckpointError("the pickle sets a key without a value")
        self.top(Pairs).items.extend(zip(flat[::2], flat[1::2], strict=True))

    def find(self, module: str, name: str) -> None:
        qualified = f"{module}.{name}"
        if qualified not in self.stubs:
            raise CheckpointError(f"the pickle refers to {qualified!r}, which is not allowed")
        self.push(self.stubs[qualified])

    def stack_global(self) -> None:
        module, name = self.pop_many(2)
        if not (isinstance(module, str) and isinstance(name, str)) or len(module) + len(name) > MAX_GLOBAL_BYTES:
            raise CheckpointError("a global in the pickle is not named by two short strings")
        self.find(module, name)

    def reduce(self) -> None:
        """Calls a stub, also for NEWOBJ: a skipped class makes skipped objects either way."""
        function, arguments = self.pop_many(2)
        if not isinstance(arguments, tuple):
            raise CheckpointError("the pickle calls something without a tuple of arguments")
        if isinstance(function, Skipped):
            self.push(function)
        elif isinstance(function, Function):
            self.push(function.call(arguments))
        else:
            raise CheckpointError(f"the pickle calls a {type(function).__name__}, which is not allowed")

    def build(self) -> None:
        """Attributes are dropped: an OrderedDict's `_metadata`, or the state of a skipped object."""
        self.pop()
        self.top((Pairs, Skipped))

    def persistent_id(self) -> None:
        self.push(self.persistent_load(self.pop()))


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError("a string in the pickle is not UTF-8") from error


_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    pickle.PROTO[0]: _Machine.proto,
    pickle.FRAME[0]: _Machine.frame,
    pickle.MARK[0]: _Machine.mark,
    pickle.NONE[0]: lambda m: m.push(None),
    pickle.NEWTRUE[0]: lambda m: m.push(True),
    pickle.NEWFALSE[0]: lambda m: m.push(False),
    pickle.BININT[0]: lambda m: m.push(m.number(_I32)),
    pickle.BININT1[0]: lambda m: m.push(m.byte()),
    pickle.BININT2[0]: lambda m: m.push(m.number(_U16)),
    pickle.LONG1[0]: _Machine.integer,
    pickle.BINFLOAT[0]: lambda m: m.push(m.number(_F64)),
    pickle.SHORT_BINUNICODE[0]: lambda m: m.push(_text(m.take(m.byte()))),
    pickle.BINUNICODE[0]: lambda m: m.push(_text(m.take(m.number(_U32)))),
    pickle.SHORT_BINBYTES[0]: lambda m: m.push(m.take(m.byte())),
    pickle.BINBYTES[0]: lambda m: m.push(m.take(m.number(_U32))),
    pickle.EMPTY_TUPLE[0]: lambda m: m.push(()),
    pickle.TUPLE1[0]: lambda m: m.push(m.pop_many(1)),
    pickle.TUPLE2[0]: lambda m: m.push(m.pop_many(2)),
    pickle.TUPLE3[0]: lambda m: m.push(m.pop_many(3)),
    pickle.TUPLE[0]: lambda m: m.push(tuple(m.pop_mark())),
    pickle.EMPTY_LIST[0]: lambda m: m.push([]),
    pickle.APPEND[0]: _Machine.append,
    pickle.APPENDS[0]: _Machine.appends,
    pickle.EMPTY_DICT[0]: lambda m: m.push(Pairs()),
    pickle.SETITEM[0]: _Machine.set_item,
    pickle.SETITEMS[0]: _Machine.set_items,
    pickle.BINPUT[0]: lambda m: m.memoize(m.byte()),
    pickle.LONG_BINPUT[0]: lambda m: m.memoize(m.number(_U32)),
    pickle.MEMOIZE[0]: lambda m: m.memoize(len(m.memo)),
    pickle.BINGET[0]: lambda m: m.recall(m.byte()),
    pickle.LONG_BINGET[0]: lambda m: m.recall(m.number(_U32)),
    pickle.GLOBAL[0]: lambda m: m.find(m.line(), m.line()),
    pickle.STACK_GLOBAL[0]: _Machine.stack_global,
    pickle.REDUCE[0]: _Machine.reduce,
    pickle.NEWOBJ[0]: _Machine.reduce,
    pickle.BUILD[0]: _Machine.build,
    pickle.BINPERSID[0]: _Machine.persistent_id,
}
