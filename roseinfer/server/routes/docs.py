"""`GET /docs`: /openapi.json for people, with a form to try each route. One page that asks nobody else for anything."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Response

router = APIRouter()

PAGE = Path(__file__).parent.parent / "docs.html"


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    page = PAGE.read_bytes()
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy_of(page)})


@lru_cache(1)
def policy_of(page: bytes) -> str:
    """The page's own style and script, known by their digests, may run and ask this server; nothing else may."""
    sources = {f"{element}-src": " ".join(_digests(element, page)) for element in ("style", "script")}
    policy = {
        "default-src": "'none'",
        **sources,
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in policy.items())


def _digests(element: str, page: bytes) -> list[str]:
    contents = re.findall(rb"<%b>(.*?)</%b>" % (element.encode(), element.encode()), page, re.DOTALL)
    return [f"'sha256-{b64encode(hashlib.sha256(content).digest()).decode()}'" for content in contents]
