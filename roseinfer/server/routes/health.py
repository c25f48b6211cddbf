"""Whether the server serves. Never asks the model for a token."""

from __future__ import annotations

from fastapi import APIRouter

from roseinfer.server.dependencies import Engine
from roseinfer.server.schemas import HealthReply

router = APIRouter(tags=["health"])


@router.get("/health")
async def health(engine: Engine) -> HealthReply:
    engine.client.check_alive()
    return HealthReply(status="ok")
