"""Whether the server serves. Never asks the model for a token."""

from __future__ import annotations

from fastapi import APIRouter

from roseinfer.server.schemas import HealthReply

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> HealthReply:
    return HealthReply(status="ok")
