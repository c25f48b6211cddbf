"""Whether the server serves. Never asks the model for a token."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request

from roseinfer.core.errors import EngineError
from roseinfer.server.dependencies import engine_of
from roseinfer.server.schemas import HealthReply

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> HealthReply:
    try:
        engine_of(request).client.check_alive()
    except EngineError as error:  # 503: a balancer is to ask another server
        raise HTTPException(503, str(error)) from error
    return HealthReply(status="ok")
