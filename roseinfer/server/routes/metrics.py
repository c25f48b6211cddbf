"""`GET /metrics`: what the server counts, for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, FastAPI, Request, Response

router = APIRouter(tags=["metrics"])

PREFIXES = {"roseinfer": ("roseinfer",), "vllm": ("vllm",), "both": ("roseinfer", "vllm")}


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus' text format, or OpenMetrics where the Accept header asks for it",
            "content": {"text/plain": {}, "application/openmetrics-text": {}},
        }
    },
)
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms of the engine and its requests, in Prometheus' text format."""
    accept = request.headers.get("accept", "")
    text, media_type = await asyncio.to_thread(_render, request.app, accept)
    return Response(text, headers={"Content-Type": media_type})


def _render(app: FastAPI, accept: str) -> tuple[bytes, str]:
    from roseinfer.server.exposition import expose

    state = app.state
    return expose(state.engine, state.metrics, PREFIXES[state.metrics_prefix], accept)
