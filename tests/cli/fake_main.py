"""`roseinfer`, or with `SEED=1` `python -m roseinfer.server`, with the model of bytes in place of one from a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from roseinfer.core.config import Config
from roseinfer.inference_engine import InferenceEngine
from tests.fake_model import RecitingProgram, fake_engine


def from_config(config: Config, say: Callable[[str], None] | None = None, **options: Any) -> InferenceEngine:
    options.get("meanwhile", lambda: None)()
    program = RecitingProgram()
    program.step_seconds = float(os.environ.get("STEP_SECONDS", "0"))
    return fake_engine(program, seed=config.seed)


InferenceEngine.from_config = from_config  # type: ignore[method-assign, assignment]

if __name__ == "__main__":
    if os.environ.get("SEED"):
        from roseinfer.server.__main__ import main as seed_main

        sys.exit(seed_main())
    from roseinfer.cli import main

    main()
