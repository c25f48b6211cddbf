"""Whether the server serves. Never asks the model for a token."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request

from roseinfer.core.errors import EngineError, EngineRestartingError, OverloadedError
from roseinfer.server.dependencies import engine_of
from roseinfer.server.errors import RESTART_SECONDS, ErrorReply
from roseinfer.server.schemas import HealthReply

router = APIRouter(tags=["health"])

NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ErrorReply, "description": "The reason why not"}}


@router.head("/health", include_in_schema=False)
@router.get("/health", responses=NOT_READY)
async def health(request: Request) -> HealthReply:
    """Whether the engine runs."""
    try:
        engine_of(request).client.check_alive()
    except EngineError as error:  # 503: a balancer is to ask another server
        raise HTTPException(503, str(error)) from error
    return HealthReply(status="ok")


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live")
async def live() -> HealthReply:
    """Whether this process answers at all; where it does not, it is to be started anew."""
    return HealthReply(status="ok")


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", responses=NOT_READY)
async def ready(request: Request) -> HealthReply:
    """Whether a request that is sent now would be taken."""
    reply = await health(request)
    if request.app.state.is_draining:
        raise OverloadedError("the server is stopping", retry_after=RESTART_SECONDS)
    client = engine_of(request).client
    if not client.is_ready:
        raise EngineRestartingError("the engine is being started anew; requests are taken and wait")
    if client.admission.is_full:
        raise OverloadedError(
            f"{client.admission.num_live} requests are running or waiting", client.admission.retry_after
        )
    return reply
