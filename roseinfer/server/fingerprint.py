"""`system_fingerprint`: equal ones give equal answers to equal requests with equal seeds."""

from __future__ import annotations

import hashlib

import roseinfer
from roseinfer.inference_engine import InferenceEngine


def fingerprint_of(engine: InferenceEngine) -> str:
    """From the build, and all that is known of the model and how it is computed but the memory it takes."""
    facts = engine.info
    names = sorted(name for name in getattr(facts, "__dataclass_fields__", vars(facts)) if name != "memory")
    known = [roseinfer.__version__, *(f"{name}={getattr(facts, name)!r}" for name in names)]
    return "fp_" + hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
