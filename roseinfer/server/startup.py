"""What lets a server answer within a second: nothing is imported, collected or kept that serving does not need.

All on one thread. Imports hold the GIL: two threads that import take longer than one that does the work of both.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterator

from roseinfer.core.interpreter import return_freed_memory

VARIABLES = {
    "OPENBLAS_NUM_THREADS": "1",  # numpy's own threads, which we never use, spin while they wait
    "PYDANTIC_DISABLE_PLUGINS": "1",  # looking for plugins reads the metadata of every installed package
}


@contextlib.contextmanager
def quick_start() -> Iterator[None]:
    """Around all that a server does before it serves."""
    limit_libraries()
    gc.disable()  # what is loaded now stays
    try:
        yield
        return_freed_memory()
    finally:
        gc.enable()


def limit_libraries() -> None:
    """To be called before they are imported, which is when they look at their variables."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)


def import_fastapi() -> None:
    """In half the time: without Pydantic's first version, and with OpenAPI's sixty models left unbuilt.

    FastAPI takes an import error for an answer; models whose base is deferred are built when they are first used,
    which is for /openapi.json.
    """
    sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type]
    from pydantic import BaseModel

    BaseModel.model_config["defer_build"] = True
    try:
        importlib.import_module("fastapi")
    finally:
        del BaseModel.model_config["defer_build"]
