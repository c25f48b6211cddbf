"""Stands in for the package beside it while an editable install still maps the name to this file."""

from pathlib import Path

__path__ = [str(Path(__file__).with_suffix(""))]

from roseinfer.server.schemas.base import RequestBody
from roseinfer.server.schemas.generate import GenerateReply, GenerateRequest
from roseinfer.server.schemas.health import HealthReply

__all__ = ["GenerateReply", "GenerateRequest", "HealthReply", "RequestBody"]
