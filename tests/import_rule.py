"""The import rule of docs/architecture.md as data, and a checker that reads imports without running them.

An import counts wherever it stands: at the top, inside a function, under TYPE_CHECKING, or as the literal name
given to `importlib.import_module`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "roseinfer"

_COMPUTE = {"quant", "checkpoints", "graph", "models", "backends", "backends.native", "backends.torch", "backends.cuda"}
_CONTROL = {"cache", "scheduler", "constraints"}
_BELOW_DOORS = {"core", "text", "engine", "catalog", "loading_bar"} | _COMPUTE | _CONTROL

# Part → the parts it may import beside itself; lower floors first. "" is roseinfer/__init__.py, open to all.
MAY_IMPORT: dict[str, set[str]] = {
    "": set(),
    "core": set(),
    "quant": {"core"},
    "checkpoints": {"core", "quant"},
    "graph": {"core"},
    "models": {"core", "quant", "checkpoints", "graph"},
    "backends": {"core", "quant", "checkpoints", "graph"},
    "backends.native": {"core", "quant", "checkpoints", "graph", "backends"},
    "backends.torch": {"core", "quant", "checkpoints", "graph", "backends"},
    "backends.cuda": {"core", "quant", "checkpoints", "graph", "backends"},
    "cache": {"core"},
    "constraints": {"core"},
    "scheduler": {"core", "cache"},
    "text": {"core", "checkpoints"},
    "engine": {"core"} | _COMPUTE | _CONTROL,  # token ids only: text stays with the doors
    "catalog": {"core"},
    "loading_bar": set(),
    "generation": {"core", "text"},
    "engine_loading": _BELOW_DOORS,
    "inference_engine": _BELOW_DOORS | {"generation", "engine_loading"},
    "report": _BELOW_DOORS | {"generation", "inference_engine"},
    "chat": {"core", "text", "inference_engine"},
    "server": _BELOW_DOORS | {"generation", "inference_engine", "report"},
    "bench": _BELOW_DOORS | {"generation", "inference_engine"},
    "cli": _BELOW_DOORS | {"generation", "inference_engine", "report", "chat", "server", "bench"},
    "__main__": {"core", "server", "cli"},
}

# The seed's `from roseinfer.engine import InferenceEngine`, answered by a module `__getattr__`.
SANCTIONED = {("roseinfer.engine", "inference_engine")}

# Libraries that only these parts may import; () = none may.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "torch": ("backends.torch", "backends.cuda"),
    "triton": ("backends.cuda",),
    "fastapi": ("server",),
    "starlette": ("server",),
    "uvicorn": ("server",),
    "prometheus_client": ("server",),
    "typer": ("cli",),
    "llguidance": ("constraints",),
    "transformers": (),
    "gguf": (),
}


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What `module`'s source imports against the rule, one line each, with the line number."""
    part = _part_of(module)
    if part not in MAY_IMPORT:
        return [f"{module}: {part!r} has no floor; give it one in tests/import_rule.py and docs/architecture.md"]
    problems = []
    for line, name in sorted(set(imported_names(source, module, is_package=is_package))):
        reason = _objection(module, part, name)
        if reason:
            problems.append(f"{module}:{line}: imports {name}: {reason}")
    return problems


def package_violations(root: Path) -> list[str]:
    """Those of every file under `root`, the package's folder."""
    problems = []
    for path in sorted(root.rglob("*.py")):
        is_package = path.name == "__init__.py"
        inside = path.parent if is_package else path.with_suffix("")
        module = ".".join((PACKAGE, *inside.relative_to(root).parts))
        problems += violations(path.read_text(encoding="utf-8"), module, is_package=is_package)
    return problems


def imported_names(source: str, module: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _is_import_call(node.func) and node.args:
            yield from ((node.lineno, name) for name in _literal_name(node.args[0]))


def _objection(module: str, part: str, name: str) -> str | None:
    top = name.partition(".")[0]
    if top != PACKAGE:
        users = LIBRARIES.get(top)
        return None if users is None or part in users else f"only {', '.join(users) or 'tests'} may"
    target = _part_of(name)
    if target in {part, ""} or target in MAY_IMPORT[part] or (module, target) in SANCTIONED:
        return None
    return f"{part or PACKAGE} may not import {target}"


def _part_of(name: str) -> str:
    """The longest part that `name` lies in; an unknown module under the package is a part of its own."""
    inside = name.split(".")[1:]
    for part in (".".join(inside[:2]), ".".join(inside[:1])):
        if part in MAY_IMPORT:
            return part
    return "" if inside[0].startswith("__") else inside[0]  # roseinfer.__version__ lies in the package itself


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, node.module] if node.module else base)


def _is_import_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"import_module", "__import__"}


def _literal_name(argument: ast.expr) -> Iterator[str]:
    """The name, or of an f-string the part before its first field: f"roseinfer.backends.{name}"."""
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0]
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        yield argument.value.rstrip(".")
