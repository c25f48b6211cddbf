"""What bodies look like: one file per family of routes."""

from __future__ import annotations

from roseinfer.server.schemas.base import RequestBody
from roseinfer.server.schemas.generate import GenerateReply, GenerateRequest
from roseinfer.server.schemas.health import HealthReply

__all__ = ["GenerateReply", "GenerateRequest", "HealthReply", "RequestBody"]
