"""`GET /docs`: /openapi.json for people, with a form to try each route. One page that asks nobody else for anything."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response

router = APIRouter()

PAGE = Path(__file__).parent.parent / "docs.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


@router.get("/docs", include_in_schema=False)
def docs() -> Response:
    headers = {"Content-Security-Policy": POLICY}
    return Response(PAGE.read_bytes(), media_type="text/html", headers=headers)
